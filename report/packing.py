"""What jobs made, and what jobs that are to run need, as one archive in pieces of a limited size."""
import contextlib
import subprocess
import tarfile

from report.jobs import RUNS, STATE, files_under
from sre2l.run.errors import UserError
from sre2l.run.files import make_folder
from sre2l.run.paths import ROOT

MIB = 2 ** 20
UNPACK = "tar xz --keep-newer-files"  # a state or results that went on meanwhile stay
PIECES = "queue_[a-z][a-z][a-z]"
HEAVY = (".pth", ".tar", ".labels", ".state")  # networks, labels, images under way: for jobs that need them


def choose_files(jobs, every):
    """Which files of runs/ are packed -> {path: bytes}, results first, then what is needed, small before
    large: where not all of it can be carried, the last parts are worth least.

    Of the runs of all jobs whatever is light: results, settings, metrics, logs, images and hashes. every:
    {name: job} of the whole list, of which the states of these jobs and of those before them are taken."""
    needed = {}
    for job in jobs:
        for beginning in () if job.is_done else job.uses:
            needed |= files_under(RUNS, beginning)
    states = {}
    names = [job.name for job in jobs]
    for name in names:  # which grows by the jobs that each comes after
        names += [earlier for earlier in every[name].after if earlier not in names]
        for kind in ("json", "log") if every[name].state() else ():
            states |= files_under(STATE, every[name].path(kind).name)
    runs = sorted({beginning.partition("/")[0] for job in jobs for beginning in job.uses})
    parts = [states, *(files_under(RUNS, f"{name}/") for name in runs)]
    light = {path: size for part in parts for path, size in sorted(part.items()) if path.suffix not in HEAVY}
    heavy = {path: size for path, size in needed.items() if path.suffix in HEAVY}
    return light | dict(sorted(heavy.items(), key=lambda item: (item[1], item[0])))


def pack(jobs, every, folder, limit, total=None):
    """Pack the runs of these jobs and their state. every: as in `choose_files`; limit, total: MiB of a piece,
    of all pieces. Earlier pieces in the folder go when the new ones are whole."""
    make_folder(folder.absolute())
    for path in folder.glob(f"new_{PIECES}"):  # of a call that was killed
        path.unlink()
    files = choose_files(jobs, every)
    room = float("inf") if total is None else total * MIB
    left_out = []
    # What lies before a piece that is lost can still be unpacked.
    command = ["split", "-a", "3", "-b", str(int(limit * MIB)), "-", str(folder / "new_queue_")]
    with contextlib.suppress(BrokenPipeError), \
            subprocess.Popen(command, stdin=subprocess.PIPE) as split, \
            tarfile.open(fileobj=split.stdin, mode="w|gz", bufsize=MIB, format=tarfile.GNU_FORMAT,
                         dereference=True) as tar:  # where a link leads need not be there on the other side
        for path, size in files.items():
            most = size + size // 1000 + 2048  # with its header, and where it does not compress
            if most > room:
                left_out.append(path)
                continue
            room -= most
            tar.add(path, path.relative_to(ROOT).as_posix(), recursive=False)
    pieces = sorted(folder.glob(f"new_{PIECES}"))
    if split.returncode:
        for path in pieces:
            path.unlink()
        raise UserError(f"{folder}: not all pieces could be written, see above; is there room?")
    sizes = [path.stat().st_size for path in pieces]
    for path in folder.glob(PIECES):
        path.unlink()
    for path in pieces:
        path.rename(folder / path.name.removeprefix("new_"))
    print(f"{len(files) - len(left_out)} files in {len(sizes)} pieces, {sum(sizes) / 1e6:.1f} MB -> {folder}")
    print(f"in the project's root of another machine: cat {folder}/queue_??? | {UNPACK}")
    for path in left_out:
        print(f"over --total, left out: {path.relative_to(ROOT)} ({files[path] / 1e6:.1f} MB)")
