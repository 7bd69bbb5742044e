"""The curves of a report, drawn by matplotlib as SVG that stands in the page and takes its colours of text from there."""
import io
import logging
import math
import re
from html import escape
from typing import NamedTuple

from recover.pictures import spread
from sre2l.run.files import sidecar
from sre2l.run.log import keyed
from report.data import teacher_facts
from report.html import Html, element, guarded, legend, note

COLOURS = ("#3987e5", "#d9732b", "#2a9d6f", "#9068d6", "#d6517d", "#a8861c")  # on white and on black; the next six are dashed
TERMS = ("ce", "r_bn_bn")
MOST_UNITS = 12  # whose curves are drawn, evenly spread
INK = "#010203"  # of axes and text, until the page's own takes its place


class Curve(NamedTuple):
    colour: str
    points: dict  # {x: y}
    dashed: bool = False


def colour(number):
    return COLOURS[number % len(COLOURS)]


def colour_numbers(students):
    """A number for each student: 0, 1, 2 for the first on distilled images with soft labels, with hard labels, on random real images, as in the README's
    plot, then 3, 4, ..."""
    found = []
    for student in students:
        kind = 2 if student.is_real else int(student.is_hard)
        found.append(max([2, *found]) + 1 if kind in found else kind)
    return found


def is_dashed(number):
    return bool(number // len(COLOURS) % 2)


def numbers(points, positive=False):
    """The points that can be drawn: finite, above 0 where the axis is a logarithm."""
    return {x: y for x, y in sorted(points.items()) if isinstance(y, (int, float)) and math.isfinite(y) and (y > 0 or not positive)}


def draw(name, curves, level, x_label, y_label, log):
    """-> SVG of lines over one pair of axes. level: a dashed horizontal line, or None. Raises ImportError without matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells that it looks for fonts
    data = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not the user's style
        matplotlib.rcParams.update({key: INK for key in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")})
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": name, "axes.spines.top": False, "axes.spines.right": False})
        canvas = Figure(figsize=(4.6, 3.1), layout="constrained")
        axes = canvas.subplots()
        for curve in curves:
            style = {"color": curve.colour, "linestyle": "--" if curve.dashed else "-", "marker": "o" if len(curve.points) < 15 else None}
            axes.plot(curve.points.keys(), curve.points.values(), linewidth=1.5, markersize=3.5, **style)
        if level is not None:
            axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (4, 3)), alpha=0.6)
        if log:
            axes.set_yscale("log")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(alpha=0.15)
        canvas.savefig(data, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return data.getvalue()


def inline(svg, name, alt):
    """A file of SVG -> an element for a page: no rules for the whole page, no ids that another figure has, the page's ink."""
    svg = svg[svg.index("<svg"):].replace(INK, "currentColor")
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    size = re.search(r'viewBox="[^"]+"', svg)[0]
    return Html(f'<svg {size} role="img" aria-label="{escape(alt)}">{svg[svg.index(">") + 1:]}')


def figure(name, title, curves, keys, alt, level=None, x_label="epoch", y_label="", log=False):
    """-> a figure with its legend; a sentence where there is nothing to draw. name: of its own on the page."""
    drawn = [curve._replace(points=numbers(curve.points, log)) for curve in curves]
    drawn = [curve for curve in drawn if curve.points]
    if not drawn:
        return element("figure", element("h3", title), element("figcaption", "There is nothing to draw yet."))
    svg = inline(draw(name, drawn, level, x_label, y_label, log), name, alt)
    return element("figure", element("h3", title), svg, element("figcaption", legend(keys)))


def recover_curves(run):
    """CE and r_bn * BN of recover's batches over the iterations."""
    paths = [sidecar(run.images, "metrics.jsonl"), *sorted(run.images.parent.glob(f"{run.images.name}.metrics.rank*.jsonl"))]
    lines = {key: values for key, values in keyed(paths, "unit", "iteration").items() if all(isinstance(values.get(term), float) for term in TERMS)}
    units = sorted({key[0] for key in lines})
    batches = [{key[1]: values for key, values in lines.items() if key[0] == unit} for unit in spread(units, MOST_UNITS)]
    curves = [Curve(colour(i), {at: values[term] for at, values in batch.items()}) for batch in batches for i, term in enumerate(TERMS)]
    alt = ""
    if batches:
        first, last = (batches[0][end(batches[0])] for end in (min, max))
        alt = (f"Terms of recover's loss from iteration {first['iteration']} to {last['iteration']}: CE from {first['ce']:.4g} to {last['ce']:.4g}, "
               f"r_bn * BN from {first['r_bn_bn']:.4g} to {last['r_bn_bn']:.4g}")
    which = f", {len(batches)} of {len(units)} batches" if len(units) > 1 else ""
    return figure("recover", f"Recover: terms of the loss{which}", curves, ((colour(0), "CE"), (colour(1), "r_bn · BN")), alt, x_label="iteration", log=True)


def student_curves(run, key, title, y_label, describe, level=None, log=False):
    """One of the metrics of every student over the epochs, a line for each seed. describe: a student -> its words in the legend; level: the
    teacher's, or None."""
    curves, keys, ends = [], [], []
    for i, student in zip(colour_numbers(run.students), run.students):
        seeds = sorted({seed for seed, _ in student.metrics})
        found = [{epoch: values[key] for (number, epoch), values in student.metrics.items() if number == seed and key in values} for seed in seeds]
        curves += [Curve(colour(i), points, is_dashed(i)) for points in found]
        keys.append((colour(i), f"{describe(student)}{' (dashed)' if is_dashed(i) else ''}"))
        ends += [f"{student.name} ends at {points[max(points)]:.4g}" for points in found[:1] if points]
    keys += [("currentColor", "teacher (dashed)")] if level is not None else []
    return figure(key, title, curves, keys, f"{title} over the epochs; {', '.join(ends)}", level, y_label=y_label, log=log)


def curves(run):
    """All figures of a run; without matplotlib one sentence."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return note("pip install matplotlib adds the curves: the terms of recover's loss, the students' loss and top-1. "
                    "Their numbers stand in the files metrics.jsonl.")
    _, teacher_top1, _ = teacher_facts(run)
    made = ((recover_curves, run),
            (student_curves, run, "loss", "Students: loss", "", lambda student: f"{student.name}: {student.results['protocol']['loss']}", None, True),
            (student_curves, run, "top1", "Students: top-1", "percent", lambda student: student.name, teacher_top1))
    return element("div", *(guarded(run.folder, *piece) for piece in made), class_="figures")
