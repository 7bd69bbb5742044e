"""Where this project lies, and where a run lies in it."""
import shlex
from pathlib import Path

from sre2l.run.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def run_folder(args):
    """runs/<name>, the name defaulting to the data set; an absolute --name is a folder of its own."""
    return ROOT / "runs" / (args.name or args.dataset)


def launcher_command(args, launcher, *flags):
    """How the user would start a launcher, such as squeeze/squeeze.sh, for this run: with its data set, the
    recipe if it has one (args.word), and its --name."""
    word = getattr(args, "word", args.dataset)
    name = [] if args.name in (None, word) else ["--name", args.name]
    return shlex.join(["sh", launcher, word, *name, *flags])


def in_name(arch):
    """A network's name as a part of a file's name: of PATH/nets.py:Net nets-Net."""
    place, colon, function = arch.rpartition(":")
    return f"{Path(place).name.removesuffix('.py')}-{function}" if colon else arch


def student_name(model):
    """The folder of a student in a run: student_resnet18."""
    return f"student_{in_name(model)}"


def teacher_names(archs):
    """The folders in a run of the teachers that squeeze trains by one command: teacher, teacher_convnet3.

    Raises UserError for a network that is named twice: it would be one teacher that counts twice."""
    for arch in archs:
        if archs.count(arch) > 1:
            raise UserError(f"--arch names {arch} twice; name each network once, or its files with --teacher")
    return ["teacher", *(f"teacher_{in_name(arch)}" for arch in archs[1:])]
