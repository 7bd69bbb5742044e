"""Files that are there whole or not at all, also after a kill or a power cut, and names that tell which process they are of."""
import contextlib
import errno
import fcntl
import functools
import hashlib
import io
import itertools
import json
import os
import re
import socket
import time
from pathlib import Path

import torch

from sre2l.run.errors import UserError

STALE_SEC = 600  # a process of another machine that has given no sign of life for so long counts as dead
TOKEN = r"([A-Za-z0-9_-]+)\.(\d+)\.(\d+)"
ONE_NAMESPACE = 0xEFFFFFFC  # the number of the kernel's own process namespace
counter = itertools.count()


@functools.cache
def host():
    """This machine, as process numbers mean it: a container with numbers of its own is another."""
    name = re.sub("[^A-Za-z0-9-]", "-", socket.gethostname())
    with contextlib.suppress(OSError):
        if (namespace := os.stat("/proc/self/ns/pid").st_ino) != ONE_NAMESPACE:
            name += f"_{namespace:x}"
    return name


def start_of(pid):
    """When a process of this machine began, in the kernel's ticks; None for one that is not there, or is dead and not yet buried."""
    if not os.path.exists("/proc/self/stat"):  # not Linux: its number must do
        with contextlib.suppress(PermissionError):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return None
        return 0
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@functools.cache
def token_of(pid):
    return f"{host()}.{pid}.{start_of(pid)}"


def token():
    """The name of this process, of no other now or later: host.pid.start."""
    return token_of(os.getpid())


def is_alive(owner, path, now=None):
    """Is the process with this token alive? On this machine its number tells, elsewhere the age of `path`, which it touches now and then.

    now: the time by that file system's clock, None for this machine's."""
    name, pid, start = re.fullmatch(TOKEN, owner).groups()
    if name == host():
        return start_of(int(pid)) == int(start)
    try:
        return (now or time.time()) - path.stat().st_mtime < STALE_SEC
    except FileNotFoundError:
        return False


def sidecar(root, suffix):
    """The path beside a folder of images or labels that tells about it: runs/x/labels, 'manifest.json' -> runs/x/labels.manifest.json."""
    root = Path(os.path.abspath(root))  # a trailing slash or '..' changes nothing
    return root.with_name(f"{root.name}.{suffix}")


def sync(path):
    """Have a file, or the names in a folder, on the disk before anything else happens."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot, or need not
            raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(handle)


def make_folder(folder, within=None):
    """Make a folder and those above it, each on the disk. within: one that must be there, nothing of it is made: a run's folder that was
    removed under way shall not come back with the few files of a thread that had not heard of it."""
    if not folder.is_dir():
        if folder == within:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        make_folder(folder.parent, within)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def place_of(root):
    """Where a folder is that may be a link."""
    return Path(os.path.realpath(root) if os.path.islink(root) else root)


@contextlib.contextmanager
def atomic(path, root=None):
    """Write to a temporary name, then rename: `with atomic(path) as tmp: save(tmp)`. Once it ends, the file survives a power cut.

    For a file of an image or label folder `root` the temporary one lies beside the root, since the released reader counts everything in it;
    where the root is a link, beside what it leads to, which may be another disk."""
    path = Path(os.path.abspath(path))
    tmp = sidecar(place_of(root) if root else path, f"{token()}.{next(counter)}.tmp")  # of one process and call: threads and machines share folders
    make_folder(path.parent, within=sidecar(root, "").parent if root else None)
    try:
        yield tmp
        sync(tmp)
        os.replace(tmp, path)
        sync(path.parent)
    finally:
        tmp.unlink(missing_ok=True)


def write_bytes(path, data, root=None):
    with atomic(path, root) as tmp, open(tmp, "wb") as file:
        try:
            file.write(data)
            file.flush()
        except OSError as error:  # a write's error does not know the file
            raise OSError(error.errno, error.strerror, str(path)) from None


def append_line(path, text):
    """Append lines by one write and have them on the disk. text ends with a newline."""
    is_new, data = not os.path.exists(path), text.encode()
    with open(path, "ab", buffering=0) as file:
        try:
            if file.write(data) < len(data):  # the disk filled within it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
    if is_new:
        sync(Path(path).parent)


def save_torch(path, value):
    """torch.save by way of memory: equal values give equal bytes, whatever the file's name."""
    data = io.BytesIO()
    torch.save(value, data)
    write_bytes(path, data.getbuffer())


def write_json(path, value):
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path):
    """A JSON object from disk; raises UserError for anything else."""
    try:
        value = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object")
    return value


def as_json(settings):
    """The same values as JSON gives them back, so that settings compare equal after a round trip."""
    return json.loads(json.dumps(settings, default=str))


def hash_json(value):
    """sha256 of a value of JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(as_json(value), sort_keys=True).encode()).hexdigest()


def hash_file(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def locked(path, flags):
    """-> the handle of a file or folder that no other process has locked, None where its file system cannot lock it so."""
    handle = os.open(path, flags, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        return handle
    except OSError:
        os.close(handle)
        return None


@contextlib.contextmanager
def alone_in(folder, purpose=None):
    """Of several processes with the same folder and purpose, one at a time in here. On a file system without locks, several.

    Locked is the folder itself; for a purpose, and on NFS, which locks only what is open for writing, a file in it that stays."""
    make_folder(Path(folder))
    handle = None if purpose else locked(folder, os.O_RDONLY)
    if handle is None:
        with contextlib.suppress(OSError):  # a folder that cannot be written
            handle = locked(Path(folder) / f".{purpose or 'folder'}.lock", os.O_RDWR | os.O_CREAT)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def clear_leftovers(*folders, now=None):
    """Remove the temporary files and claims that dead processes have left in these folders."""
    for folder in filter(Path.is_dir, map(Path, folders)):
        for path in folder.iterdir():
            name = re.fullmatch(rf".*?\.({TOKEN})(\.\d+\.tmp|\.claim)", path.name)
            if name and not is_alive(name[1], path, now):
                path.unlink(missing_ok=True)
