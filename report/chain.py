"""The whole method on one data set: teacher, images, labels, student, a check, the controls, a summary.

Run: sh run.sh digits      (each stage by its own launcher; the same command again continues)
Result: runs/<name>/ with all that the stages leave, summary.json and report.html.
"""
import difflib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from recover import pick, recover
from recover.picks import check_enough
from relabel import check, relabel
from report import summary
from report.estimate import estimate
from squeeze import squeeze
from sre2l.data.codecs import is_sparse
from sre2l.data.datasets import DATASETS
from sre2l.data.flags import Once, override
from sre2l.data.own import facts_path, read_facts, record_facts, row_to_squeeze, write_facts
from sre2l.data.real_images import find_split
from sre2l.data.torchvision_sets import TORCHVISION
from sre2l.nets.statistics import class_statistics_path
from sre2l.run.device import pick_device
from sre2l.run.errors import UserError
from sre2l.run.files import sidecar
from sre2l.run.flags import Parser
from sre2l.run.paths import ROOT, run_folder
from sre2l.run.start import run_script
from validate import random_real, train
from validate.checks import check_micro_batches

# Flags that would take a stage away from the folders in which the others look.
OF_THE_CHAIN = ("--output-dir", "--evaluate", "--hard-labels", "--data", "--fkd-path", "--train-dir",
                "--syn-data-path", "--exp-name", "--picked")
FOR_ALL = ("--name", "--dataset", "--dry-run")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A flag of one of these names means something else in each stage that has it.
AMBIGUOUS = ("--epochs", "--lr", "--batch-size", "-b", "--seed", "--precision", "--momentum",
             "--weight-decay", "--warmup-epochs", "--lr-schedule", "--teacher-weights")
STAGES = {"squeeze": squeeze, "pick": pick, "recover": recover, "relabel": relabel, "check": check,
          "validate": train, "random_real": random_real, "summary": summary}
PLANNED = ("squeeze", "pick", "recover", "relabel", "validate")  # whose --dry-run an estimate needs
# What images begin as, and which of the steps that not every chain has it brings.
STARTS = {"noise": ("recover",), "only-picked": ("pick",),
          "picked": ("pick", "recover", "picked real images")}
# Each step: its name, the stage whose flags it takes, its launcher or module, and flags of its own.
STEPS = (
    ("squeeze", "squeeze", "squeeze/squeeze.sh", ()),
    ("pick", "pick", "recover/pick.sh", ()),
    ("recover", "recover", "recover/recover.sh", ()),
    ("relabel", "relabel", "relabel/relabel.sh", ()),
    ("check", "check", "relabel/check.sh", ()),
    ("validate", "validate", "validate/train.sh", ()),
    ("hard labels", "validate", "validate/train.sh", ("--hard-labels",)),
    ("random real images", "random_real", "validate/random_real.sh", ()),
    ("picked real images", "random_real", "validate/random_real.sh", ("--picked",)),
    ("summary", "summary", "report.summary", ()),
)


def why_unknown(flag, name, parsers):
    """What is wrong with a flag that no stage has, or that the stage does not have which `name` names."""
    stage = name.removeprefix("--").partition(".")[0]
    if "." in name and stage not in parsers:
        return f"there is no stage '{stage}'; there are {', '.join(parsers)}"
    known = parsers[stage].flags if "." in name else {known for p in parsers.values() for known in p.flags}
    near = difflib.get_close_matches(flag, known, 1, 0.7)
    who = f"{stage} does not have" if "." in name else "no stage has"
    hint = f"did you mean {near[0]}?" if near else "--help of a stage lists its flags"
    return f"{who} the flag {flag}; {hint}"


def known_flag(word, parsers):
    """-> (the flag that a word is or begins with, the stages that have it, its value if the word has one)."""
    name, equals, value = word.partition("=")
    stage, dot, rest = name.removeprefix("--").partition(".")
    flag = f"--{rest}" if dot else name
    takers = [name for name, parser in parsers.items() if flag in parser.flags and (not dot or name == stage)]
    if not takers and not dot and word[:2] in AMBIGUOUS + ("-j", "-T"):  # -j4
        flag, equals, value = word[:2], "=", word[2:]
        takers = [name for name, parser in parsers.items() if flag in parser.flags]
    if not takers:
        raise UserError(f"{word}: {why_unknown(flag, name, parsers)}")
    if len(takers) > 1 and flag in AMBIGUOUS:
        long = "batch-size" if flag == "-b" else flag.removeprefix("--")
        choices = ", ".join(f"--{name}.{long}" for name in takers)
        raise UserError(f"{flag} means something else in each stage; say which: {choices}")
    if flag in OF_THE_CHAIN:
        raise UserError(f"{flag}: run.sh says this itself; run the stages one by one")
    if dot and flag in FOR_ALL:
        raise UserError(f"{word}: {flag} is for all stages together; leave the stage away")
    return flag, takers, value if equals else None


def split_flags(words):
    """The user's flags -> {stage: [flag, value, ...]}.

    A flag goes to every stage that has it; '--recover.lr 0.1' goes to recover alone, as --lr. Raises
    UserError for one that no stage has, and for one that means different things in two stages."""
    parsers = {stage: module.make_parser() for stage, module in STAGES.items()}
    flags = {stage: [] for stage in parsers}
    words = list(words)
    while words:
        word = words.pop(0)
        flag, takers, value = known_flag(word, parsers)
        wanted = parsers[takers[0]].flags[flag]  # argparse's nargs: 0 = none, '?' = perhaps one
        if wanted == 0 and value is not None:
            raise UserError(f"{word}: {flag} takes no value; give it or leave it away")
        is_next = words and not words[0].startswith("--")
        if wanted != 0 and value is None and is_next:
            value = words.pop(0)
        if wanted not in (0, "?") and value is None:
            raise UserError(f"{word}: its value is missing")
        for name in takers:
            flags[name] += [flag] if value is None else [flag, value]
    for name, parser in parsers.items():  # a mistake in a late stage's flags is said before the first one
        parser.stage = f"{name}: "
        parser.parse_args(flags[name])
    return flags


def steps_of(start, trains=True):
    """The steps of a chain whose images begin as noise, begin as picked real ones or stay these.

    start: a key of STARTS; trains: of trains_teacher."""
    absent = {name for names in STARTS.values() for name in names} - {*STARTS[start]}
    return [step for step in STEPS if step[0] not in absent and (trains or step[0] != "squeeze")]


def trains_teacher(args, flags):
    """Does a stage take a teacher that squeeze trains: none that the user names, or one of this run?"""
    taking = {"pick", "recover", "relabel"} & {name for name, *_ in steps_of(args.start)}
    for stage in taking:
        of_stage = STAGES[stage].get_args(["--dataset", args.word, *flags[stage]])
        run = run_folder(of_stage)
        files = of_stage.teacher.split(",") if of_stage.teacher else [run]
        if any(Path(file).is_relative_to(run) for file in files):
            return True
    return False


def make_commands(dataset, flags, start="noise", trains=True):
    """The command of every step -> {name: words}. flags: of split_flags; start, trains: of steps_of."""
    found = {}
    for name, stage, program, own in steps_of(start, trains):
        if (name, start) == ("pick", "only-picked"):  # these are the set, in whose folder relabel looks
            own = ("--exp-name", "images")
        words = ["sh", str(ROOT / program), dataset]
        if not program.endswith(".sh"):
            words = [sys.executable, "-m", program, "--dataset", dataset]
        found[name] = [*words, *own, *flags[stage]]
    return found


def run_step(command):
    """Run a command to its end -> its exit code. A signal to this process goes on to the command, which ends
    as a stage does: after the step under way. One that comes too late for the stage ends the chain."""
    process = subprocess.Popen(command)
    received = []

    def hand_on(number, _):
        received.append(number)
        process.send_signal(number)

    earlier = {number: signal.signal(number, hand_on) for number in SIGNALS}
    code = process.wait()
    for number, handler in earlier.items():
        signal.signal(number, handler)
    if code < 0:
        return 128 - code
    return code or (128 + received[0] if received else 0)


def as_text(command):
    """A command as the user would type it in the project's folder."""
    return shlex.join(word.removeprefix(f"{ROOT}/") for word in command)


def plan_stages(args, flags, row, of_squeeze):
    """What the stages plan, by their own --dry-run -> {stage: what it printed}.

    row: the data set's; of_squeeze: squeeze's arguments. Raises UserError for what one of them refuses."""
    planned = [name for name, *_ in steps_of(args.start, args.trains) if name in PLANNED]
    with tempfile.TemporaryDirectory() as folder:
        # The facts of a data set of one's own, which squeeze would record, stand in an empty run meanwhile.
        instead = {}
        if row.source and not facts_path(run_folder(of_squeeze)).exists():
            write_facts(folder, row)
            instead = {stage: [*words, "--name", folder] for stage, words in flags.items()}
        steps = make_commands(args.word, flags | instead, args.start, args.trains)
        alone = {**os.environ, "GPUS": "1"}

        def plan(name):
            return subprocess.run(steps[name], capture_output=True, text=True, check=False, env=alone)

        with ThreadPoolExecutor() as pool:
            ended = dict(zip(planned, pool.map(plan, planned)))
    for name, stage in ended.items():
        if stage.returncode:
            raise UserError(f"{name}: {stage.stderr.strip().removeprefix('error: ')}")
    return {name: json.loads(stage.stdout) for name, stage in ended.items()}


def check_start(start, plans):
    """Raise UserError where recover is to begin with other images than the chain makes for it, or with
    fewer than its batches take. start: a key of STARTS; plans: of plan_stages."""
    of_recover = plans["recover"]
    begins_as = of_recover.get("begins_as", "noise")
    if start == "noise" and begins_as != "noise" and not os.path.exists(begins_as):
        raise UserError(f"recover is to begin with {begins_as}, where no images are, and this chain picks "
                        f"none; add --start picked, or type --init noise")
    if start != "picked":
        return
    if begins_as != plans["pick"]["output"]:
        raise UserError(f"--start picked: recover would begin with {begins_as} and not with the picked "
                        f"images; add --init picked, or --start noise")
    picked = plans["pick"]["images"]
    images = of_recover["images"]
    if picked != images:
        raise UserError(f"--start picked: {picked} images are to be picked and {images} recovered, which "
                        f"their control compares; give both stages the same --ipc-end, and no --ipc-start")
    if of_recover["images_computed"] > picked:
        raise UserError(f"--start picked: recover's batches take {of_recover['images_computed']} images, and "
                        f"{picked} are to be picked; choose --batch-order class or a smaller "
                        f"--recover.batch-size")


def trained_teacher(args, flags):
    """The file of the teacher that squeeze trains for recover; None where the user names other files."""
    of_recover = recover.get_args(["--dataset", args.word, *flags["recover"]])
    return None if of_recover.teacher else run_folder(of_recover) / "teacher" / "teacher.pth"


def check_targets(plans, teacher):
    """Raise UserError where the statistics that recover's --bn-target wants are neither there nor planned.

    teacher: of `trained_teacher`; beside other files their statistics may lie."""
    target = plans["recover"]["settings"].get("bn_target", "running")
    if target == "group" and "pick" in plans and not plans["pick"]["group_statistics"] \
            and not sidecar(plans["pick"]["output"], "groups.pth").exists():
        raise UserError("--bn-target group: pick would write no statistics of the groups; add --pick spread "
                        "--group-statistics")
    if target.startswith("class") and teacher and not plans["squeeze"].get("class_statistics") \
            and not class_statistics_path(teacher).exists():
        raise UserError(f"--bn-target {target}: squeeze would write no statistics of the classes; add "
                        f"--class-statistics, or name a teacher that has them with --teacher")


def print_plan(args, flags, plans, row, of_squeeze):
    """--dry-run: what each stage would write, how long it would take on this machine, the sums."""
    of_validate = train.get_args(flags["validate"])
    typed = [name for name in (*of_squeeze.arch.split(","), of_validate.model) if name]
    device = pick_device(of_squeeze.device)
    found = estimate(plans, override(row, of_squeeze), of_squeeze.real_data, device, typed)
    plain = {stage: [word for word in words if word != "--dry-run"] for stage, words in flags.items()}
    steps = make_commands(args.word, plain, args.start, args.trains)
    print(f"{'step':<20} {'minutes':>9} {'MB':>11}   command (minutes on this machine's {device}, from the "
          f"beginning)")
    for name, (seconds, num_bytes) in found.items():
        minutes = "?" if seconds is None else f"{seconds / 60:.1f}"
        print(f"{name:<20} {minutes:>9} {num_bytes / 1e6:>11,.1f}   {as_text(steps[name])}")
    known = [seconds for seconds, _ in found.values() if seconds is not None]
    total = sum(num_bytes for _, num_bytes in found.values())
    days = sum(known) / 86400
    print(f"{'sum':<20} {sum(known) / 60:>9.1f} {total / 1e6:>11,.1f}" + f"   {days:,.0f} days" * (days > 2))
    if len(known) < len(found):
        print("?: without the real images, --real-data DIR, nobody can tell")
    try:
        check_real_images(args, of_squeeze)
    except UserError as missing:
        print(f"Before it runs: {missing}")


def check_real_images(args, of_squeeze):
    """Raise UserError where the first stages would run for days and the last ones find no real images."""
    has_own = args.dataset == "digits" or args.dataset in TORCHVISION
    if has_own or of_squeeze.real_data or read_facts(run_folder(of_squeeze), args.dataset):
        return
    raise UserError(f"{args.dataset}: a student is measured on real images, and a control draws from them; "
                    f"say where they are with --real-data DIR")


def num_processes():
    """How many processes the launchers start, by GPUS of the environment."""
    return int(os.environ.get("GPUS", 1))


def way_on(args, done):
    """The command that goes on after the steps `done`: --overwrite is for the others alone."""
    steps = steps_of(args.start, args.trains)
    stages = {stage for name, stage, *_ in steps if name in done}
    afresh = {"--overwrite", *(f"--{stage}.overwrite" for stage in stages)}
    words = [word for word in args.words if word not in afresh]
    if "--overwrite" in args.words:
        left = [stage for name, stage, *_ in steps if name not in done][1:]  # not the one that has begun
        deleting = ("pick", "recover", "relabel", "validate", "random_real")
        words += [f"--{stage}.overwrite" for stage in deleting if stage in left]
    if len(args.starts) > 1:
        words = ["--start", args.start, *words]
    gpus = num_processes()
    return f"GPUS={gpus} " * (gpus != 1) + shlex.join(["sh", "run.sh", args.word, *words])


def plan_and_check(args, flags, of_squeeze):
    """-> (the data set's row, the stages' plans). Raises UserError for what one of them would refuse."""
    print(f"{args.word}: reading the images and asking every stage for its plan ...", file=sys.stderr)
    row = row_to_squeeze(of_squeeze)
    planning = {stage: [*words, "--dry-run"] for stage, words in flags.items()}
    plans = plan_stages(args, planning, row, of_squeeze)
    if "recover" in plans:
        check_start(args.start, plans)
        check_targets(plans, trained_teacher(args, flags))
    steps = plans["validate"]["settings"]["gradient_accumulation_steps"]
    epochs = plans["validate"]["settings"].get("epochs")
    labelled = plans["relabel"]["settings"].get("epochs")
    is_drawn = "label_draw" in plans["validate"]["settings"]
    if None not in (epochs, labelled) and epochs > labelled and not is_drawn:
        raise UserError(f"validate: {epochs} epochs, and relabel makes labels for {labelled}; type "
                        f"--relabel.epochs {epochs}, --validate.epochs {labelled}, or --label-draw pool")
    codec = plans["relabel"]["settings"].get("codec", "")
    if is_sparse(codec) and plans["validate"]["settings"]["loss"].startswith("MSE"):
        raise UserError(f"--codec {codec} keeps some of the logits, and --loss mse compares all; take "
                        f"--loss kl or --codec uint8")
    made_by = "recover" if "recover" in plans else "pick"
    num_images = plans[made_by]["images"]
    check_micro_batches(steps, num_processes(), plans["relabel"]["settings"]["batch_size"], num_images)
    if row.source:
        images = find_split(row, of_squeeze.real_data, "train")
        of_images = STAGES[made_by].get_args(["--dataset", args.word, *flags[made_by]])
        classes = of_images.classes or range(len(images.class_names))
        check_enough(images, classes, num_images // len(classes))  # the control draws as many real ones
    return row, plans


def main(args):
    flags = split_flags(args.words)
    args.trains = trains_teacher(args, flags)
    of_squeeze = squeeze.get_args(["--dataset", args.word, *flags["squeeze"]])
    is_dry = "--dry-run" in args.words
    if not is_dry:
        check_real_images(args, of_squeeze)
    if is_dry or not (run_folder(of_squeeze) / "images").exists():
        row, plans = plan_and_check(args, flags, of_squeeze)
        if is_dry:
            return print_plan(args, flags, plans, row, of_squeeze)
        if "squeeze" not in plans:
            record_facts(of_squeeze, row)  # which squeeze does where it trains
    done = []
    stage_of = {name: stage for name, stage, *_ in STEPS}
    for name, command in make_commands(args.word, flags, args.start, args.trains).items():
        print(f"\n== {name}: {as_text(command)}", flush=True)
        code = run_step(command)
        if code:
            mend = f"mend what it says (--{stage_of[name]}.FLAG is for this stage alone); " * (code == 2)
            print(f"{name} ended with exit code {code}, see above; {mend}go on from there with: "
                  f"{way_on(args, done)}", file=sys.stderr)
            sys.exit(code)
        done.append(name)


def get_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--dataset", action=Once, required=True, metavar="NAME[+RECIPE]",
                        help=f"{', '.join(DATASETS)}, or a name of your own with --real-data DIR")
    parser.add_argument("--start", choices=STARTS, action="append",
                        help="what the images begin as; only-picked: real images, not optimised")
    parser.set_defaults(name=None, trains=True)
    args, args.words = parser.parse_known_args(argv)
    args.word = args.name or args.dataset  # as the launchers take it
    args.starts = args.start or ["noise"]  # run.sh gives one, the user another
    args.start = args.starts[-1]
    return args


if __name__ == "__main__":
    run_script(main, get_args)
