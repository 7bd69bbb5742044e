"""Archives of what jobs made, each under a limit of size: results, and what jobs that are to run need."""
import gzip
import tarfile

from report.jobs import RUNS, STATE, files_under
from sre2l.run.files import make_folder
from sre2l.run.paths import ROOT

MIB = 2 ** 20
HEAVY = (".pth", ".tar", ".state")  # networks, label files, images under way: only for jobs that need them
ENTRY_BYTES = 2048     # of a file in an archive beside its contents, at most
END_BYTES = 20_480     # of an archive's end


def choose_files(jobs):
    """Which files of runs/ are packed -> {path: bytes}, results first, then what is needed, small before
    large: where not all of it can be carried, the last parts are worth least.

    Of the runs of all jobs whatever is light: results, settings, metrics, logs, images and hashes."""
    needed = {}
    for job in jobs:
        for beginning in () if job.is_done else job.uses:
            needed |= files_under(RUNS, beginning)
    runs = sorted({beginning.partition("/")[0] for job in jobs for beginning in job.uses})
    parts = [files_under(RUNS, f"{STATE.name}/"), *(files_under(RUNS, f"{run}/") for run in runs)]
    light = {path: size for part in parts for path, size in sorted(part.items()) if path.suffix not in HEAVY}
    heavy = {path: size for path, size in needed.items() if path.suffix in HEAVY}
    return light | dict(sorted(heavy.items(), key=lambda item: (item[1], item[0])))


def split(path, limit):
    """Cut an archive that is over the limit into pieces, PATH.00 and so on -> the pieces."""
    if path.stat().st_size <= limit:
        return [path]
    pieces = []
    with path.open("rb") as file:
        while data := file.read(limit):
            pieces.append(path.with_name(f"{path.name}.{len(pieces):02d}"))
            pieces[-1].write_bytes(data)
    path.unlink()
    return pieces


class Archives:
    """Writes queue_000.tar.gz and so on into a folder, each at most `limit` bytes. A larger file has an
    archive of its own, in pieces. `cat queue_* | tar xzi` in the project's root unpacks them all."""

    def __init__(self, folder, limit):
        self.folder = folder
        self.limit = limit
        self.done = []
        self.raw = None
        self.count = 0

    def size(self):
        """Bytes written so far, with all that was given to the archive under way."""
        if self.raw is None:
            return 0
        self.gz.flush()
        return self.raw.tell()

    def add(self, path, size):
        if self.raw is not None and self.size() + size + ENTRY_BYTES + END_BYTES > self.limit:
            self.close()
        if self.raw is None:
            self.path = self.folder / f"queue_{self.count:03d}.tar.gz"
            self.count += 1
            self.raw = self.path.open("wb")
            self.gz = gzip.GzipFile("", "wb", 6, self.raw, mtime=0)
            self.tar = tarfile.open(fileobj=self.gz, mode="w", format=tarfile.GNU_FORMAT)
        self.tar.add(path, path.relative_to(ROOT).as_posix(), recursive=False)

    def close(self):
        if self.raw is not None:
            for file in (self.tar, self.gz, self.raw):
                file.close()
            self.done += split(self.path, self.limit)
            self.raw = None

    def total(self):
        return sum(path.stat().st_size for path in self.done) + self.size()


def pack(jobs, folder, limit, total=None):
    """Pack the runs of these jobs and the queue's state. limit, total: MiB of an archive, of all archives."""
    make_folder(folder.absolute())
    for path in folder.glob("queue_*"):
        path.unlink()
    archives = Archives(folder, int(limit * MIB))
    left_out = []
    files = choose_files(jobs)
    for path, size in files.items():
        if total is not None and archives.total() + size + ENTRY_BYTES + END_BYTES > total * MIB:
            left_out.append(path)
        else:
            archives.add(path, size)
    archives.close()
    print(f"{len(files) - len(left_out)} files in {len(archives.done)} archives, "
          f"{archives.total() / 1e6:.1f} MB -> {folder}; in the project's root of another machine: "
          f"cat {folder}/queue_* | tar xzi")
    for path in left_out:
        print(f"over --total, left out: {path.relative_to(ROOT)} ({files[path] / 1e6:.1f} MB)")
