"""Curves by matplotlib, in one style: those on the page about a run."""
import io
import re
import statistics
from itertools import cycle

from report.data import maker_of, teacher_facts
from report.html import Html, element, note
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


def plot_terms_of(axis, terms):
    """Draw CE and r_bn * BN over the iterations. terms: as mean_terms gives them."""
    for term, (text, colour) in TERMS.items():
        heights = [values[term] for values in terms.values()]
        axis.plot(list(terms), heights, color=colour, linewidth=2.2, label=text)
    axis.set(xlabel="iteration", ylabel="part of the loss", yscale="log")
    axis.margins(x=0.02)


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
