"""Plots of the rows of results/ by matplotlib: those of docs/pictures.md."""
import io
import math
import textwrap

from PIL import Image

from report.curves import BLUE, GREEN, GREY, INK, ORANGE, PINK, TERMS, mean_terms, plot_terms_of
from report.rows import name_of, published

# Text, colour, marker, shift to the right in points. The colours differ for the colour-blind as well.
KINDS = {"soft": ("distilled images, soft labels (ours)", BLUE, "o", 0),
         "real": ("random real images, soft labels", GREEN, "s", 7),
         "picked": ("picked real images, soft labels", PINK, "P", 14),
         "hard": ("the same images as ours, hard labels", ORANGE, "^", -7)}
PUBLISHED_TEXT = "published, ResNet-18"
TEACHER_TEXT = "the teacher"


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
    teachers = {row.ipc: row.teacher_top1() for row in rows if row.teacher_top1() is not None}
    dashed = {"color": GREY, "linestyle": (0, (4, 3)), "linewidth": 1.6, "label": TEACHER_TEXT}
    if len(set(teachers.values())) == 1:
        axis.axhline(*set(teachers.values()), **dashed)
    elif teachers:  # each number of images has its own
        axis.plot(list(teachers), list(teachers.values()), **dashed)
    ticks = sorted({*theirs, *(row.ipc for row in rows if row.ipc and row.results())})
    axis.set_xticks(ticks, map(str, ticks))
    axis.set_xlim(ticks[0] / 1.5, ticks[-1] * 1.5)
    axis.minorticks_off()


def plot_recipes(panels, axis, rows):
    """Top-1 of the recipes of one data set at one number of images per class, side by side."""
    places = {row: place for place, row in enumerate(rows)}
    axis.set(title=f"{name_of(rows[0].dataset)}, {rows[0].ipc} images per class", xlabel="recipe")
    plot_accuracies(panels, axis, rows, places, "none")
    plot_published(axis, {places[row]: row.published for row in rows if row.published != "none"})
    axis.set_xticks(list(places.values()), [row.recipe or "SRe2L" for row in rows], rotation=40)
    axis.set_xlim(-0.5, len(rows) - 0.5)


def divide(rows):
    """What the panels of accuracies show -> [(function that draws it, its rows)].

    A data set, and a recipe with several numbers of images per class, has a panel over these; recipes with
    one share a panel, where SRe2L's settings stand beside them. A panel for one row alone is left out, unless
    there is no other."""
    shown = [row for row in rows if row.model == "resnet18" and row.ipc and row.results()]
    by_word = {}
    for row in shown:
        by_word.setdefault(row.word, []).append(row)
    over_ipc = {word for word, own in by_word.items() if len(own) > 1 or not own[0].recipe}
    found = [(plot_by_ipc, [row for row in rows if row.word == word]) for word in by_word if word in over_ipc]
    groups = dict.fromkeys((row.dataset, row.ipc) for row in shown if row.word not in over_ipc)
    beside = [(plot_recipes, [row for row in shown if (row.dataset, row.ipc) == group]) for group in groups]
    return found + [panel for panel in beside if len(panel[1]) > 1] or beside


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


def has_terms(row):
    """Has recover left its terms of these images, by SRe2L's settings? pick's metrics are scores."""
    return bool(row.ipc) and not row.recipe and any("iteration" in values for values in row.metrics("images"))


def plot_terms(rows):
    """CE and r_bn * BN over the iterations, a panel for each data set's largest row."""
    largest = {row.dataset: row for row in rows if has_terms(row)}
    panels, axes = make_panels(len(largest))
    for axis, row in zip(axes, largest.values()):
        plot_terms_of(axis, mean_terms(row.metrics("images")))
        axis.set_title(f"{name_of(row.dataset)}, IPC {row.ipc}")
    legend_above(panels, axes, [text for text, _ in TERMS.values()])
    return panels
