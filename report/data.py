"""What a run folder holds for its report, read as the stages wrote it; nothing is computed again."""
from dataclasses import dataclass
from pathlib import Path

from sre2l.run.files import read_json, sidecar
from sre2l.run.log import keyed, stage_seconds
from sre2l.run.output import recorded
from sre2l.run.paths import student_name
from validate.results import is_of_earlier_images, teacher_top1

CONTROLS = ("picked_real", "random_real", "hard")  # in the order of the page


@dataclass
class Student:
    """A student's folder.

    name: its path from the run folder; label: network, images and labels in words; results: results.json;
    metrics: {(seed, epoch): line of metrics.jsonl}."""
    name: str
    images: Path
    labels: Path
    label: str
    results: dict
    metrics: dict

    @property
    def model(self):
        return self.results["protocol"]["model"]

    @property
    def control(self):
        """Which of CONTROLS it is, by its folder: a set may be of real images itself. "" for no control."""
        if self.name.endswith("_hard") or self.results["protocol"]["hard_labels"]:
            return "hard"
        place = self.name.partition("/")[0]
        return place if place in CONTROLS else ""


@dataclass
class Run:
    """A run folder. teacher, recover, relabel: recorded settings, None where there are none; recipe: the
    launcher's word, cifar10+young, by which the images were made, "" for none."""
    folder: Path
    students: list
    images: Path
    labels: Path
    teacher: dict | None
    recover: dict | None
    relabel: dict | None
    recipe: str


def folder_used(args, key, default):
    """The folder that a student was given. Where it is gone, as in a moved run: the one beside it."""
    return Path(args[key]) if args.get(key) and Path(args[key]).is_dir() else default


def kind_of(images):
    """What a folder of images holds, by its manifest."""
    made = recorded(sidecar(images, "manifest.json")) or {}
    if "source" in made:  # of older folders no score is recorded
        return f"{'random' if made.get('score', 'random') == 'random' else 'picked'} real images"
    return "distilled images" if "r_bn" in made else "images of other origin"


def maker_of(images):
    """The stage that has made a folder of images: pick or, as far as one can tell, recover."""
    return "pick" if kind_of(images).endswith(" real images") else "recover"


def recipe_of(images):
    """The launcher's word NAME+RECIPE by which a folder of images was made; "" without a recipe."""
    path = sidecar(images, "args.json")
    return read_json(path).get("word", "") if path.exists() else ""


def read_student(folder, run_folder):
    """The student in a folder of the run."""
    results = read_json(folder / "results.json")
    args = read_json(folder / "args.json") if (folder / "args.json").exists() else {}
    own_images = run_folder / "picked" if folder.parent.name == "picked_real" else folder.parent / "images"
    images = folder_used(args, "train_dir", own_images)
    labels = folder_used(args, "fkd_path", folder.parent / "labels")
    protocol = results["protocol"]
    kind = kind_of(images)
    if is_of_earlier_images(protocol, labels):
        kind += " of an earlier run"
    label = f"{protocol['model']}, {kind}, {'hard' if protocol['hard_labels'] else 'soft'} labels"
    name = folder.name if folder == run_folder else folder.relative_to(run_folder).as_posix()
    return Student(name, images, labels, label, results, keyed([folder / "metrics.jsonl"], "seed", "epoch"))


def read_run(folder):
    """-> Run, its students in the order: the run's images, picked real ones, random ones, hard labels. The
    first is one that has controls, and the name that train.sh gives."""
    patterns = ("results.json", "*/results.json", "random_real/*/results.json", "picked_real/*/results.json")
    found = sorted(path.parent for pattern in patterns for path in folder.glob(pattern))
    students = [read_student(path, folder) for path in found]
    controlled = [student.model for student in students if student.control]
    students.sort(key=lambda student: (("", *CONTROLS).index(student.control),
                                       controlled.count(student.model) == 0,
                                       student.name != student_name(student.model)))

    # The first student says which images and labels the page is about.
    images = students[0].images if students else folder / "images"
    labels = students[0].labels if students else folder / "labels"
    return Run(folder, students, images, labels,
               teacher=recorded(folder / "teacher" / "settings.json"),
               recover=recorded(sidecar(images, "manifest.json")),
               relabel=recorded(sidecar(labels, "manifest.json")),
               recipe=recipe_of(images))


def describe_measure(chance, num_images):
    """How much an accuracy tells: chance, percent, and what one image counts; num_images None = unknown."""
    if not num_images:
        return f"Chance is {chance:.3g}%."
    one = f", one of which is {100 / num_images:.2g} points" if num_images <= 500 else ""
    return f"Chance is {chance:.3g}%; measured on {num_images:,} real images{one}."


def teacher_facts(run):
    """-> {'arch': ..., 'stem': ...} of the teacher, its top-1 in percent, where that is from.

    It is the teacher of the labels or, before there are any, of the images."""
    labels = run.students[0].results["protocol"]["labels"] if run.students else run.relabel or {}
    teacher = labels.get("teacher") or (run.recover or {}).get("teacher") or {}
    return teacher, *teacher_top1({**labels, "teacher": teacher})


def seconds_of(run):
    """{stage: wall time in seconds, or None} up to the first student."""
    if run.students:
        return run.students[0].results["seconds"]
    metrics = {"squeeze": run.folder / "teacher" / "metrics.jsonl",
               "recover": sidecar(run.images, "metrics.jsonl"),
               "relabel": sidecar(run.labels, "metrics.jsonl")}
    return {stage: stage_seconds(path) for stage, path in metrics.items()}
