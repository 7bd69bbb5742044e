"""The result tables, rebuilt from results/.

Run: python3 -m report.tables      (a second)
Result: between its marker comments README.md has accuracies and controls, results/README.md the rest.
"""
import re
import statistics

from report.rows import ABLATIONS, ROWS, TABLES, Row, name_of, read_grid, results_of
from sre2l.run.errors import UserError
from sre2l.run.files import write_bytes
from sre2l.run.flags import Parser
from sre2l.run.log import in_bytes
from sre2l.run.paths import ROOT, student_name
from sre2l.run.start import run_script

START = "<!-- from results/, by python3 -m report.tables -->"
END = "<!-- end of the tables -->"


def accuracy(results):
    """'96.32 +- 0.19' of the last epoch, the spread only over several seeds; a dash without results."""
    if results is None:
        return "-"
    mean = results["top1"]["mean"]
    std = results["top1"]["std"]
    return f"{mean:.2f}" if std is None else f"{mean:.2f} +- {std:.2f}"


def control(results, ours):
    """As `accuracy`, with '(2)' behind it where it has fewer seeds than ours, 2."""
    text = accuracy(results)
    return text if results is None or len(results["seeds"]) >= len(ours["seeds"]) else \
        f"{text} ({len(results['seeds'])})"


def protocol(results):
    """How the student was trained, in a table's words."""
    found = results["protocol"]
    labels = found["labels"]
    optimizer = found["optimizer"]
    batch = min(labels["batch_size"], labels["num_images"])
    mix = labels["mix"] if labels["mix"] not in (None, "none") else "no mix"
    words = [f"{found['epochs']} epochs", f"batch {batch}", mix, f"{optimizer['name']} {optimizer['lr']:g}"]
    if found["schedule"] != "cosine per epoch":
        words.append(found["schedule"])
    if found["temperature"] is not None:
        words.append(f"T {found['temperature']:g}")
    if found["loss"] != "KL":
        words.append("loss x T^2" if found["loss"] == "KL times T^2" else found["loss"])
    if "ema" in found:
        words.append(f"weights averaged by {found['ema']:g}")
    if "label_draw" in found:
        words.append(f"{found['label_draw']} of {labels['pool_epochs']} epochs of labels")
    if "codec" in labels:
        words.append(f"labels {labels['codec']}")
    return ", ".join([*words, found["precision"]])


def devices_of(log):
    """Where the runs that wrote this log ran, as a table says it; '' for an empty log."""
    found = re.findall(r'^\{"python": .*"device": "([^"]+)"', log, re.M)
    names = [re.sub(r"^cpu, (\d+) threads$", r"\1 CPU threads", name).replace("1 CPU threads", "1 CPU thread")
             if name.startswith("cpu, ") else name for name in found]
    return " and ".join(dict.fromkeys(names))


def hardware(row):
    """The seconds of every stage that is known, by where it ran.

    'NVIDIA H200: recover 17; 2 CPU threads: relabel 314, validate 1600'"""
    outputs = {"squeeze": "teacher", "recover": "images", "relabel": "labels",
               "validate": student_name(row.model)}
    places = {}
    for stage, seconds in row.results()["seconds"].items():
        if seconds is not None:
            name = "pick" if stage == "recover" and row.is_picked else stage
            places.setdefault(devices_of(row.log(outputs[stage])), []).append(f"{name} {seconds:.0f}")
    return "; ".join((f"{place}: " if place else "") + ", ".join(stages) for place, stages in places.items())


def table(head, rows):
    """Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def title(row):
    """Data set, IPC and student: the first cells of a row."""
    return [row.title, str(row.ipc or "-"), name_of(row.model) + ("" if row.ipc else " (teacher)")]


def main_row(row):
    """A row's cells in the README's table; None where it has not been run, or has no accuracy."""
    results = row.results() if row.ipc else None
    teacher = row.teacher_top1()
    if results is not None:
        ours = f"**{accuracy(results)}**"
        controls = [control(row.results(kind), results) for kind in ("real", "picked", "hard")]
        if row.is_picked:
            controls[1] = "= ours"
        seeds = str(len(results["seeds"]))
    elif not row.ipc and teacher is not None:
        ours = f"{teacher:.2f}"
        controls = ["", "", ""]
        seeds = "1"
    else:
        return None
    known = "" if teacher is None or not row.ipc else f"{teacher:.2f}"
    link = f"[{row.folder}](results/{row.folder})"
    return [*title(row), row.published, ours, *controls, seeds, known, link]


def title_in_words(row):
    name = row.title + (f" IPC {row.ipc}" if row.ipc else "")
    return f"{name}, {name_of(row.model)}" + ("" if row.ipc else " as the teacher")


def is_there(row):
    """True where results/ has a number for this row."""
    return main_row(row) is not None or images_alone(row) is not None


def images_alone(row):
    """What is known of a row's images where no student was trained on them; None without images."""
    last = {values["unit"]: values["ce"] for values in row.metrics("images") if "ce" in values}
    if not row.ipc or row.results() or not last:
        return None
    seen = row.read("results.json").get("recognised")
    if not seen:  # of crops, so of the same images it differs between iterations
        return f"images alone: cross entropy {statistics.mean(last.values()):.2f} at the teacher in the end"
    found = [f"{name_of(arch)}{' (the teacher)' if arch == row.model else ''} finds the class in "
             f"{each['top1']:g} % of {seen['num_images']}, among its first five in {each['top5']:g} %"
             for arch, each in seen["networks"].items()]
    return f"images alone: {'; '.join(found)}"


def notes(texts):
    """{row: what a reader must know beside its numbers} -> a list in markdown."""
    return "\n".join(f"- {title_in_words(row)}: {text}." for row, text in texts.items() if text)


def missing():
    """A sentence about the rows that have not been run, with what is published for them."""
    texts = [title_in_words(row) + (f" ({row.published} published)" if row.published != "none" else "")
             for row in ROWS if not is_there(row)]
    return f"Not run yet: {'; '.join(texts)}." if texts else ""


def readme_tables():
    """The part of README.md: accuracies with their controls, and what is published where that is anything."""
    head = ["data set", "IPC", "student", "published by SRe2L", "ours", "random real images", "picked real",
            "hard labels", "seeds", "teacher", "row"]
    rows = [head, *filter(None, map(main_row, ROWS))]
    place = head.index("published by SRe2L")
    if all(cells[place] == "none" for cells in rows[1:]):
        rows = [cells[:place] + cells[place + 1:] for cells in rows]
    return table(rows[0], rows[1:])


def protocol_row(row):
    """A row's cells in the table of protocols."""
    results = row.results()
    sizes = [in_bytes(results["image_bytes"]), in_bytes(results["label_bytes"])]
    command = f"`sh results/{row.folder}/commands.sh`"
    return [*title(row), *sizes, protocol(results), hardware(row), command]


def ablation_rows(ablation):
    """A line for each value of an ablation that has been run."""
    name = name_of(ablation["dataset"])
    found = [(text, value.partition(":")[0], results_of(value)) for text, value in ablation["values"].items()]
    return [[name, ablation["varied"], text, accuracy(results), f"[{folder}]({folder})"]
            for text, folder, results in found if results]


def caption(about, what):
    """The sentence above a table of one folder. about: its entry in rows.json."""
    folder = about["folder"]
    return f"{name_of(about['dataset'])}, {what} ([{folder}]({folder})): {about['tells']}.\n\n"


def grid_table():
    """Sets of images under protocols of students, '' where there are none."""
    grid = read_grid()
    if not grid:
        return ""
    about = TABLES["protocols"]
    rows = [[images, *map(accuracy, line.values())] for images, line in grid.items()]
    what = "a set of images in each line and a protocol of the student in each column"
    return caption(about, what) + table(["images", *next(iter(grid.values()))], rows)


def cost_table():
    """What steps of recover buy: a line for each set of images, '' where there are none."""
    about = TABLES["cost"]
    row = Row(about["folder"], about["dataset"])
    lines = []
    for key in about["images"]:
        results = results_of(f"{row.folder}:students/{key}")
        made = row.settings(f"{key}/images", "manifest")
        if results and made:
            steps = made.get("iteration", 0)
            begin = "real images" if made.get("init") or made.get("source") else "noise"
            seconds = results["seconds"]["recover"] if steps else 0
            took = "-" if seconds is None else f"{seconds:.0f}"
            work = steps * results["protocol"]["labels"]["num_images"]
            lines.append([begin, str(steps), f"{work:,}", took, accuracy(results)])
    if not lines:
        return ""
    head = ["begin", "steps", "image-iterations", "seconds of recover", "top-1"]
    return caption(about, "what steps of recover buy") + table(head, lines)


def ablation_tables():
    """The part of results/README.md: how the students of the README's table were trained, what to know of
    each row, settings varied."""
    trained = [protocol_row(row) for row in ROWS if row.ipc and row.results()]
    untrained = {row: "; ".join(filter(None, [images_alone(row), row.note]))
                 for row in ROWS if images_alone(row)}
    varied = [cells for ablation in ABLATIONS for cells in ablation_rows(ablation)]
    head = ["data set", "IPC", "student", "images", "labels", "protocol", "hardware: seconds per stage",
            "command"]
    parts = [table(head, trained),
             notes({row: row.note for row in ROWS if main_row(row)} | untrained),
             missing(),
             grid_table(),
             cost_table(),
             "A setting varied, one student each where there is no spread:",
             table(["data set", "varied", "value", "top-1", "row"], varied),
             "What these tell:",
             "\n".join(f"- {name_of(each['dataset'])}, {each['varied']}: {each['tells']}."
                       for each in ABLATIONS)]
    return "\n\n".join(filter(None, parts))


def with_tables(path, tables, start=START):
    """The text of a file with new tables between its marker comments."""
    text = path.read_text(encoding="utf-8")
    if text.count(start) != 1 or text.count(END) != 1:
        raise UserError(f"{path}: the tables stand between the lines {start!r} and {END!r}, each once; "
                        f"bring them back")
    return f"{text.partition(start)[0]}{start}\n{tables}\n{END}{text.partition(END)[2]}"


def make_pages():
    """-> {README.md and results/README.md: their text with the tables of today's rows}."""
    made = {ROOT / "README.md": readme_tables(), ROOT / "results" / "README.md": ablation_tables()}
    return {path: with_tables(path, tables) for path, tables in made.items()}


def main(args):
    pages = make_pages()
    for path, text in pages.items():
        write_bytes(path, text.encode())
    print(f"{', '.join(map(str, pages))}: {sum(map(is_there, ROWS))} of {len(ROWS)} rows have results")


def get_args(argv=None):
    return Parser(__doc__).parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
