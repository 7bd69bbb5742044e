"""The flags that several stages share, and the data set's row as they change it."""
import argparse
import dataclasses

from sre2l.data.datasets import DATASETS, STEMS
from sre2l.data.own import check_dataset_name, facts_path, read_facts
from sre2l.run.errors import UserError, first_line
from sre2l.run.flags import (
    add_dead_flags,
    checkpoint_files,
    existing_folder,
    network_names,
    number,
    number_list,
)
from sre2l.run.paths import ROOT, launcher_command, run_folder


class Once(argparse.Action):
    """A flag that may not be given twice with two values: the launcher's data set brings its own settings.

    NAME+RECIPE is the data set NAME in a run folder of its own, which --name may call otherwise. args.word
    then has both."""

    def __call__(self, parser, namespace, value, option_string=None):
        earlier = getattr(self, "given", value)
        self.given = value
        if earlier != value:
            launcher = f"{parser.prog.removesuffix('.py').rsplit('.')[-1]}.sh"
            parser.error(f"{option_string} {value} after {option_string} {earlier}; "
                         f"name the data set as the launcher's first word: sh {launcher} {value}")
        name, plus, _ = value.partition("+")
        setattr(namespace, self.dest, name)
        if not plus:
            return
        namespace.word = value
        if getattr(namespace, "name", None) is None:
            namespace.name = value


class NeedsTensorboard(argparse.Action):
    """A flag without a value. Raises UserError where tensorboard is not installed."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            import torch.utils.tensorboard  # noqa: F401  not above: an extra, and it takes a second
        except ImportError as error:
            raise UserError(f"{option_string}: {first_line(error)}; 'python3 -m pip install tensorboard', "
                            f"or run without the flag: metrics.jsonl has the same numbers") from None
        setattr(namespace, self.dest, True)


def three_numbers(text):
    """'0.5,0.5,0.5' -> (0.5, 0.5, 0.5), each above 0 and at most 1."""
    values = tuple(number(float, above=0, high=1)(part) for part in text.split(","))
    if len(values) != 3:
        raise argparse.ArgumentTypeError(f"{text!r}: three numbers, one a channel")
    return values


def add_run_flags(parser):
    """Which data set and which run folder: the flags that every script has, under the same names."""
    add = parser.add_argument
    add("--dataset", action=Once, default="imagenet1k", metavar="NAME",
        help=f"{', '.join(DATASETS)}, or a name of your own (docs/own-data.md)")
    add("--name", help="run folder runs/<name> where the stages meet (default: the data set)")
    add("--dry-run", action="store_true", help="print the settings and what would be written, then stop")


def add_stage_flags(parser, stage, teacher=False, tensorboard=False, val=False):
    """The flags that the four stages share: data set, run folder, where a stage runs.

    stage: whose released flags are accepted without an effect. teacher: add those that say which teacher, and
    what measures it; tensorboard: --tensorboard; val: the real validation images."""
    add_run_flags(parser)
    add_dead_flags(parser, stage)
    add = parser.add_argument

    # What a stage can take over from the data set's row.
    add("--num-classes", type=number(int, 2), help="outputs of the networks (default: the data set's)")
    add("--input-size", type=number(int, 8), metavar="S",
        help="side of the networks' input, pixels (default: the teacher's or the data set's)")
    add("--mean", type=three_numbers, metavar="R,G,B",
        help="normalisation, pixels in 0..1 (default: the teacher's or the data set's)")
    add("--std", type=three_numbers, metavar="R,G,B", help="the same, divisor")
    network = "of a teacher whose checkpoint does not say"
    if not teacher:
        network = "(default: the data set's, where the network can have them)"
    add("--stem", choices=STEMS, help=f"first layers {network}")

    # Where it runs. --gpu is the spelling of the released scripts.
    add("--overwrite", action="store_true",
        help="start afresh: delete, after saying it, what an earlier run left in the output folder")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--deterministic", action="store_true",
        help="the same bits in every run (on a CPU: with the same number of threads), at a cost: "
             "docs/robustness.md")
    add("--gpu", dest="device", metavar="N", type="cuda:{}".format, help="the same as --device cuda:N")

    if teacher:
        add("-a", "--arch", "--arch-name", type=network_names, metavar="ARCH[,ARCH]",
            help="the teacher's network (docs/networks.md; default: the checkpoint's, else resnet18); of "
                 "several teachers one for each")
        add("--teacher", "--arch-path", type=checkpoint_files, metavar="FILE[,FILE]",
            help="the teacher's checkpoint (default: torchvision's weights for imagenet1k, else "
                 "runs/<name>/teacher/teacher.pth); several between commas")
        add("--classes", type=number_list, metavar="0-9,17", help="only these of the teacher's classes")
        add("--allow-chance", action="store_true", help="go on with a teacher whose measured top-1 is chance")
    if tensorboard:
        add("--tensorboard", action=NeedsTensorboard, nargs=0, default=False,
            help="write the metrics as TensorBoard's event files as well (needs the package tensorboard)")
    if val or teacher or stage == "squeeze":
        add("--class-order", choices=("text", "numeric"),
            help="order of the class folders where only the folders know it (squeeze: text)")
    if val or teacher:
        add("--val-dir", "--real-data", type=existing_folder, metavar="DIR",
            help="real validation images, or the folder that holds val/: measures top-1 (digits: built in)")


def find_row(args):
    """The data set: what squeeze has recorded in the run folder, or a row of datasets.py. Raises UserError
    where neither knows it."""
    row = read_facts(run_folder(args), args.dataset) or DATASETS.get(args.dataset)
    if row is None:
        check_dataset_name(args.dataset)
        elsewhere = ""
        if args.name and facts_path(ROOT / "runs" / args.dataset).exists():
            elsewhere = (f" runs/{args.dataset} knows it: leave --name away for that run, where another "
                         f"student takes --output-dir")
        real_data = ("--real-data", "DIR")
        begin = launcher_command(args, "squeeze/squeeze.sh", *real_data)
        if getattr(args, "teacher", None):  # of another run: what is missing here is the data set alone
            network = ("--teacher", args.teacher, "--arch", args.arch or "ARCH")
            begin = launcher_command(args, "run.sh", *real_data, *network)
        raise UserError(f"--dataset {args.dataset}: is none of {', '.join(DATASETS)}, and "
                        f"{facts_path(run_folder(args))} is not there; begin with: {begin}.{elsewhere}")
    return row


def chosen_classes(args, spec):
    """--classes, by default all of the data set -> a list. Raises UserError for one that is none of it."""
    classes = args.classes or list(range(spec.num_classes))
    if classes[-1] >= spec.num_classes:
        raise UserError(f"--classes: class {classes[-1]} is out of range, {args.dataset} has "
                        f"{spec.num_classes} (0-{spec.num_classes - 1})")
    return classes


def data_spec(args, row=None):
    """The data set's row, with what the user says instead. row: if it is known already."""
    row = row or find_row(args)
    if row.class_names and args.num_classes not in (None, row.num_classes):
        raise UserError(f"--num-classes {args.num_classes}: {row.name} has {row.num_classes} classes, a "
                        f"folder for each; leave it away")
    return override(row, args, num_classes=args.num_classes or row.num_classes)


def override(spec, args, **facts):
    """A row with a checkpoint's or manifest's facts, over which --input-size, --mean and --std win."""
    spec = dataclasses.replace(spec, **facts)
    mean = args.mean or spec.mean
    std = args.std or spec.std
    return dataclasses.replace(spec, size=args.input_size or spec.size, mean=mean, std=std)
