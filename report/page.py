"""One page about a run, from what its stages wrote: accuracies, images, curves, bytes, seconds and settings. It loads nothing from elsewhere.

Run: python -m report.page --dataset digits      (train.sh and demo.sh write it at their end)
Time: about 2 s; the curves need matplotlib, an extra: pip install matplotlib.
Result: runs/<name>/report.html.
"""
import io
from pathlib import Path

from PIL import Image

from recover.pictures import SHEET
from sre2l.run.files import sidecar, write_bytes
from sre2l.data.flags import add_run_flags
from sre2l.run.flags import Parser
from sre2l.run.errors import UserError
from sre2l.run.log import print_plan
from sre2l.run.paths import run_folder
from sre2l.run.start import run_script
from report.data import read_run, seconds_of, teacher_facts
from report.html import bar, element, guarded, image, in_words, note, page, path_text, table, text
from report.plots import colour, colour_numbers, curves

SMALL_SHEET = 500_000                  # bytes: a contact sheet up to there is shown as it is
LARGEST_SIDE, JPEG_QUALITY = 1400, 82  # pixels; of a larger one
HIDDEN = ("class_folders", "teacher_classes", "order_rule", "versions", "teacher", "labels")  # settings that stand elsewhere on the page, or are long


def percent(values):
    """{mean, std} -> '96.32 ± 0.19'."""
    return "–" if not values else f"{values['mean']:.2f}" + (f" ±\u00a0{values['std']:.2f}" if values.get("std") is not None else "")


def count(number, noun):
    return f"{number:,} {noun}{'s' * (number != 1)}"


def num_bytes(value):
    return "–" if value is None else f"{value:,}"


def seeds_of(student):
    return count(len(student.results["seeds"]), "seed")


def lead(run):
    """The run in a sentence or two."""
    facts, top1, _ = teacher_facts(run)
    if not run.students:
        return "No student has been trained here yet, so that there is no accuracy to report."
    first, labels = run.students[0], run.students[0].results["protocol"]["labels"]
    results, teacher = first.results, "" if top1 is None else f" Its teacher, {facts.get('arch')}, has {top1:.2f} %."
    return (f"{labels['num_images']:,} images of {len(labels['classes']):,} classes, {results['image_bytes']:,} bytes, and {results['label_bytes']:,} bytes of "
            f"labels. A student ({first.label}) reaches {percent(results['top1'])} % top-1 over {seeds_of(first)}.{teacher}")


def accuracy(run):
    """The table of accuracies, and sentences on what is missing beside it."""
    facts, top1, source = teacher_facts(run)
    known = f"teacher, {facts.get('arch', 'unknown')}" + (f", stem {facts['stem']}" if facts.get("stem") else "")
    first = element("span", known, element("small", source if top1 is not None else "its top-1 has not been measured"))
    rows = [(first, "–", "–", "–") if top1 is None else (text(first, bar(top1, "var(--soft)")), f"{top1:.2f}", "–", "–")]
    for i, student in zip(colour_numbers(run.students), run.students):
        results = student.results
        title = element("span", student.label, element("small", path_text(student.name), f", {seeds_of(student)}"))
        rows.append((text(title, bar(results["top1"]["mean"], colour(i))), *(percent(results.get(key)) for key in ("top1", "top5", "best_top1"))))
    yield table(rows, ("", "top-1", "top-5", "best top-1"))
    if run.students:
        val = run.students[0].results["protocol"]["val"] or {}
        yield note(f"Percent of {val.get('num_images', 0):,} real images after the last epoch, mean and sample standard deviation over the seeds. "
                   f"The best epoch is chosen on these same images, so it flatters: the last is the result.")
    for student in run.students[1:]:
        differing = differences(run.students[0].results["protocol"], student.results["protocol"])
        yield note(f"{student.name} has the protocol of {run.students[0].name}", f" but for {', '.join(differing)}." if differing else ".")
    for sentence in missing_controls(run):
        yield note(sentence)


def differences(one, other):
    """The settings in which two protocols differ, apart from the images themselves and what was measured on them."""
    def facts(protocol):
        labels = {f"labels.{key}": value for key, value in (protocol["labels"] or {}).items()}
        measured = ("labels.image_bytes", "labels.images_sha256", "labels.measured_top1", "labels")
        return {key: value for key, value in {**protocol, **labels}.items() if key not in measured}
    one, other = facts(one), facts(other)
    return [key for key in {**one, **other} if one.get(key) != other.get(key)]


def missing_controls(run):
    if run.students and not any(student.is_hard for student in run.students):
        yield "No control with hard labels yet: the same train.sh command with --hard-labels adds it."
    if run.students and not any(student.is_real for student in run.students):
        yield "No control with random real images yet: validate/random_real.sh adds it."


def contact_sheet(run):
    """recover's contact sheet, made smaller where it is large."""
    path = sidecar(run.images, "png")
    if not path.exists():
        return note(f"No contact sheet stands beside {run.images.name}: recover writes one when its images are complete.")
    data, kind = path.read_bytes(), "png"
    with Image.open(path) as sheet:
        sheet.load()
        if len(data) > SMALL_SHEET:
            sheet.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
            smaller, kind = io.BytesIO(), "jpeg"
            sheet.convert("RGB").save(smaller, "JPEG", quality=JPEG_QUALITY)
            data = smaller.getvalue()
    return image(data, kind, f"Contact sheet of {run.images.name}: {SHEET}"), note(f"{SHEET[0].upper()}{SHEET[1:]}.")


def costs(run):
    """The table of bytes and seconds."""
    seconds, first = seconds_of(run), run.students[0] if run.students else None
    sizes = {"recover": first and first.results["image_bytes"], "relabel": first and first.results["label_bytes"]}
    what = {"squeeze": "teacher (squeeze)", "recover": "images (recover)", "relabel": "labels (relabel)",
            "validate": first and text(path_text(first.name), f", {seeds_of(first)} (validate)")}
    rows = [(what[stage], sizes.get(stage), value) for stage, value in seconds.items()]
    for student in run.students[1:]:
        results, name = student.results, path_text(student.name)
        if student.images != run.images:
            rows.append((text("images of ", name), results["image_bytes"], None))
        if student.labels != run.labels:
            rows.append((text("labels of ", name), results["label_bytes"], results["seconds"].get("relabel")))
        rows.append((text(name, f", {seeds_of(student)}"), None, results["seconds"].get("validate")))
    yield table([(name, num_bytes(size), "–" if value is None else f"{value:,.1f}") for name, size, value in rows], ("", "bytes", "seconds"))
    yield note("Wall time over all starts of a stage, by the clock of its first process.")
    if first:
        yield note("Made with " + ", ".join(f"{key} {value}" for key, value in first.results["versions"].items()) + ".")


def shown(value):
    """A setting as a few words."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"{shown(value[0])} to {shown(value[-1])}, {len(value)} in all" if len(value) > 4 else ", ".join(map(shown, value))
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def flat(settings, prefix=""):
    """Nested settings -> rows of (name, words)."""
    for key, value in settings.items():
        if key in HIDDEN:
            continue
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield path_text(f"{prefix}{key}"), shown(value)


def settings(run):
    """The protocol of every stage, a card each."""
    def with_teacher(record):
        record, teacher = record or {}, (record or {}).get("teacher") or {}
        return record | {f"teacher.{key}": teacher.get(key) for key in ("arch", "sha256") if teacher}
    protocol = run.students[0].results["protocol"] if run.students else {}
    cards = (("Squeeze: the teacher", run.teacher, "No teacher was trained in this run: it is torchvision's, or was given with --teacher."),
             ("Recover: the images", with_teacher(run.recover), f"No manifest beside {run.images.name}: recover has not written them, or not yet."),
             ("Relabel: the labels", with_teacher(run.relabel or protocol.get("labels")), f"No manifest beside {run.labels.name}: no labels yet."),
             ("Validate: the student", protocol, "No student has been trained yet."))
    made = (element("div", element("h3", title), table(flat(record)) if record else note(absent), class_="card") for title, record, absent in cards)
    return element("div", *made, class_="cards")


def make_report(folder):
    """The page about a run folder, as text."""
    run = read_run(folder)
    parts = (("Accuracy", accuracy), ("Images", contact_sheet), ("Curves", curves), ("Bytes and seconds", costs), ("Settings", settings))
    body = [element("section", element("h2", title), guarded(folder, make, run)) for title, make in parts]
    faults = [element("p", f"Could not be read: {fault}", class_="fault") for fault in run.faults]
    return page(f"{folder.name}: report of a run", element("h1", folder.name), element("p", guarded(folder, lead, run), class_="lead"), *faults, *body)


def write_report(folder):
    """Write report.html into a run folder -> its path."""
    write_bytes(folder / "report.html", make_report(folder).encode(errors="replace"))
    return folder / "report.html"


def report_in_words(run, student=None):
    """write_report for the end of a run, which it never fails -> a sentence. student: the folder that was written last; one outside of the
    run folder gets a page of its own."""
    inside = student is None or Path(student).parent in (run, run / "random_real")
    try:
        return f"report: {write_report(run if inside else Path(student))}"
    except Exception as error:
        return f"no report: {in_words(error, run)}"


def main(args):
    run = run_folder(args)
    if args.dry_run:
        return print_plan(vars(args), output=str(run / "report.html"))
    if not run.is_dir():
        raise UserError(f"{run}: there is no such run; sh demo.sh makes runs/digits")
    print(f"report: {write_report(run)}")


def get_args(argv=None):
    parser = Parser(__doc__)
    add_run_flags(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
