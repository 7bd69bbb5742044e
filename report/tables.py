"""The README's result tables, rebuilt from results/.

Run: python3 -m report.tables      (a second) -> README.md, between its two marker comments
"""
import re
import statistics

from report.rows import ABLATIONS, ROWS, Row, read_results, read_teacher
from sre2l.run.files import read_json, write_bytes
from sre2l.run.flags import Parser
from sre2l.run.errors import UserError
from sre2l.run.log import print_plan, read_metrics
from sre2l.run.paths import ROOT
from sre2l.run.start import run_script

README = ROOT / "README.md"
START, END = "<!-- from results/, by python3 -m report.tables -->", "<!-- end of the tables -->"
NAMES = {"digits": "digits", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tiny-imagenet": "Tiny-ImageNet", "imagenet1k": "ImageNet-1K",
         "resnet18": "ResNet-18", "resnet50": "ResNet-50", "resnet101": "ResNet-101", "mobilenet_v2": "MobileNetV2", "efficientnet_lite0": "EfficientNet-Lite0"}


def accuracy(results):
    """'96.32 +- 0.19' of the last epoch, the spread only over several seeds; a dash without results."""
    if results is None:
        return "-"
    top1 = results["top1"]
    return f"{top1['mean']:.2f}" + (f" +- {top1['std']:.2f}" if top1["std"] is not None else "")


def num_seeds(results):
    count = len(results["seeds"])
    return f"{count} seed{'s' * (count > 1)}"


def protocol(results):
    """What the student was trained by, in a table's words."""
    found = results["protocol"]
    labels, optimizer = found["labels"], found["optimizer"]
    loss = {"KL times T^2": ", loss x T^2"}.get(found["loss"], "")
    mix = labels["mix"] if labels["mix"] not in (None, "none") else "no mix"
    return (f"{found['epochs']} epochs, batch {min(labels['batch_size'], labels['num_images'])}, {mix}, "
            f"{optimizer['name']} {optimizer['lr']:g}, T {found['temperature']:g}{loss}, {found['precision']}")


def devices_of(log):
    """Where the runs that wrote this log ran, as a table says it, '' without a log."""
    found = re.findall(r'^\{"python": .*"device": "([^"]+)"', log.read_text(), re.M) if log.exists() else []
    names = [re.sub(r"^cpu, (\d+) threads$", lambda match: f"{match[1]} CPU thread" + "s" * (match[1] != "1"), device) for device in found]
    return " and ".join(dict.fromkeys(names))


def hardware(row, results):
    """The seconds of every stage that is known, by where it ran: 'NVIDIA H200: recover 17; 2 CPU threads: relabel 314, validate 1600'."""
    logs = {"squeeze": "teacher/log.txt", "recover": "images.log.txt", "relabel": "labels.log.txt", "validate": f"student_{row.model}/log.txt"}
    places = {}
    for stage, seconds in results["seconds"].items():
        if seconds is not None:
            places.setdefault(devices_of(row.path / logs[stage]), []).append(f"{stage} {seconds:.0f}")
    return "; ".join(f"{place}: " * bool(place) + ", ".join(stages) for place, stages in places.items())


def table(head, rows):
    return "\n".join(" | ".join(["", *cells, ""]).strip() for cells in [head, ["---"] * len(head), *rows])


def main_row(row):
    """A row's cells: data set, IPC, student, published, ours, protocol, hardware and seconds, command, log; None where it has not been run."""
    results = read_results(row.path, "soft", row.model) if row.ipc else None
    cells = [NAMES[row.dataset], str(row.ipc or "-"), NAMES[row.model] + " (teacher)" * (not row.ipc), row.published]
    links = [f"`sh results/{row.folder}/commands.sh`", f"[{row.folder}](results/{row.folder})"]
    note = f"; {row.note}" * bool(row.note)
    if not row.ipc and (top1 := read_teacher(row.path)) is not None:
        return [*cells, f"{top1:.2f} (1 seed){note}", "", "", *links]
    if results is None:
        images = recovered(row) if row.ipc else None
        return [*cells, images + note, "", "", *links] if images else None
    return [*cells, f"**{accuracy(results)}** ({num_seeds(results)}){note}", protocol(results), hardware(row, results), *links]


def missing(rows):
    """A sentence about the rows that have not been run, with what is published for them."""
    found = [(row, f" ({row.published} published)" * (row.published != "none")) for row in rows if main_row(row) is None]
    texts = [f"{NAMES[row.dataset]}{f' IPC {row.ipc}' if row.ipc else ''}, {NAMES[row.model]}{'' if row.ipc else ' as the teacher'}{published}"
             for row, published in found]
    return f"Not run yet: {'; '.join(texts)}." if texts else ""


def control_row(row):
    """Data set, IPC, student, teacher, and the three students that share a protocol."""
    teacher, kinds = read_teacher(row.path), [read_results(row.path, kind, row.model) for kind in ("soft", "real", "hard")]
    return [NAMES[row.dataset], str(row.ipc), NAMES[row.model], "-" if teacher is None else f"{teacher:.2f}", *map(accuracy, kinds)]


def recovered(row):
    """What is known of a row's images where no student has been trained on them; None without images."""
    path = row.path / "images.metrics.jsonl"
    last = {values["unit"]: values for values in read_metrics(path) if "ce" in values} if path.exists() else {}
    if not last:
        return None
    text = f"images alone: cross entropy {statistics.mean(values['ce'] for values in last.values()):.2f} at the teacher"
    path = row.path / "recognised.json"
    if not path.exists():
        return text
    seen = read_json(path)
    for arch, found in seen["networks"].items():
        who = NAMES.get(arch, arch) + (" (the teacher)" if arch == row.model else "")
        text += f"; {who} finds the class in {found['top1']:g} % of {seen['num_images']}, among its first five in {found['top5']:g} %"
    return text


def ablation_row(ablation):
    found = [(text, read_results(Row(folder, ablation.dataset, 1).path, "soft")) for text, folder in ablation.values]
    values = ", ".join(f"{text}: {accuracy(results)}" for text, results in found if results)
    return [NAMES[ablation.dataset], ablation.varied, values or "not run yet", ablation.sentence]


def make_tables(rows=ROWS, ablations=ABLATIONS):
    """All tables as markdown."""
    parts = [table(["data set", "IPC", "student", "published", "ours", "protocol of the student", "hardware: seconds per stage", "command", "log"],
                   filter(None, map(main_row, rows))),
             missing(rows),
             "Top-1 in percent of the last epoch, mean and spread (standard deviation) over the seeds of the student; seconds of validate are those of all its "
             "seeds. Under the same protocol, the controls:",
             table(["data set", "IPC", "student", "teacher", "distilled, soft labels", "random real, soft labels", "distilled, hard labels"],
                   [control_row(row) for row in rows if row.ipc and read_results(row.path, "soft", row.model)])]
    if ablations:
        parts += ["A setting varied, one student each where there is no spread:",
                  table(["data set", "varied", "top-1", "what it tells"], map(ablation_row, ablations))]
    return "\n\n".join(filter(None, parts))


def with_tables(text, tables):
    """The README's text with new tables between its marker comments."""
    if text.count(START) != 1 or text.count(END) != 1:
        raise UserError(f"{README}: the tables stand between the lines {START!r} and {END!r}, each once; bring them back")
    return f"{text.partition(START)[0]}{START}\n{tables}\n{END}{text.partition(END)[2]}"


def main(args):
    if args.dry_run:
        return print_plan(vars(args), output=str(README))
    write_bytes(README, with_tables(README.read_text(), make_tables()).encode())
    print(f"{README}: {sum(row.path.is_dir() for row in ROWS)} of {len(ROWS)} rows have results")


def get_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--dry-run", action="store_true", help="print what would be written, then stop")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
