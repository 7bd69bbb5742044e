"""Plots by matplotlib, in one style: the curves on the page about a run, and those of docs/pictures.md."""
import io
import math
import re
import statistics
import textwrap
from itertools import cycle

from PIL import Image

from report.data import maker_of, teacher_facts
from report.html import Html, element, note
from report.rows import NAMES, published
from sre2l.run.errors import UserError
from sre2l.run.log import read_metrics

INK = "#1f2733"
GREY = "#5b6675"
LINE = "#e6e9ee"
BLUE = "#2868c7"
ORANGE = "#d9660a"
GREEN = "#14895f"
PINK = "#cc79a7"
COLOURS = (BLUE, GREEN, ORANGE, "#9068d6", "#d6517d", "#a8861c")  # of a run's students, in their order
PAGE_COLOURS = {INK: "currentColor", GREY: "var(--soft)", LINE: "var(--line)"}  # what the page has for them
STYLE = {"font.size": 13, "axes.edgecolor": GREY, "axes.labelcolor": INK, "text.color": INK,
         "xtick.color": GREY, "ytick.color": GREY, "axes.spines.top": False, "axes.spines.right": False,
         "axes.grid": True, "grid.color": LINE, "axes.axisbelow": True,
         "axes.titlesize": 14, "axes.titleweight": "bold",
         "legend.frameon": False, "legend.fontsize": 12, "savefig.dpi": 200,
         "svg.fonttype": "none", "svg.hashsalt": "the same SVG every time"}

# Text, colour, marker, shift to the right in points. The colours differ for the colour-blind as well.
KINDS = {"soft": ("distilled images, soft labels (ours)", BLUE, "o", 0),
         "real": ("random real images, soft labels", GREEN, "s", 7),
         "picked": ("picked real images, soft labels", PINK, "P", 14),
         "hard": ("the same images as ours, hard labels", ORANGE, "^", -7)}
PUBLISHED_TEXT = "published, ResNet-18"
TEACHER_TEXT = "teacher, all real images"
TERMS = {"ce": ("cross entropy, nats", BLUE), "r_bn_bn": ("r_bn x BatchNorm distance", ORANGE)}


def set_style():
    """Give matplotlib our style in place of the user's. Raises UserError where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("matplotlib is not installed and draws the plots: "
                        "python3 -m pip install matplotlib") from None
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(STYLE)


def make_panels(count):
    """-> a figure with `count` axes, two beside each other at most, as wide as a README."""
    from matplotlib.figure import Figure
    rows = -(-count // 2)
    panels = Figure(figsize=(8.3, 3.7 * rows + 0.5), layout="constrained")  # inches, of 200 dots
    axes = panels.subplots(rows, min(count, 2), squeeze=False)
    for empty in axes.flat[count:]:
        empty.remove()
    return panels, axes.flat[:count]


def legend_above(panels, axes, order):
    """One legend for all panels: what they show, in this order of texts."""
    found = {text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels())}
    entries = {text: found[text] for text in order if text in found}
    panels.legend(entries.values(), entries, loc="outside upper center", ncols=2, columnspacing=1.6,
                  handletextpad=0.6)


def to_picture(figure):
    """What matplotlib has drawn, as a Pillow image."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return Image.open(data).convert("RGB")


def measured(rows, kind):
    """-> {row: (mean, spread)} of the ResNet-18 students of one kind, by images per class."""
    found = {}
    for row in rows:
        is_of_kind = row.ipc and row.model == "resnet18" and not (kind == "soft" and row.is_picked)
        results = row.results(kind) if is_of_kind else None
        if results:
            found[row] = (results["top1"]["mean"], results["top1"]["std"] or 0)
    return dict(sorted(found.items(), key=lambda item: item[0].ipc))


def plot_accuracies(panels, axis, rows, places, line="-"):
    """Draw our students of one panel with their spreads, and the published students.

    places: {row: where on the axis it stands}; line: between the students of one kind."""
    from matplotlib.transforms import offset_copy

    # The kinds of students stand a little aside of each other, so that their spreads do not overlap.
    for kind, (text, colour, marker, aside) in KINDS.items():
        points = measured(rows, kind)
        if points:
            mean, spread = zip(*points.values())
            place = offset_copy(axis.transData, panels, aside, units="points")
            axis.errorbar([places[row] for row in points], mean, spread, transform=place, color=colour,
                          marker=marker, markersize=7, linewidth=2, linestyle=line, capsize=5, capthick=2,
                          label=text)


def plot_published(axis, theirs):
    """Draw published students. theirs: {place: top-1 as text}."""
    if theirs:
        heights = [float(text.split()[0]) for text in theirs.values()]
        axis.plot(list(theirs), heights, "D", color=INK, markerfacecolor="none", markersize=9,
                  markeredgewidth=2, label=PUBLISHED_TEXT)


def plot_by_ipc(panels, axis, rows):
    """Top-1 against images per class, of one data set and recipe, beside the teacher, who saw all images."""
    theirs = published(rows[0].word, "resnet18")
    axis.set(title=rows[0].title, xlabel="images per class", xscale="log")
    plot_accuracies(panels, axis, rows, {row: row.ipc for row in rows})
    plot_published(axis, theirs)
    teachers = [row.teacher_top1() for row in rows if row.teacher_top1() is not None]
    if teachers:
        axis.axhline(teachers[0], color=GREY, linestyle=(0, (4, 3)), linewidth=1.6, label=TEACHER_TEXT)
    ticks = sorted({*theirs, *(row.ipc for row in rows if row.ipc and row.results())})
    axis.set_xticks(ticks, map(str, ticks))
    axis.set_xlim(ticks[0] / 1.5, ticks[-1] * 1.5)
    axis.minorticks_off()


def plot_recipes(panels, axis, rows):
    """Top-1 of the recipes of one data set at one number of images per class, side by side."""
    places = {row: place for place, row in enumerate(rows)}
    axis.set(title=f"{NAMES[rows[0].dataset]}, {rows[0].ipc} images per class", xlabel="recipe")
    plot_accuracies(panels, axis, rows, places, "none")
    plot_published(axis, {places[row]: row.published for row in rows if row.published != "none"})
    axis.set_xticks(list(places.values()), [row.recipe or "SRe2L" for row in rows], rotation=40)
    axis.set_xlim(-0.5, len(rows) - 0.5)


def divide(rows):
    """What the panels of accuracies show -> [(function that draws it, its rows)].

    A data set, and a recipe with several numbers of images per class, has a panel over these; recipes with
    one share a panel, where SRe2L's settings stand beside them."""
    shown = [row for row in rows if row.model == "resnet18" and row.ipc and row.results()]
    by_word = {}
    for row in shown:
        by_word.setdefault(row.word, []).append(row)
    over_ipc = {word for word, own in by_word.items() if len(own) > 1 or not own[0].recipe}
    found = [(plot_by_ipc, [row for row in rows if row.word == word]) for word in by_word if word in over_ipc]
    groups = dict.fromkeys((row.dataset, row.ipc) for row in shown if row.word not in over_ipc)
    return found + [(plot_recipes, [row for row in shown if (row.dataset, row.ipc) == group])
                    for group in groups]


def plot_results(rows):
    """Top-1 of students with their controls: see `divide`."""
    shown = divide(rows)
    panels, axes = make_panels(len(shown))
    for axis, (plot, own) in zip(axes, shown):
        axis.set(ylabel="top-1, percent", ylim=(0, 105))
        plot(panels, axis, own)
    legend_above(panels, axes, [text for text, *_ in KINDS.values()] + [PUBLISHED_TEXT, TEACHER_TEXT])
    return panels


def plot_steps(steps):
    """Top-1 of one step after the other, as bars. steps: {what it is: results}."""
    from matplotlib.figure import Figure
    panels = Figure(figsize=(8.3, 0.5 * len(steps) + 0.9), layout="constrained")
    axis = panels.subplots()
    for place, results in enumerate(steps.values()):
        mean = results["top1"]["mean"]
        spread = results["top1"]["std"]
        axis.barh(place, mean, 0.66, xerr=spread, color=BLUE, error_kw={"ecolor": INK, "capsize": 4})
        axis.text(mean + (spread or 0) + 1, place, f"{mean:.1f}", va="center_baseline")
    axis.set_yticks(range(len(steps)), [textwrap.fill(label, 32) for label in steps])
    axis.set(xlabel="top-1, percent", xlim=(0, 1.12 * max(found["top1"]["mean"] for found in steps.values())))
    axis.tick_params("y", length=0, labelcolor=INK)
    axis.grid(axis="y", visible=False)
    axis.invert_yaxis()
    return panels


def plot_protocols(grid):
    """A heat map: sets of images, each under every protocol. grid: of rows.read_grid."""
    from matplotlib.figure import Figure
    heights = [[results["top1"]["mean"] if results else math.nan for results in line.values()]
               for line in grid.values()]
    known = [height for line in heights for height in line if not math.isnan(height)]
    dark = 0.4 * min(known) + 0.6 * max(known)  # from there on white words are read more easily

    panels = Figure(figsize=(8.3, 0.62 * len(grid) + 1.3), layout="constrained")
    axis = panels.subplots()
    axis.imshow(heights, cmap="Blues", aspect="auto")
    for place, line in enumerate(heights):
        for column, height in enumerate(line):
            axis.text(column, place, "not run" if math.isnan(height) else f"{height:.1f}", ha="center",
                      va="center_baseline", color="white" if height > dark else INK)
    columns = list(next(iter(grid.values())))
    axis.set_xticks(range(len(columns)), [textwrap.fill(name, 14) for name in columns])
    axis.set_yticks(range(len(grid)), grid)
    axis.set(xlabel="protocol of the student (cells: top-1, percent)", ylabel="images")
    axis.grid(visible=False)
    axis.tick_params(length=0, labelcolor=INK)
    return panels


def mean_terms(lines):
    """Lines of recover's metrics -> {iteration: {'ce': mean over the batches, 'r_bn_bn': ...}}."""
    # After a kill an iteration of a batch may stand there twice: the last line counts.
    terms = [values for values in lines if "iteration" in values]
    last = {(values["iteration"], values["unit"]): values for values in terms}

    found = {}
    for (iteration, _), values in sorted(last.items()):
        found.setdefault(iteration, []).append(values)
    return {iteration: {term: statistics.mean(values[term] for values in batches) for term in TERMS}
            for iteration, batches in found.items()}


def has_terms(row):
    """Has recover left its terms of these images, by SRe2L's settings? pick's metrics are scores."""
    return bool(row.ipc) and not row.recipe and any("iteration" in values for values in row.metrics("images"))


def plot_terms_of(axis, terms):
    """Draw CE and r_bn * BN over the iterations. terms: as mean_terms gives them."""
    for term, (text, colour) in TERMS.items():
        heights = [values[term] for values in terms.values()]
        axis.plot(list(terms), heights, color=colour, linewidth=2.2, label=text)
    axis.set(xlabel="iteration", ylabel="part of the loss", yscale="log")
    axis.margins(x=0.02)


def plot_terms(rows):
    """CE and r_bn * BN over the iterations, a panel for each data set's largest row."""
    largest = {row.dataset: row for row in rows if has_terms(row)}
    panels, axes = make_panels(len(largest))
    for axis, row in zip(axes, largest.values()):
        plot_terms_of(axis, mean_terms(row.metrics("images")))
        axis.set_title(f"{NAMES[row.dataset]}, IPC {row.ipc}")
    legend_above(panels, axes, [text for text, _ in TERMS.values()])
    return panels


def inline(figure, name, alt):
    """A figure -> SVG as an element of a page, in the page's colours. name: unique on the page."""
    data = io.StringIO()
    figure.savefig(data, format="svg", transparent=True,
                   metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = data.getvalue()
    size = re.search(r'viewBox="([^"]+)"', svg)[1]
    svg = svg[svg.index(">", svg.index("<svg")) + 1:].replace("</svg>", "")

    # No rules for the whole page, no id that another figure has, and ink that is light on a dark page.
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for ours, of_page in PAGE_COLOURS.items():
        svg = svg.replace(ours, of_page)
    return element("svg", Html(svg), viewBox=size, role="img", aria_label=alt)


def page_figure(name, title, alt, plot, *args):
    """A figure of the page, or a sentence where there is nothing to draw. plot(axis, *args) draws it."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(6.6, 4.6), layout="constrained")
    axis = figure.subplots()
    plot(axis, *args)
    if not axis.lines:
        return element("figure", element("h3", title), note("There is nothing to draw yet."))
    for words in axis.legend().get_texts():
        words.set_parse_math(False)  # a student's folder may be called $x$
    return element("figure", element("h3", title), inline(figure, name, alt))


def plot_run_terms(axis, run):
    """Draw the terms of recover's loss, from the metrics of every process that computed images."""
    paths = run.images.parent.glob(f"{run.images.name}.metrics*.jsonl")
    terms = mean_terms([values for path in sorted(paths) for values in read_metrics(path)])
    if terms:
        plot_terms_of(axis, terms)


def plot_students(axis, run, key, level=None):
    """Draw a metric of every student over the epochs, a line for each seed. level: the teacher's, or None."""
    for student, colour in zip(run.students, cycle(COLOURS)):
        by_seed = {}
        for (seed, epoch), values in sorted(student.metrics.items()):
            if key in values:
                by_seed.setdefault(seed, {})[epoch] = values[key]
        for number, points in enumerate(by_seed.values()):
            name = f"{student.name}: {student.results['protocol']['loss']}" if key == "loss" else student.name
            axis.plot(points.keys(), points.values(), color=colour, linewidth=2,
                      marker="o" if len(points) < 15 else None, label=name if number == 0 else None)
    if level is not None and axis.lines:
        axis.axhline(level, color=GREY, linestyle=(0, (4, 3)), linewidth=1.6, label="teacher")
    axis.set_xlabel("epoch")


def page_curves(run):
    """All figures of a run's page; without matplotlib one sentence."""
    try:
        set_style()
    except UserError:
        return note("pip install matplotlib adds the curves: the terms of recover's loss, the students' loss "
                    "and top-1. Their numbers stand in the files metrics.jsonl.")
    _, teacher_top1, _ = teacher_facts(run)
    names = ", ".join(student.name for student in run.students)
    figures = [
        page_figure("loss", "Students: loss", f"Loss over the epochs: {names}", plot_students, run, "loss"),
        page_figure("top1", "Students: top-1, percent", f"Top-1 over the epochs: {names}",
                    plot_students, run, "top1", teacher_top1)]
    if maker_of(run.images) == "recover":  # picked images have no loss
        terms = page_figure("terms", "Recover: terms of the loss, mean over the batches",
                            "Cross entropy and BatchNorm term of recover's loss over the iterations",
                            plot_run_terms, run)
        figures.insert(0, terms)
    return element("div", *figures, class_="figures")
