"""Plots by matplotlib, an optional extra: accuracy against IPC, and the two terms of recover's loss over its iterations."""
import statistics

from report.canvas import BLUE, GREEN, GREY, INK, ORANGE
from report.tables import NAMES
from report.rows import PUBLISHED, read_results, read_teacher
from sre2l.run.errors import UserError
from sre2l.run.log import keyed

KINDS = {"soft": ("distilled images, soft labels (ours)", BLUE, "o", 0), "real": ("random real images, soft labels", GREEN, "s", 7),
         "hard": ("distilled images, hard labels", ORANGE, "^", -7)}  # text, colour, marker, points it stands aside
THEIRS, TEACHER, TERMS = "published, ResNet-18", "teacher, all real images", ("cross entropy, nats", "r_bn x BatchNorm distance")
WIDTH, HEIGHT, COLUMNS = 8.3, 3.7, 2  # inches, of 200 dots; panels side by side
STYLE = {"font.size": 13, "axes.edgecolor": GREY, "axes.labelcolor": INK, "text.color": INK, "xtick.color": GREY, "ytick.color": GREY,
         "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e9ee", "axes.axisbelow": True,
         "axes.titlesize": 14, "axes.titleweight": "bold", "legend.frameon": False, "legend.fontsize": 12, "savefig.dpi": 200}


def pyplot():
    """matplotlib's pyplot without a display. Raises UserError where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("matplotlib is not installed and draws the plots: python3 -m pip install matplotlib") from None
    matplotlib.use("agg")
    from matplotlib import pyplot
    pyplot.rcdefaults()
    pyplot.rcParams.update(STYLE)
    return pyplot


def make_panels(count):
    """-> a figure with `count` axes, two beside each other at most, as wide as a README."""
    rows, columns = -(-count // COLUMNS), min(count, COLUMNS)
    figure, axes = pyplot().subplots(rows, columns, figsize=(WIDTH, HEIGHT * rows + 0.5), layout="constrained", squeeze=False)
    for empty in axes.flat[count:]:
        empty.remove()
    return figure, axes.flat[:count]


def legend_above(figure, axes, order):
    """One legend for all panels: what they show, in this order of texts."""
    found = {text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels())}
    entries = {text: found[text] for text in order if text in found}
    figure.legend(entries.values(), entries, loc="outside upper center", ncols=2, columnspacing=1.6, handletextpad=0.6)


def measured(rows, kind):
    """-> sorted [(IPC, mean, spread)] of the ResNet-18 students of one kind."""
    found = [(row.ipc, read_results(row.path, kind)) for row in rows if row.ipc and row.model == "resnet18"]
    return sorted((ipc, results["top1"]["mean"], results["top1"]["std"] or 0) for ipc, results in found if results)


def plot_results(rows):
    """Top-1 against IPC, a panel for each data set that has a student: ours, both controls, published points, the teacher."""
    names = [name for name in dict.fromkeys(row.dataset for row in rows) if measured([row for row in rows if row.dataset == name], "soft")]
    figure, axes = make_panels(len(names))
    from matplotlib.transforms import offset_copy  # installed, or make_panels would have said
    for axis, name in zip(axes, names):
        own = [row for row in rows if row.dataset == name]
        ticks = set()
        for kind, (text, colour, marker, aside) in KINDS.items():
            if points := measured(own, kind):
                ipc, mean, spread = zip(*points)
                place = offset_copy(axis.transData, figure, aside, units="points")
                axis.errorbar(ipc, mean, spread, transform=place, color=colour, marker=marker, markersize=7, linewidth=2, capsize=5, capthick=2, label=text)
                ticks |= set(ipc)
        if published := PUBLISHED.get((name, "resnet18")):
            axis.plot(list(published), [float(text.split()[0]) for text in published.values()], "D", color=INK, markerfacecolor="none",
                      markersize=9, markeredgewidth=2, label=THEIRS)
            ticks |= set(published)
        teachers = [top1 for row in own if (top1 := read_teacher(row.path)) is not None]
        if teachers:
            axis.axhline(teachers[0], color=GREY, linestyle=(0, (4, 3)), linewidth=1.6, label=TEACHER)
        axis.set(title=NAMES[name], xlabel="images per class", xscale="log", ylabel="top-1, percent", ylim=(0, 105))
        axis.set_xticks(sorted(ticks), map(str, sorted(ticks)))
        axis.set_xlim(min(ticks) / 1.5, max(ticks) * 1.5)
        axis.minorticks_off()
    legend_above(figure, axes, [text for text, *_ in KINDS.values()] + [THEIRS, TEACHER])
    return figure


def read_terms(row):
    """The terms of a row's recovery -> {iteration: (CE, r_bn * BN)}, means over its batches."""
    found = {}
    for (_, iteration), values in sorted(keyed([row.path / "images.metrics.jsonl"], "unit", "iteration").items()):
        found.setdefault(iteration, []).append((values["ce"], values["r_bn_bn"]))
    return {iteration: tuple(map(statistics.mean, zip(*found[iteration]))) for iteration in sorted(found)}


def plot_terms(rows):
    """CE and r_bn * BN over the iterations, a panel for each data set's largest row."""
    chosen = {row.dataset: row for row in sorted((row for row in rows if row.ipc), key=lambda row: row.ipc)
              if (row.path / "images.metrics.jsonl").exists()}
    chosen = {row.dataset: chosen[row.dataset] for row in rows if row.dataset in chosen}
    figure, axes = make_panels(len(chosen))
    for axis, row in zip(axes, chosen.values()):
        terms = read_terms(row)
        for i, (text, colour) in enumerate(zip(TERMS, (BLUE, ORANGE))):
            axis.plot(list(terms), [values[i] for values in terms.values()], color=colour, linewidth=2.2, label=text)
        axis.set(title=f"{NAMES[row.dataset]}, IPC {row.ipc}", xlabel="iteration", ylabel="part of the loss", yscale="log")
        axis.margins(x=0.02)
    legend_above(figure, axes, TERMS)
    return figure
