"""Command-line flags that several stages share, checks of their ranges, and the released flags that mean nothing here."""
import argparse
import dataclasses
import os
import sys

from sre2l.datasets import DATASETS, STEMS
from sre2l.distributed import fail
from sre2l.runtime import UserError

# Flags of the released scripts that users paste and that have no effect here: (number of values, what happens instead).
DEAD = {
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
    "validate": {
        "--start-epoch": (1, "a run continues from its own checkpoint"),
        "--cos": (0, "the schedule is always cosine"),
        "--keep-topk": (1, "all logits are used, as in the released code"),
        "--wandb-project": (1, "metrics.jsonl holds the curves"),
        "--wandb-api-key": (1, "metrics.jsonl holds the curves"),
    },
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence. doc: the script's docstring, whose first line describes it."""

    def __init__(self, doc):
        super().__init__(description=doc.splitlines()[0], allow_abbrev=False)

    def error(self, message):
        fail(f"error: {message} (--help lists the flags)", 2)


class Ignored(argparse.Action):
    """Accept a flag that has no effect, with a one-line warning."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(f"warning: {option_string} has no effect: {self.metavar}", file=sys.stderr)


def add_dead_flags(parser, stage):
    for flag, (num_values, reason) in DEAD[stage].items():
        parser.add_argument(flag, nargs=num_values, action=Ignored, metavar=reason, dest=argparse.SUPPRESS, help=argparse.SUPPRESS)


def number(kind, low=None, high=None, above=None):
    """An argparse type: an int or float in low..high, or greater than `above`; the error says the range."""
    limits = [f"at least {low}" * (low is not None), f"at most {high}" * (high is not None), f"above {above}" * (above is not None)]
    wanted = f"{kind.__name__} {' and '.join(filter(None, limits))}".strip()

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number ({wanted})") from None
        inside = (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)
        if not inside or value in (float("inf"), float("-inf")):
            raise argparse.ArgumentTypeError(f"{text} is out of range: {wanted}")
        return value
    return parse


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


class Once(argparse.Action):
    """A flag that may not be given twice with two values: the launcher's data set brings its table of settings along."""

    def __call__(self, parser, namespace, value, option_string=None):
        earlier, self.given = getattr(self, "given", value), value
        if earlier != value:
            parser.error(f"{option_string} {value} after {option_string} {earlier}; "
                         f"name the data set as the launcher's first word: sh {parser.prog.removesuffix('.py').rsplit('.')[-1]}.sh {value}")
        setattr(namespace, self.dest, value)


def three_numbers(text):
    """'0.5,0.5,0.5' -> (0.5, 0.5, 0.5), each above 0 and at most 1."""
    values = tuple(number(float, above=0, high=1)(part) for part in text.split(","))
    if len(values) != 3:
        raise argparse.ArgumentTypeError(f"{text!r}: three numbers, one a channel")
    return values


def add_run_flags(parser):
    """Which data set and which run folder: the flags that every script has, under the same names."""
    add = parser.add_argument
    add("--dataset", action=Once, default="imagenet1k", choices=DATASETS, help="row of sre2l/datasets.py")
    add("--name", help="run folder runs/<name> where the stages meet (default: the data set)")
    add("--dry-run", action="store_true", help="print the settings and what would be written, then stop")


def add_stage_flags(parser):
    """What every stage can take over from the data set's row, and where it runs."""
    add = parser.add_argument
    add("--num-classes", type=number(int, 2), help="outputs of the networks (default: the data set's)")
    add("--input-size", type=number(int, 8), metavar="S", help="side of the networks' input, pixels (default: the teacher's or the data set's)")
    add("--mean", type=three_numbers, metavar="R,G,B", help="normalisation, pixels in 0..1 (default: the teacher's or the data set's)")
    add("--std", type=three_numbers, metavar="R,G,B", help="the same, divisor")
    add("--overwrite", action="store_true", help="start afresh: delete, after saying it, what an earlier run left in the output folder")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--deterministic", action="store_true", help="the same bits in every run (on a CPU: with the same number of threads), at a cost: README.md")
    add("--gpu", dest="device", metavar="N", type=lambda index: f"cuda:{index}", help="the same as --device cuda:N")


def add_tensorboard_flag(parser):
    parser.add_argument("--tensorboard", action="store_true", help="write the metrics as TensorBoard's event files as well (needs the package tensorboard)")


def add_teacher_flags(parser):
    """The flags that say which teacher, the same in recover and relabel."""
    add = parser.add_argument
    add("-a", "--arch", "--arch-name", help="torchvision name of the teacher (default: the checkpoint's, else resnet18)")
    add("--teacher", "--arch-path", type=os.path.abspath, metavar="FILE",
        help="the teacher's checkpoint (default: torchvision's weights for imagenet1k, else runs/<name>/teacher/teacher.pth)")
    add("--stem", choices=STEMS, help="first layers of a teacher whose checkpoint does not say")
    add("--classes", type=number_list, metavar="0-9,17", help="only these of the teacher's classes")
    add_val_flag(parser)


def add_val_flag(parser):
    parser.add_argument("--val-dir", "--real-data", type=os.path.abspath, metavar="DIR",
                        help="real validation images, or the folder that holds val/: measures top-1 (digits: built in)")


def check_folders(*paths):
    """Raise UserError for a folder that the user typed and that is not there, before anything is loaded. None = not typed."""
    for path in paths:
        if path is not None and os.path.isfile(path):
            raise UserError(f"{path}: is a file; give a folder, that of an unpacked archive for instance")
        if path is not None and not os.path.isdir(path):
            raise UserError(f"{path}: there is no such folder")


def refuse_useless(args, names, instead):
    """Raise UserError for the first of these flags that is given where it would do nothing. names: as in args; instead: what is done, a sentence's start."""
    given = [name for name in names if getattr(args, name)]
    if given:
        raise UserError(f"{instead}: --{given[0].replace('_', '-')} would do nothing; leave it away")


def data_spec(args):
    """The data set's row, with what the user says instead."""
    return override(DATASETS[args.dataset], args, num_classes=args.num_classes or DATASETS[args.dataset].num_classes)


def override(spec, args, **facts):
    """A row with facts of a checkpoint or manifest, over which the user's --input-size, --mean and --std win."""
    spec = dataclasses.replace(spec, **facts)
    return dataclasses.replace(spec, size=args.input_size or spec.size, mean=args.mean or spec.mean, std=args.std or spec.std)
