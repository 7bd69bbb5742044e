"""The whole method on one data set: teacher, images, labels, student, a check, two controls, a summary.

Run: sh run.sh digits      (each stage by its own launcher; the same command again continues)
Result: runs/<name>/ with all that the stages leave, summary.json and report.html.
"""
import json
import shlex
import signal
import subprocess
import sys

from recover import recover
from relabel import check, relabel
from report import summary
from report.estimate import estimate
from squeeze import squeeze
from sre2l.data.datasets import DATASETS
from sre2l.data.flags import override
from sre2l.data.own import row_to_squeeze
from sre2l.run.device import pick_device
from sre2l.run.errors import UserError
from sre2l.run.flags import Parser
from sre2l.run.paths import ROOT
from sre2l.run.start import run_script
from validate import random_real, train

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A flag of one of these names means something else in each stage that has it.
AMBIGUOUS = ("--epochs", "--lr", "--batch-size", "-b", "--seed", "--precision", "--momentum",
             "--weight-decay", "--warmup-epochs")
STAGES = {"squeeze": squeeze, "recover": recover, "relabel": relabel, "check": check, "validate": train,
          "random_real": random_real, "summary": summary}
# Each step: its name, the stage whose flags it takes, its launcher or module, and flags of its own.
STEPS = (
    ("squeeze", "squeeze", "squeeze/squeeze.sh", ()),
    ("recover", "recover", "recover/recover.sh", ()),
    ("relabel", "relabel", "relabel/relabel.sh", ()),
    ("check", "check", "relabel/check.sh", ()),
    ("validate", "validate", "validate/train.sh", ()),
    ("hard labels", "validate", "validate/train.sh", ("--hard-labels",)),
    ("random real images", "random_real", "validate/random_real.sh", ()),
    ("summary", "summary", "report.summary", ()),
)


def split_flags(words):
    """The user's flags -> {stage: [flag, value, ...]}.

    A flag goes to every stage that has it; '--recover.lr 0.1' goes to recover alone, as --lr. Raises
    UserError for one that no stage has, and for one that means different things in two stages."""
    parsers = {stage: module.make_parser() for stage, module in STAGES.items()}
    flags = {stage: [] for stage in parsers}
    words = list(words)
    while words:
        word, equals, value = words.pop(0).partition("=")
        stage, dot, rest = word.removeprefix("--").partition(".")
        flag = f"--{rest}" if dot else word
        takers = [name for name, parser in parsers.items() if flag in parser.flags]
        if dot:
            takers = [name for name in takers if name == stage]
        if not takers:
            raise UserError(f"{word}: no stage has this flag; sh recover/recover.sh --help lists recover's")
        if len(takers) > 1 and flag in AMBIGUOUS:
            choices = ", ".join(f"--{name}.{flag.lstrip('-')}" for name in takers)
            raise UserError(f"{flag} means something else in each stage; say which: {choices}")

        takes_value = parsers[takers[0]].flags[flag]
        if takes_value and not equals:
            if not words:
                raise UserError(f"{word}: its value is missing")
            value = words.pop(0)
        for name in takers:
            flags[name] += [flag, value] if takes_value else [flag]
    for name, parser in parsers.items():
        parser.parse_args(flags[name])  # a mistake in any stage's flags ends the chain before its first stage
    return flags


def make_commands(dataset, flags):
    """The command of every step -> {name: words}. flags: of split_flags."""
    found = {}
    for name, stage, program, own in STEPS:
        start = ["sh", str(ROOT / program), dataset]
        if not program.endswith(".sh"):
            start = [sys.executable, "-m", program, "--dataset", dataset]
        found[name] = [*start, *own, *flags[stage]]
    return found


def run_step(command):
    """Run a command to its end -> its exit code. A signal to this process goes on to the command, which ends
    as a stage does: after the step under way."""
    process = subprocess.Popen(command)
    earlier = {number: signal.signal(number, lambda sent, _: process.send_signal(sent)) for number in SIGNALS}
    code = process.wait()
    for number, handler in earlier.items():
        signal.signal(number, handler)
    return 128 - code if code < 0 else code


def as_text(command):
    """A command as the user would type it in the project's folder."""
    return shlex.join(word.removeprefix(f"{ROOT}/") for word in command)


def print_plan(steps, dataset, flags):
    """--dry-run: what each stage would write, by its own --dry-run, how long it would take here, the sums."""
    plans = {}
    for name in ("squeeze", "recover", "relabel", "validate"):
        stage = subprocess.run(steps[name], capture_output=True, text=True, check=False)
        if stage.returncode:
            raise UserError(f"{name}: {stage.stderr.strip().removeprefix('error: ')}")
        plans[name] = json.loads(stage.stdout)
    args = squeeze.get_args(["--dataset", dataset, *flags["squeeze"]])
    spec = override(row_to_squeeze(args), args)
    found = estimate(plans, spec, args.real_data, pick_device(args.device))

    print(f"{'step':<20} {'minutes':>9} {'MB':>11}   command")
    for name, (seconds, num_bytes) in found.items():
        minutes = "?" if seconds is None else f"{seconds / 60:.1f}"
        print(f"{name:<20} {minutes:>9} {num_bytes / 1e6:>11,.1f}   {as_text(steps[name])}")
    known = [seconds for seconds, _ in found.values() if seconds is not None]
    total = sum(num_bytes for _, num_bytes in found.values())
    print(f"{'sum':<20} {sum(known) / 60:>9.1f} {total / 1e6:>11,.1f}")
    if len(known) < len(found):
        print("?: without the real images, --real-data DIR, nobody can tell")


def main(args):
    flags = split_flags(args.words)
    steps = make_commands(args.dataset, flags)
    if "--dry-run" in args.words:
        return print_plan(steps, args.dataset, flags)
    for name, command in steps.items():
        print(f"\n== {name}: {as_text(command)}", flush=True)
        code = run_step(command)
        if code:
            again = shlex.join(["sh", "run.sh", args.dataset, *args.words])
            print(f"{name} ended with exit code {code}, see above; go on from there with: {again}",
                  file=sys.stderr)
            sys.exit(code)


def get_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--dataset", required=True, metavar="NAME",
                        help=f"{', '.join(DATASETS)}, or a name of your own with --real-data DIR")
    args, args.words = parser.parse_known_args(argv)
    return args


if __name__ == "__main__":
    run_script(main, get_args)
