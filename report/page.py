"""One page about a run, from what its stages wrote: accuracies, images, curves, bytes, seconds and settings.

Run: python3 -m report.page --dataset digits      (train.sh and demo.sh write it at their end)
Time: about 2 s; the curves need matplotlib, an extra: pip install matplotlib.
Result: runs/<name>/report.html, which loads nothing from elsewhere.
"""
import io
import os
from pathlib import Path

from PIL import Image

from report.curves import page_curves
from report.data import describe_measure, maker_of, read_run, seconds_of, teacher_facts
from report.html import element, image, note, page, table, text
from sre2l.data.codecs import NONE
from sre2l.data.flags import add_run_flags
from sre2l.run.errors import UserError
from sre2l.run.files import sidecar, write_bytes
from sre2l.run.flags import Parser
from sre2l.run.lock import alone_in
from sre2l.run.output import print_plan
from sre2l.run.paths import run_folder
from sre2l.run.start import run_script

SMALL_SHEET = 500_000  # bytes: a contact sheet up to there is shown as it is
LARGEST_SIDE = 1400    # pixels, of a larger one

# Settings that stand elsewhere on the page, or are long.
HIDDEN = ("class_folders", "teacher_classes", "order_rule", "versions", "labels")


def percent(values):
    """{mean, std} -> '96.32 ± 0.19'."""
    if not values:
        return "–"
    spread = "" if values.get("std") is None else f" ±\u00a0{values['std']:.2f}"
    return f"{values['mean']:.2f}{spread}"


def seeds_of(student):
    seeds = len(student.results["seeds"])
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def codec_of(student):
    """How a student's labels are stored, in words; '' as released."""
    codec = (student.results["protocol"]["labels"] or {}).get("codec")
    if codec is None:
        return ""
    return ", which the teacher gives beside the student" if codec == NONE else f" ({codec})"


def lead(run):
    """The run in a sentence or two."""
    facts, top1, _ = teacher_facts(run)
    if not run.students:
        return "No student has been trained here yet, so that there is no accuracy to report."
    first = run.students[0]
    results = first.results
    labels = results["protocol"]["labels"]
    teacher = "" if top1 is None else f" Its teacher, {facts.get('arch')}, has {top1:.2f} %."
    return (f"{labels['num_images']:,} images of {len(labels['classes']):,} classes, "
            f"{results['image_bytes']:,} bytes, and {results['label_bytes']:,} bytes of labels"
            f"{codec_of(first)}. "
            f"A student ({first.label}) reaches {percent(results['top1'])} % top-1 over {seeds_of(first)}."
            f"{teacher}")


def teacher_row(run):
    """The teacher's row in the table of accuracies."""
    facts, top1, source = teacher_facts(run)
    known = f"teacher, {facts.get('arch', 'unknown')}"
    if facts.get("stem"):
        known += f", stem {facts['stem']}"
    small = "its top-1 has not been measured" if top1 is None else source
    value = "–" if top1 is None else f"{top1:.2f}"
    return element("span", known, element("small", small)), value, "–", "–", "–"


def student_row(student):
    """A student's row in the table of accuracies."""
    results = student.results
    small = element("small", student.name, f", {seeds_of(student)}")
    title = element("span", student.label, small)
    accuracies = (percent(results.get(key)) for key in ("top1", "top5", "best_top1"))
    return title, *accuracies, f"{results['label_bytes']:,}{codec_of(student)}"


def accuracy(run):
    """The table of accuracies, and how the students differ."""
    rows = [teacher_row(run), *map(student_row, run.students)]
    yield table(rows, ("", "top-1", "top-5", "best top-1", "bytes of labels"))
    if run.students:
        protocol = run.students[0].results["protocol"]
        measure = describe_measure(100 / protocol["num_classes"], (protocol["val"] or {}).get("num_images"))
        yield note(f"Percent after the last epoch, mean and sample standard deviation over the seeds. "
                   f"{measure} The best epoch is chosen on these same images, so it flatters: the last is "
                   f"the result.")
    for student in run.students[1:]:
        base = compared_with(run, student)
        differing = differences(base.results["protocol"], student.results["protocol"])
        but = f" but for {', '.join(differing)}." if differing else "."
        yield note(f"{student.name} has the protocol of {base.name}", but)


def compared_with(run, student):
    """The student that a control belongs to, the first of the same network; of others, the page's first."""
    of_it = [other for other in run.students if not other.control and other.model == student.model]
    return of_it[0] if student.control and of_it else run.students[0]


def differences(one, other):
    """The settings in which two protocols differ, apart from what was measured on the images."""
    one = with_labels(one)
    other = with_labels(other)
    return [key for key in {**one, **other} if one.get(key) != other.get(key)]


def with_labels(protocol):
    """A protocol, with the settings of its labels as settings of its own."""
    facts = {**protocol, **{f"labels.{key}": value for key, value in (protocol["labels"] or {}).items()}}
    measured = ("labels.image_bytes", "labels.images_sha256", "labels.measured_top1", "labels")
    return {key: value for key, value in facts.items() if key not in measured}


def contact_sheet(run):
    """recover's contact sheet, made smaller where it is large."""
    path = sidecar(run.images, "png")
    if not path.exists():
        return note(f"No contact sheet stands beside {run.images.name}: "
                    f"recover writes one when its images are complete.")
    data = path.read_bytes()
    kind = "png"
    with Image.open(path) as sheet:
        sheet.load()
        if len(data) > SMALL_SHEET:
            sheet.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
            smaller = io.BytesIO()
            sheet.convert("RGB").save(smaller, "JPEG", quality=82)
            data = smaller.getvalue()
            kind = "jpeg"
    words = "a row for each class, where a class has few images several in a row; of a large set a part"
    alt = f"Contact sheet of {run.images.name}: {words}"
    return text(image(data, kind, alt), note(f"{words.capitalize()}."))


def cost_rows(run):
    """(what, bytes, seconds) of every stage up to the first student, then of training the others."""
    sizes = {}
    student = "student (validate)"
    if run.students:
        first = run.students[0]
        sizes = {"recover": first.results["image_bytes"], "relabel": first.results["label_bytes"]}
        student = f"{first.name}, {seeds_of(first)} (validate)"
    what = {"squeeze": "teacher (squeeze)", "recover": f"images ({maker_of(run.images)})",
            "relabel": "labels (relabel)", "validate": student}
    for stage, seconds in seconds_of(run).items():
        yield what[stage], sizes.get(stage), seconds

    for student in run.students[1:]:
        yield f"{student.name}, {seeds_of(student)}", None, student.results["seconds"].get("validate")


def costs(run):
    """The table of bytes and seconds."""
    rows = [(what, "–" if size is None else f"{size:,}", "–" if seconds is None else f"{seconds:,.1f}")
            for what, size, seconds in cost_rows(run)]
    yield table(rows, ("", "bytes", "seconds"))
    yield note("Wall time over all starts of a stage, by the clock of its first process.")
    if run.students:
        versions = run.students[0].results["versions"]
        yield note("Made with " + ", ".join(f"{key} {value}" for key, value in versions.items()) + ".")


def shown(value):
    """A setting as a few words."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and len(value) > 4:
        return f"{shown(value[0])} to {shown(value[-1])}, {len(value)} in all"
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)  # of a sha256 the start


def flat(settings, prefix=""):
    """Nested settings -> rows of (name, words)."""
    for key, value in settings.items():
        if key in HIDDEN:
            continue
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", shown(value)


def card(title, record, absent):
    """The settings of a stage, or the sentence `absent` where there are none."""
    body = table(flat(record)) if record else note(absent)
    return element("div", element("h3", title), body, class_="card")


def with_short_side(protocol):
    """A protocol whose eval_resize is the short side in pixels; it is recorded for an input of 224."""
    if not protocol.get("eval_resize"):
        return protocol
    return {**protocol, "eval_resize": round(protocol["eval_resize"] * protocol["size"] / 224)}


def settings(run):
    """The protocol of every stage, a card each."""
    protocol = with_short_side(run.students[0].results["protocol"]) if run.students else {}
    cards = (
        card("Squeeze: the teacher", run.teacher,
             "No teacher was trained in this run: it is torchvision's, or was given with --teacher."),
        card("Recover: the images", run.recover,
             f"No manifest beside {run.images.name}: recover has not written them, or not yet."),
        card("Relabel: the labels", run.relabel or protocol.get("labels"),
             f"No manifest beside {run.labels.name}: no labels yet."),
        card("Validate: the student", protocol, "No student has been trained yet."))
    return element("div", *cards, class_="cards")


def make_report(folder):
    """The page about a run folder, as text."""
    run = read_run(folder)
    parts = {"Accuracy": text(*accuracy(run)), "Images": contact_sheet(run), "Curves": page_curves(run),
             "Bytes and seconds": text(*costs(run)), "Settings": settings(run)}
    body = [element("section", element("h2", title), part) for title, part in parts.items()]
    recipe = f" The recipe is {run.recipe}." if run.recipe else ""
    return page(f"{folder.name}: report of a run", element("h1", folder.name),
                element("p", lead(run) + recipe, class_="lead"), *body)


def write_report(run, student=None):
    """Write report.html into a run folder -> its path.

    student: the folder that was written last. One outside of the run folder gets a page of its own."""
    is_inside = student is None or student.parent in (run, run / "random_real", run / "picked_real")
    folder = run if is_inside else student
    with alone_in(folder):  # students may end together: the last page knows all, and none removes another's
        for path in folder.glob("report.html.*.tmp"):  # a kill left it
            path.unlink(missing_ok=True)
        write_bytes(folder / "report.html", make_report(folder).encode(errors="replace"))
    return folder / "report.html"


def main(args):
    run = Path(args.run) if args.run else run_folder(args)
    if args.dry_run:
        return print_plan(vars(args), output=str(run / "report.html"))
    if not run.is_dir():
        raise UserError(f"{run}: there is no such run; sh demo.sh makes runs/digits")
    print(f"report: {write_report(run, args.student and Path(args.student))}")


def get_args(argv=None):
    parser = Parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--run", type=os.path.abspath, metavar="DIR", help="for --dataset and --name")
    parser.add_argument("--student", type=os.path.abspath, metavar="DIR",
                        help="the student written last; one outside of the run gets a page of its own")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
