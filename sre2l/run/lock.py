"""One writer at a time: locks of the operating system, on a file beside each output folder.

A process holds byte 0 for a moment, while it changes the folder's records, and byte 1 + i for as long as it
writes image i of the folder. The locks end with the process. The file stays: it says who holds what.

NOTE: a lock of fcntl.lockf goes when its process closes any descriptor of the file, and it does not keep the
threads of one process apart. So a process opens each file once and keeps it open, and a lock for threads
stands beside it."""
import contextlib
import errno
import fcntl
import json
import os
import threading
import time

from sre2l.run.errors import UserError, first_line
from sre2l.run.files import make_folder, sidecar

PATIENCE_SEC = 5  # for a process that is just ending, such as the one that the same command started before
BUSY = (errno.EACCES, errno.EAGAIN)
END = 2 ** 40  # an index behind all images
EVERYTHING = ((0, END),)  # ranges of image indices, (first, stop)
LOCKS = {}  # of this process, by path


@contextlib.contextmanager
def alone_in(folder):
    """One process after the other, where a moment's work in a folder wants no record of who does it. The lock
    is the folder's own and leaves no file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system that locks no folders
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def overlap(ranges, others):
    """Do two lists of ranges have an index in common?"""
    return any(start < end and first < stop for first, end in ranges for start, stop in others)


class FolderLock:
    """The lock of one output folder, in this process. path: of its file."""

    def __init__(self, path):
        make_folder(path.parent)
        self.path = path
        self.handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self.threads = threading.Lock()
        self.is_supported = True

    def is_there(self):
        """Is the file at its path still this one? A run folder may have been removed and made anew."""
        return self.path.exists() and os.path.samestat(os.stat(self.path), os.fstat(self.handle))

    def lock_bytes(self, how, first, stop):
        """fcntl.lockf on bytes first..stop-1 -> False where another process has one of them."""
        if not self.is_supported:
            return True
        try:
            fcntl.lockf(self.handle, how, stop - first, first)
        except OSError as error:
            if error.errno in BUSY:
                return False
            self.is_supported = False
            print(f"warning: {self.path.parent}: this file system has no locks ({first_line(error)}), "
                  f"so nothing keeps a second run from writing here at the same time", flush=True)
        return True

    @contextlib.contextmanager
    def moment(self):
        """Alone with the folder's records: no other thread and no other process is inside."""
        with self.threads:
            self.lock_bytes(fcntl.LOCK_EX, 0, 1)
            try:
                yield
            finally:
                self.lock_bytes(fcntl.LOCK_UN, 0, 1)

    def try_ranges(self, ranges):
        """Lock ranges of image indices, all or none -> whether they are locked."""
        for done, (first, stop) in enumerate(ranges):
            if not self.lock_bytes(fcntl.LOCK_EX | fcntl.LOCK_NB, 1 + first, 1 + stop):
                self.release(ranges[:done])
                return False
        return True

    def wait_until_free(self, ranges):
        """Wait a few seconds for whoever holds a part of these ranges. Call it outside of `moment`, which the
        other needs to end."""
        deadline = time.monotonic() + PATIENCE_SEC
        while time.monotonic() < deadline:
            with self.moment():
                if self.try_ranges(ranges):
                    self.release(ranges)
                    return
            time.sleep(0.1)

    def take(self, ranges):
        """Hold these ranges until `release` or the end of the process; call it within `moment`.

        Raises UserError where another process has a part of them."""
        self.forget_the_dead()
        if not self.try_ranges(ranges):
            raise UserError(self.describe_holder(ranges))
        self.note(ranges)

    def release(self, ranges=EVERYTHING):
        for first, stop in ranges:
            self.lock_bytes(fcntl.LOCK_UN, 1 + first, 1 + stop)

    def holders(self):
        """What the file says of each holder, in the order in which they came."""
        text = os.pread(self.handle, os.fstat(self.handle).st_size, 0).decode(errors="replace")
        found = []
        for line in text.splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def forget_the_dead(self):
        """Keep the lines of those alone who still hold what they wrote down. This process holds nothing."""
        living = []
        for holder in self.holders():
            if self.try_ranges(holder["ranges"]):
                self.release(holder["ranges"])
            else:
                living.append(json.dumps(holder) + "\n")
        os.ftruncate(self.handle, 0)
        os.pwrite(self.handle, "".join(living).encode(), 0)

    def note(self, ranges):
        """Write down, in a line, what this process has locked."""
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = {"host": os.uname().nodename, "pid": os.getpid(), "since": since, "ranges": ranges}
        line = (json.dumps(holder) + "\n").encode()
        os.pwrite(self.handle, line, os.fstat(self.handle).st_size)

    def describe_holder(self, ranges):
        """The sentence for whoever comes second."""
        what = "another process is writing to it"
        for holder in self.holders():
            if overlap(holder["ranges"], ranges):
                who = f"process {holder['pid']} on {holder['host']}"
                what = f"{who} has been writing to it since {holder['since']}"
        root = str(self.path).removesuffix(".lock")
        return f"{root}: {what}; wait for it or stop it, or choose another --name or folder"


def lock_of(root):
    """The FolderLock of an output folder, on <root>.lock: one for the process, while that file is there."""
    path = sidecar(root, "lock")
    if path not in LOCKS or not LOCKS[path].is_there():
        LOCKS[path] = FolderLock(path)
    return LOCKS[path]
