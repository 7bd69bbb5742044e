"""The ways in which stress/damage.py damages a run folder. `name` is a path in it."""
import shutil

PLACES = 16  # at which each kind of file is cut off


def cut(run, name, place):
    """Cut a file off at place/PLACES of its length; for the last place, by its last byte."""
    data = (run / name).read_bytes()
    kept = len(data) - 1 if place == PLACES - 1 else len(data) * place // PLACES
    (run / name).write_bytes(data[:kept])


def delete(run, name):
    if (run / name).is_dir():
        shutil.rmtree(run / name)
    else:
        (run / name).unlink()


def replace(run, name, source):
    shutil.copy(source, run / name)


def duplicate(run, name, target):
    copy = shutil.copytree if (run / name).is_dir() else shutil.copy
    copy(run / name, run / target)


def rename(run, name, target):
    (run / name).replace(run / target)


def exchange(run, name, other):
    between = (run / name).with_name("between")
    (run / name).rename(between)
    (run / other).rename(run / name)
    between.rename(run / other)


def exchange_hashes(run, name):
    """The hashes of the first two lines of a hash file, each at the other's name."""
    first, second, *rest = (run / name).read_text(encoding="utf-8").splitlines(keepends=True)
    (run / name).write_text("".join((second[:64] + first[64:], first[:64] + second[64:], *rest)))


def repeat_lines(run, name):
    (run / name).write_text(2 * (run / name).read_text(encoding="utf-8"))


def add_file(run, name):
    (run / name).write_text("x", encoding="utf-8")


def add_folder(run, name):
    (run / name).mkdir()


def empty(run, name):
    for path in (run / name).iterdir():
        path.unlink()


def flipped(data, rng):
    """The same bytes with one bit changed."""
    data = bytearray(data)
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(data)
