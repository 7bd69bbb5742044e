"""Flags about data that several stages share: which data set, which run folder, which teacher; and the data set's row that they give."""
import argparse
import dataclasses
import os

from sre2l.data.datasets import DATASETS, STEMS
from sre2l.run.flags import number, number_list


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
    add("--dataset", action=Once, default="imagenet1k", choices=DATASETS, help="row of sre2l/data/datasets.py")
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


def data_spec(args):
    """The data set's row, with what the user says instead."""
    return override(DATASETS[args.dataset], args, num_classes=args.num_classes or DATASETS[args.dataset].num_classes)


def override(spec, args, **facts):
    """A row with facts of a checkpoint or manifest, over which the user's --input-size, --mean and --std win."""
    spec = dataclasses.replace(spec, **facts)
    return dataclasses.replace(spec, size=args.input_size or spec.size, mean=args.mean or spec.mean, std=args.std or spec.std)
