"""What labels weigh and what they give: the tables of docs/labels.md and its picture, from results/.

Run: python3 -m report.labels [--run runs/labels_digits]      (seconds; the picture needs matplotlib)
Result: docs/labels.md between its marker comments, and img/labels.png. With --run, first the results of each
student of that run, in results/labels/.
"""
import json
import os
from pathlib import Path

from report.curves import BLUE, ORANGE, set_style
from report.figures import save_png
from report.plots import to_picture
from report.rows import NAMES, RESULTS
from report.tables import accuracy, table, with_tables
from sre2l.run.errors import UserError
from sre2l.run.files import read_json, write_bytes, write_json
from sre2l.run.flags import Parser
from sre2l.run.paths import ROOT
from sre2l.run.start import run_script

FOLDER = RESULTS / "labels"
PAGE = ROOT / "docs" / "labels.md"
START = "<!-- from results/, by python3 -m report.labels -->"
PICTURE = ROOT / "img" / "labels.png"
DATASETS = ("digits", "cifar10")  # with students for each codec, by results/labels/<name>.sh
STUDENT_SECONDS = "a ResNet-18 student's passes, s"  # as bench/codecs.py calls them
# What the keys of students mean, by their beginnings: in a table, and in a picture.
WORDS = {"keep": "fp16, pool of {} of the epochs", "phases": "fp16, phases, pool of {} of the epochs",
         "falling": "fp16, falling T, pool of {} of the epochs", "topk": "topk:{}"}
SHORT = {"keep": "keep {}", "phases": "phases, {}", "falling": "falling T, {}", "topk": "topk:{}"}
ROWS_OF_50 = 50_000 * 300  # crops of ImageNet-1K at 50 images per class


def collect(run):
    """Write the results of a run's students, {form of their labels: results.json} -> the file."""
    dataset = run.name.removeprefix("labels_")
    found = {}
    for path in sorted(run.glob("students/*/results.json")):
        text = path.read_text(encoding="utf-8").replace(f"{ROOT}/", "")
        found[path.parent.name.replace(":", "")] = json.loads(text)
    if not found or dataset not in DATASETS:
        raise UserError(f"{run}: no run of sh results/labels/digits.sh or cifar10.sh, which train students")
    path = FOLDER / f"{dataset}.json"
    write_json(path, found)
    return path


def gigabytes(size):
    return f"{size / 1e9:.3g} GB" if size else "0"


def form_of(key, words=WORDS):
    """'keep0.3' -> 'fp16, pool of 0.3 of the epochs', 'topk5' -> 'topk:5': a student's key in words."""
    for start, text in words.items():
        if key.startswith(start):
            return text.format(key.removeprefix(start))
    return key


def cost_table(measured):
    """Bytes of ImageNet-1K in each codec, and what it changes."""
    rows = []
    for name, size in measured["sizes"]["50"].items():
        # Packed, and computed anew, logits are those that fp16 stores: recipe_note.
        error = measured["error"].get({"fp16, packed": "fp16", "none": "fp16"}.get(name, name))
        changes = [f"{error[key]:.3g}" if error else "-" for key in ("target", "gradient", "cosine")]
        crop = f"{size / ROWS_OF_50:,.0f}" if error else "-"  # not of a part of the epochs
        rows.append([name, crop, *(gigabytes(measured["sizes"][ipc][name]) for ipc in ("10", "50", "200")),
                     *changes])
    head = ["labels", "bytes a crop", "IPC 10", "IPC 50", "IPC 200", "error of the target", "of the gradient",
            "cosine"]
    return table(head, rows)


def reading_table(measured):
    """How fast the layouts are read."""
    rows = [["fp16 as released" if name == "released" else f"{name}, packed", f"{each['bytes'] / 1e6:.1f} MB",
             str(each["files"]), f"{each['cold epochs/s']:g}", f"{each['warm epochs/s']:g}"]
            for name, each in measured["reading"].items()]
    return table(["layout", "an epoch", "files", "cold, epochs a second", "warm"], rows)


def half_note(measured):
    """What a teacher in half precision changes, to compare with."""
    error = measured["error"]["bf16 teacher"]
    return (f"A teacher that labels in bf16, and not in float32, changes the target by {error['target']:.2g} "
            f"and the gradient by {error['gradient']:.2g}.")


def recipe_note(measured):
    """What `none` costs beside a student."""
    found = measured["recipe"]
    same = all(found[precision]["same bits"] for precision in ("fp32", "bf16"))
    return (f"`none`: of 100 crops at 224 pixels MobileNetV2 computes the labels in "
            f"{found['fp32']['label once, s']:g} s of a core each time, in bf16 in "
            f"{found['bf16']['label once, s']:g} s; a ResNet-18 student takes "
            f"{found[STUDENT_SECONDS]:g} s for its two passes, and reading them takes "
            f"{found['fp32']['read, s']:.2g} s. Computed again they are {'' if same else 'not '}the bits "
            f"that fp16 stores, in float32 and in bf16.")


def read_students():
    """-> {data set: {form: results}}, of those that have been trained."""
    paths = {dataset: FOLDER / f"{dataset}.json" for dataset in DATASETS}
    return {dataset: read_json(path) for dataset, path in paths.items() if path.exists()}


def student_table(dataset, found):
    """Accuracy and bytes of the students of a data set."""
    rows = [[form_of(key), f"{each['label_bytes']:,}", accuracy(each), str(len(each["seeds"]))]
            for key, each in sorted(found.items(), key=lambda item: -item[1]["label_bytes"])]
    protocol = next(iter(found.values()))["protocol"]
    title = (f"{NAMES[dataset]}, {protocol['labels']['num_images']} images, "
             f"students of {protocol['epochs']} epochs with the stem {protocol['stem']}, "
             f"`sh results/labels/{dataset}.sh`:")
    return f"{title}\n\n{table(['labels', 'bytes', 'top-1', 'seeds'], rows)}"


def page_tables():
    """The part of docs/labels.md between its marker comments."""
    measured = read_json(FOLDER / "measured.json")
    trained = read_students()
    students = [student_table(dataset, found) for dataset, found in trained.items()]
    missing = [f"`sh results/labels/{dataset}.sh`" for dataset in DATASETS if dataset not in trained]
    note = f"Not run yet: {' and '.join(missing)}." if missing else None
    parts = [cost_table(measured), half_note(measured), reading_table(measured), recipe_note(measured)]
    return "\n\n".join(filter(None, [*parts, *students, note]))


def draw_forms(axis, forms, **labels):
    """A line for each form of labels, the heaviest on top. forms: [(its name, its bytes in words, what it
    gives, the spread of that, whether its epochs are a pool)]; labels: of the axis."""
    for place, (_, _, value, spread, is_pool) in enumerate(forms):
        axis.errorbar(value, place, xerr=spread, fmt="s" if is_pool else "o", markersize=7, capsize=4,
                      color=ORANGE if is_pool else BLUE)
    axis.set_yticks(range(len(forms)), [f"{name}   {weight}" for name, weight, *_ in forms])
    axis.set_ylim(len(forms) - 0.4, -0.6)
    axis.set(**labels)


def draw():
    """-> the picture: what each form changes of a target, and the top-1 of students where they are there."""
    from matplotlib.figure import Figure
    measured = read_json(FOLDER / "measured.json")
    trained = read_students()
    most = max(map(len, trained.values()), default=0)
    picture = Figure(figsize=(8.3, 3.2 + 0.4 * most), layout="constrained")  # inches, of 200 dots
    rows = [["imagenet1k"] * max(1, len(trained)), *([list(trained)] if trained else [])]
    axes = picture.subplot_mosaic(rows, height_ratios=[7, most][:len(rows)])

    sizes = measured["sizes"]["50"]
    forms = [(name, gigabytes(sizes[name]), measured["error"][name]["target"], None, False)
             for name in sorted(measured["error"].keys() & sizes.keys(), key=lambda name: -sizes[name])]
    draw_forms(axes["imagenet1k"], forms, xscale="log", xlabel="L1 distance of the target, at most 2",
               title="ImageNet-1K, IPC 50")
    for dataset, found in trained.items():
        forms = [(form_of(key, SHORT), f"{each['label_bytes'] / 1e3:.0f} kB", each["top1"]["mean"],
                  each["top1"]["std"], "label_draw" in each["protocol"])
                 for key, each in sorted(found.items(), key=lambda item: -item[1]["label_bytes"])]
        draw_forms(axes[dataset], forms, xlabel="top-1, percent", title=NAMES[dataset])
    return picture


def main(args):
    if args.run:
        print(f"{collect(Path(args.run))}: written")
    set_style()
    write_bytes(PAGE, with_tables(PAGE, page_tables(), START).encode())
    save_png(PICTURE, to_picture(draw()), 64)
    print(f"{PAGE}, {PICTURE}: written")


def get_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--run", type=os.path.abspath, metavar="DIR", help="a run with students/ to collect")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
