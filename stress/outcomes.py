"""What check, the stages and a reader make of a damage, and the table that counts it for damage.py."""
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import NamedTuple

from bench.measure import table
from relabel.check import verify
from sre2l.nets.checkpoints import read_checkpoint
from sre2l.run.errors import UserError
from stress.compare import same_values
from stress.damage_world import CLASSES, STUDENT, copy_run, quiet, stages
from tests.helpers import run_main

COLUMNS = ("tried", "check refuses", "stage repairs", "stage refuses", "left to check", "validate refuses",
           "no effect", "cannot be caught", "missed")
RECORDS = ("images.manifest.json", "labels.manifest.json", "images.sha256", "labels.sha256")
KINDS = ("image", "label file", *RECORDS)


class Case(NamedTuple):
    """One damage to a copy of a run folder: harm(run folder, *args).

    named: paths in the run folder, of which the refusal has to contain one."""
    damage: str
    kind: str
    harm: Callable
    args: tuple
    named: tuple


class Table:
    """Counts of outcomes by kind of damage and kind of file, and a line for each case that was missed."""

    def __init__(self):
        self.counts = defaultdict(Counter)
        self.missed = []

    def add(self, damage, kind, note, *outcomes):
        """outcomes: of COLUMNS; note: what was said, for a case that was missed."""
        self.counts[damage, kind].update(["tried", *outcomes])
        if "missed" in outcomes:
            self.missed.append(f"{damage}, {kind}: {note}")

    def text(self):
        rows = [{"damage": damage, "file": kind, **count}
                for (damage, kind), count in sorted(self.counts.items())]
        total = sum(self.counts.values(), Counter())
        rows.append({"damage": "all", **{column: total[column] for column in COLUMNS}})
        return table(rows, {column: column for column in ("damage", "file", *COLUMNS)})


def first_fault(run, num_classes=CLASSES):
    """What relabel/check.sh says of the images and labels in a run folder; None where it finds nothing."""
    try:
        findings = verify(run / "images", run / "labels", num_classes, 32)
        return next((finding.faults[0] for finding in findings if finding.faults), None)
    except UserError as error:
        return str(error)


def start(world, run, *names, codec=""):
    """Give the commands of these stages again -> what the one that refuses says; None where all are done."""
    for name in names:
        try:
            with quiet():
                run_main(*stages(world, run, codec)[name])
        except UserError as error:
            return str(error)
        except Exception as error:  # a traceback, where a sentence is wanted
            return f"crash: {type(error).__name__}: {error}"
    return None


def is_named(message, named):
    """Is this a refusal, not a crash, with one of these names in it?"""
    return message is not None and not message.startswith("crash") and any(name in message for name in named)


def files_in(run):
    """{name: bytes} of images, labels, their manifests and hash files, and a name for each folder."""
    found = {}
    for folder in ("images", "labels"):
        for path in (run / folder).rglob("*"):
            name = path.relative_to(run).as_posix()
            if path.is_file():
                found[name] = path.read_bytes()
            else:
                found[f"{name}/"] = b""
    return found | {name: (run / name).read_bytes() for name in RECORDS if (run / name).is_file()}


def result(run, stage):
    """What a stage is run for: the teacher, or the student and its curve."""
    path = "teacher/teacher.pth" if stage == "squeeze" else f"{STUDENT}/seed0/checkpoint.pth"
    return read_checkpoint(run / path)


def kind_of(name):
    return {"images": "image", "labels": "label file"}.get(name.partition("/")[0], name)


class Records:
    """The world whose folders have manifests and hash files, and cases of damage to copies of it. codec: of
    its labels, "" for those as released."""

    def __init__(self, world, folder, table, codec=""):
        self.world = world
        self.codec = codec
        self.form = codec and f", {codec}"  # in the table
        self.folder = folder
        self.table = table
        self.whole = files_in(world / "run")
        self.student = result(world / "run", "validate")

    def names(self, kind):
        return [name for name in self.whole if kind_of(name) == kind and not name.endswith("/")]

    def stages_again(self, run):
        """Validate, then recover and relabel, on damaged folders.

        -> ({outcome: what was said}, outcomes that are well without a word)."""
        said = {}
        well = set()
        message = start(self.world, run, "validate", codec=self.codec)
        if message is None and same_values(result(run, "validate"), self.student):
            well.add("no effect")
        else:
            said["validate refuses"] = message
        message = start(self.world, run, "recover", "relabel", codec=self.codec)
        if message is not None:
            said["stage refuses"] = message
        elif files_in(run) == self.whole:
            well.add("stage repairs")
        else:  # done, but something is still there that does not belong
            said["left to check"] = first_fault(run)
        return said, well

    def run(self, case, again):
        """Damage a copy, and count what check says and, with `again`, what the stages do."""
        run = copy_run(self.world, self.folder / "case", ("images", "labels"))
        case.harm(run, *case.args)
        assert files_in(run) != self.whole, f"{case} damages nothing"
        said = {"check refuses": first_fault(run)}
        well = set()
        if again:
            more, well = self.stages_again(run)
            said |= more

        # What does not name the file is missed, a crash as well as silence.
        silent = {outcome for outcome, message in said.items() if not is_named(message, case.named)}
        note = f"{case.named}: " + "; ".join(f"{outcome}: {said[outcome]}" for outcome in sorted(silent))
        outcomes = (said.keys() - silent) | well | ({"missed"} if silent else set())
        self.table.add(case.damage, case.kind + self.form, note, *outcomes)
        shutil.rmtree(run)
