"""What a run folder holds for its report: read as the stages wrote it, nothing recomputed. What cannot be read is named and passed over."""
from dataclasses import dataclass, field
from pathlib import Path

from sre2l.run.errors import UserError
from sre2l.run.files import sidecar, read_json
from sre2l.run.log import keyed, stage_seconds
from sre2l.run.settings import recorded
from report.html import in_words


@dataclass
class Student:
    """A student's folder, by its name from the run folder; what it was trained on, in words; results.json; {(seed, epoch): metrics}."""
    name: str
    images: Path
    labels: Path
    what: str
    results: dict
    metrics: dict

    @property
    def is_real(self):
        return self.what.startswith("random real")

    @property
    def is_hard(self):
        return self.results["protocol"]["hard_labels"]

    @property
    def label(self):
        return f"{self.results['protocol']['model']}, {self.what}"


@dataclass
class Run:
    """faults: a sentence for each piece that could not be read."""
    folder: Path
    students: list
    images: Path
    labels: Path
    teacher: dict | None = None     # the settings of its training
    recover: dict | None = None     # the manifest of the images
    relabel: dict | None = None     # the manifest of the labels
    faults: list = field(default_factory=list)


def attempt(run, path, read, *args):
    """read(path, ...), None where the file is not there. What goes wrong is told on the page: a report must not fail a finished run."""
    try:
        return read(path, *args) if path.exists() else None
    except Exception as error:  # whatever stands in the file
        words = in_words(error, run.folder)
        name = str(path).removeprefix(f"{run.folder}/")
        run.faults.append(words if name in words else f"{name}: {words}")
        return None


def folder_used(args, key, default):
    """The folder that a student was given; where it is not there, as in a run that was moved, the one beside the student."""
    return Path(args[key]) if args.get(key) and Path(args[key]).is_dir() else default


def kind_of(images):
    """What a folder of images holds, by its manifest."""
    try:
        made = recorded(sidecar(images, "manifest.json")) or {}
    except UserError:
        return "images"
    return "random real images" if "source" in made else "distilled images" if "r_bn" in made else "images of other origin"


def read_student(path, run_folder, args):
    """results.json, with the args of the run that wrote it -> Student; raises for what is no student's."""
    folder, results = path.parent, read_json(path)
    images, labels = (folder_used(args, key, folder.parent / name) for key, name in (("train_dir", "images"), ("fkd_path", "labels")))
    what = f"{kind_of(images)}, {'hard' if results['protocol']['hard_labels'] else 'soft'} labels"
    metrics = keyed([folder / "metrics.jsonl"], "seed", "epoch")
    float(results["top1"]["mean"])  # what every student has
    name = folder.name if folder == run_folder else folder.relative_to(run_folder).as_posix()
    return Student(name, images, labels, what, results, metrics)


def read_run(folder):
    """-> Run, its students in the order of a table: distilled images first, then random real ones, then hard labels."""
    run = Run(folder, [], folder / "images", folder / "labels")
    paths = sorted({path for pattern in ("results.json", "*/results.json", "random_real/*/results.json") for path in folder.glob(pattern)})
    students = [attempt(run, path, read_student, folder, attempt(run, path.parent / "args.json", read_json) or {}) for path in paths]
    run.students = sorted((s for s in students if s), key=lambda student: (student.is_hard, student.is_real, student.name))
    if run.students:
        run.images, run.labels = run.students[0].images, run.students[0].labels
    run.teacher = attempt(run, folder / "teacher" / "settings.json", recorded)
    run.recover, run.relabel = (attempt(run, sidecar(root, "manifest.json"), recorded) for root in (run.images, run.labels))
    return run


def teacher_facts(run):
    """-> (arch, stem, ..., of the teacher of the labels or, before there are any, of the images; its top-1 in percent, where that is from)."""
    labels = run.students[0].results["protocol"]["labels"] if run.students else run.relabel or {}
    facts = labels.get("teacher") or (run.recover or {}).get("teacher") or {}
    if (measured := labels.get("measured_top1")) is not None:
        return facts, measured, "as relabel measured it"
    return facts, facts.get("top1"), "as its checkpoint says"


def seconds_of(run):
    """{stage: wall time in seconds, or None} up to the first student."""
    if run.students:
        return run.students[0].results["seconds"]
    metrics = (("squeeze", run.folder / "teacher" / "metrics.jsonl"), ("recover", sidecar(run.images, "metrics.jsonl")),
               ("relabel", sidecar(run.labels, "metrics.jsonl")))
    return {stage: stage_seconds(path) for stage, path in metrics}
