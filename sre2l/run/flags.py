"""Command-line flags: types with ranges, checks, and the released flags that mean nothing here."""
import argparse
import os
import sys

from sre2l.run.errors import UserError

# Flags of the released scripts that users paste and that have no effect here: (number of values, what happens
# instead).
DEAD = {
    "pick": {},
    "recover": {
        "--store-best-images": (0, "the last iterate is always stored"),
        "--store-last-images": (0, "the last iterate is always stored"),
    },
    "relabel": {
        "--mode": (1, "relabel always saves"),
        "--multiprocessing-distributed": (0, "GPUS=4 sh relabel.sh starts four processes"),
        "--world-size": (1, "GPUS says how many processes, TORCHRUN how many machines"),
        "--rank": (1, "torchrun numbers the processes"),
        "--dist-url": (1, "TORCHRUN says where the machines meet"),
        "--dist-backend": (1, "NCCL between GPUs, gloo between CPUs"),
    },
    "squeeze": {
        "--save-every-sec": (1, "an epoch ends with a checkpoint, at most one every 30 seconds"),
    },
    "validate": {
        "--save-every-sec": (1, "an epoch ends with a checkpoint, at most one every 30 seconds"),
        "--start-epoch": (1, "a run continues from its own checkpoint"),
        "--cos": (0, "a cosine is the default, --lr-schedule names others"),
        "--keep-topk": (1, "all logits are used, as in the released code"),
        "--wandb-project": (1, "metrics.jsonl holds the curves"),
        "--wandb-api-key": (1, "metrics.jsonl holds the curves"),
    },
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence. The first line of `doc` describes the script."""

    def __init__(self, doc):
        self.flags = {}  # {'--lr': argparse's nargs, 0 where no value follows}
        self.stage = ""  # whose flags they are, where an error has to say it
        super().__init__(description=doc.splitlines()[0], allow_abbrev=False)

    def add_argument(self, *names, **options):
        action = super().add_argument(*names, **options)
        self.flags |= dict.fromkeys(action.option_strings, action.nargs)
        return action

    def error(self, message):
        self.exit(2, f"error: {self.stage}{message} (--help lists the flags)\n")


class Ignored(argparse.Action):
    """Accept a flag that has no effect, with a one-line warning."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(f"warning: {option_string} has no effect: {self.metavar}", file=sys.stderr)


def add_dead_flags(parser, stage):
    for flag, (num_values, reason) in DEAD[stage].items():
        hidden = {"dest": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        parser.add_argument(flag, nargs=num_values, action=Ignored, metavar=reason, **hidden)


def number(kind, low=None, high=None, above=None):
    """An argparse type: an int or float in low..high, or greater than `above`; the error says the range."""
    limits = {"at least": low, "at most": high, "above": above}
    words = [f"{word} {limit}" for word, limit in limits.items() if limit is not None]
    wanted = f"{kind.__name__} {' and '.join(words)}".strip()

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number ({wanted})") from None
        is_below = (low is not None and value < low) or (above is not None and value <= above)
        is_above = (high is not None and value > high) or value in (float("inf"), float("-inf"))
        if is_below or is_above or value != value:
            raise argparse.ArgumentTypeError(f"{text} is out of range: {wanted}")
        return value
    return parse


def numbers(text):
    """An argparse type: '1,0.5' -> [1.0, 0.5], each above 0."""
    return [number(float, above=0)(part) for part in text.split(",")]


def number_list(text):
    """'0-9,17' -> [0, ..., 9, 17], ascending, without repeats."""
    values = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        try:
            values.update(range(int(first), int(last or first) + 1))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: write it like 0-9,17") from None
    if not values:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return sorted(values)


def network_name(text):
    """An argparse type: the name of a network. The path in PATH.py:function becomes absolute."""
    path, _, function = text.rpartition(":")
    return f"{os.path.abspath(path)}:{function}" if path.endswith(".py") else text


def network_names(text):
    """An argparse type: the names of one or more networks, between commas."""
    return ",".join(network_name(name) for name in text.split(","))


def split_files(text):
    """The files that --teacher names, between commas; a file may have commas in its own name."""
    return [text] if os.path.exists(text) else text.split(",")


def checkpoint_files(text):
    """An argparse type: one or more checkpoints, between commas. Their paths become absolute."""
    return ",".join(map(os.path.abspath, split_files(text)))


def check_folders(*paths):
    """Raise UserError, before anything is loaded, for a folder that the user typed and that is not there."""
    for path in paths:
        if path is not None and os.path.isfile(path):
            raise UserError(f"{path}: is a file; give a folder, that of an unpacked archive for instance")
        if path is not None and not os.path.isdir(path):
            raise UserError(f"{path}: there is no such folder")


def existing_folder(path):
    """An argparse type: the absolute path of a folder that has to be there."""
    check_folders(path)
    return os.path.abspath(path)


def refuse_useless(args, names, instead):
    """Raise UserError for the first of these flags that is given where it would do nothing. names: as in
    args; instead: what is done, a sentence's start."""
    given = [name for name in names if getattr(args, name)]
    if given:
        raise UserError(f"{instead}: --{given[0].replace('_', '-')} would do nothing; leave it away")
