"""Collect: what is small of a finished run, and a script that repeats it, as a row of results/.

Run: python -m report.collect --dataset digits --name digits_ipc10 --row digits_ipc10      (--name may be an absolute path)
Result: results/<row>/ laid out like the run: args, manifests, settings, logs, metrics, results.json, images (all, or some of ten classes),
pictures of the recovery, and commands.sh. Paths of this machine are made relative.
"""
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np

from recover.pictures import GAP, spread
from recover.batches import make_unit
from report.rows import ABLATIONS, RESULTS, ROWS
from sre2l.run.files import sidecar, hash_file, read_json, write_bytes
from sre2l.data.flags import add_run_flags
from sre2l.run.flags import Parser
from sre2l.data.image_folder import decode, encode
from sre2l.run.errors import UserError
from sre2l.run.log import print_plan, read_metrics
from sre2l.run.paths import ROOT, run_folder
from sre2l.run.start import run_script

TEXTS = ("args.json", "manifest.json", "settings.json", "results.json", "recognised.json", "log.txt", "metrics.jsonl")
MAX_LINES, IMAGE_BYTES, CLASSES, FRAMES = 150, 120_000, 10, 24  # of a metrics file; of a row's images; shown; pictures of the recovery
ABSOLUTE = re.compile(r"(?<![\w/.<)*\]-])/[\w.@%+-]+(?:/[\w.@%+-]+)*")
HEAD = ("#!/bin/sh", "# The commands of this row, in order; real images, where the data set is not built in, under data/.", "set -e",
        'cd "$(dirname "$0")/../.."')
STAGES = r"(squeeze/squeeze|recover/recover|relabel/relabel|validate/train|validate/random_real)"


def shorten(path):
    """An absolute path without what is this machine's: from runs/ or data/ on, a stage's script by its name, else the last part."""
    for folder in ("runs", "data"):
        if (found := path.rfind(f"/{folder}/")) >= 0:
            return path[found + 1:]
    stage = re.search(rf"{STAGES}\.py$", path)
    return stage[0] if stage else Path(path).name


def scrub(text, run):
    """A text of the run folder `run` without absolute paths; those of the run become runs/<name>."""
    return ABSOLUTE.sub(lambda found: shorten(found[0]), text.replace(str(run), f"runs/{run.name}"))


def kept_places(lines):
    """Which lines of a run's metrics a row keeps: about MAX_LINES, evenly spread, with every accuracy and the last terms of recover. Of recover's
    batches some, each at the same iterations, so that means over them are of the same batches."""
    groups = {}
    for place, values in enumerate(lines):
        groups.setdefault(values.get("unit"), []).append(place)
    chosen = spread(list(groups.values()), max(1, len(groups) * MAX_LINES // max(1, len(lines))))
    step = -(-sum(map(len, chosen)) // MAX_LINES)
    return {place for group in chosen for number, place in enumerate(group, 1)
            if number % step == 0 or number > len(group) - 2 or "top1" in lines[place]}


def thin(lines):
    """The lines of kept_places; the seconds of those left out are added to the next kept, or to the last."""
    places, kept, waiting = kept_places(lines), [], 0.0
    for place, values in enumerate(lines):
        waiting += values.get("seconds", 0)
        if place in places:
            kept.append({**values, "seconds": round(waiting, 3)})
            waiting = 0.0
    if waiting:
        kept[-1]["seconds"] = round(kept[-1]["seconds"] + waiting, 3)
    return kept


def flat_lists(text):
    """JSON with each list of numbers or names on one line."""
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text)


def small_text(path, run):
    """One of TEXTS as it is stored."""
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(values) + "\n" for values in thin(read_metrics(path)))
    else:
        text = path.read_text(errors="replace")
        text = flat_lists(text) if path.suffix == ".json" else text
    return scrub(text, run)


def table_of(launcher, dataset):
    """The flags that a launcher's table gives for a data set."""
    block = re.search(rf"^    (?:[\w-]+ \| )*{dataset}(?: \| [\w-]+)*\)(.*?);;", (ROOT / launcher).read_text(), re.M | re.S)
    found = block and re.search(r"set -- (.*)\"\$@\"", block[1], re.S)
    return shlex.split(found[1].replace("\\\n", " ")) if found else []


def launcher_line(script, flags):
    """The launcher's command for a stage's flags: 'recover/recover', ['--dataset', 'digits', ...] -> 'sh recover/recover.sh digits ...'."""
    dataset, flags = flags[1], flags[2:]
    table = table_of(f"{script}.sh", dataset)
    if flags[:len(table)] == table:
        flags = flags[len(table):]
    flags = [Path(flag).name if before == "--name" else f"data/{flag}" if before in ("--real-data", "--val-dir") and "/" not in flag else flag
             for before, flag in zip([None, *flags], flags)]
    return f"sh {script}.sh {dataset} {shlex.join(flags)}".rstrip()


def commands(logs):
    """The distinct launcher lines of a run, in the order of time; logs: their texts, scrubbed."""
    start = re.compile(rf"^([\d-]+ [\d:]+)  {STAGES}\.py (--dataset .*)\n(?:.*\"processes\": (\d+))?", re.M)
    found = sorted(match.groups(default="1") for text in logs for match in start.finditer(text))
    return list(dict.fromkeys(f"GPUS={num} " * (num != "1") + launcher_line(script, flags.split()) for _, script, flags, num in found))


def teacher_logs(run):
    """What squeeze logged of the teachers that this run took from other run folders, as far as they are there."""
    named = {read_json(path).get("teacher") for path in run.glob("*.args.json")} - {None}
    logs = {(ROOT / teacher).parent / "log.txt" for teacher in named}
    return [path.read_text(errors="replace") for path in sorted(logs) if run not in path.parents and path.exists()]


def choose_images(root):
    """Which images of a folder a row keeps: all where they are small, else as many of ten evenly spread classes as fit, one at least."""
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir())
    every = [sorted(folder.glob("class*")) for folder in folders]
    if sum(path.stat().st_size for files in every for path in files) <= IMAGE_BYTES:
        return [path for files in every for path in files]
    chosen = spread(every, CLASSES)
    size = sum(path.stat().st_size for files in chosen for path in files) / min(map(len, chosen))
    return [path for files in chosen for path in files[:max(1, int(IMAGE_BYTES / size))]]


def read_snapshot(path, settings):
    """A picture of the first batch -> ten of its images side by side, of the classes in order, at their own size."""
    pairs = spread(list(make_unit(0, settings["classes"], settings["batch_size"]).pairs), 25)
    first = {label: i for i, (_, label) in reversed(list(enumerate(pairs)))}
    sheet, columns = decode(path), -(-len(pairs) // max(1, round(len(pairs) ** 0.5)))
    tile = (sheet.shape[1] - GAP) // columns - GAP
    step = max(1, tile // settings["size"])
    corners = [(GAP + first[label] // columns * (tile + GAP), GAP + first[label] % columns * (tile + GAP)) for label in spread(sorted(first), CLASSES)]
    return np.concatenate([sheet[top:top + tile:step, left:left + tile:step] for top, left in corners], 1)


def choose_snapshots(files):
    """FRAMES of the pictures, close together at the start, where most changes, with the first and the last."""
    places = (len(files) - 1) * np.linspace(0, 1, min(FRAMES, len(files))) ** 1.5
    return [files[i] for i in sorted({round(place) for place in places} | {*range(min(6, len(files)))})]


def collect(run, row):
    """Write the row -> its size in bytes. Files of an earlier one that are not written anew are removed."""
    found = sorted(path for path in run.rglob("*") if path.name.endswith(TEXTS) and path.is_file())
    if not found:
        raise UserError(f"{run}: no run, or nothing in it yet; give --name the run folder's name or its absolute path")
    if row.exists() and not (row / "commands.sh").exists():
        raise UserError(f"{row}: is no row, so nothing in it is replaced; choose another --row")
    texts = {path.relative_to(run): small_text(path, run) for path in found}
    lines = commands([scrub(text, run) for text in teacher_logs(run)] + [text for name, text in texts.items() if name.name.endswith("log.txt")])
    if (path := run / "recognised.json").exists():
        seen, listing = read_json(path), sidecar(run / "images", "sha256")
        if seen.get("images_sha256", "of an earlier version") != (hash_file(listing) if listing.exists() else None):
            raise UserError(f"{path}: is of other images than {run / 'images'}; run report.recognise again")
        lines.append(f"root=$PWD; . sre2l/run/env.sh; python3 -m report.recognise --name {run.name} --networks {','.join(seen['networks'])}")
    shutil.rmtree(row, ignore_errors=True)
    for name, text in texts.items():
        write_bytes(row / name, text.encode())
    write_bytes(row / "commands.sh", "\n".join([*HEAD, *lines, ""]).encode())
    if (images := run / "images").is_dir():
        for path in choose_images(images):
            write_bytes(row / path.relative_to(run), path.read_bytes())
    if (sheet := run / "labels" / "epoch_0" / "batch_0.tar").exists() and sheet.stat().st_size < 20_000:
        write_bytes(row / sheet.relative_to(run), sheet.read_bytes())
    if files := sorted(sidecar(images, "snapshots").glob("iteration_*.png")):
        settings = read_json(sidecar(images, "manifest.json"))["settings"]
        for path in choose_snapshots(files):
            write_bytes(sidecar(row / "images", "snapshots") / f"{path.stem}.jpg", encode(read_snapshot(path, settings)))
    return sum(path.stat().st_size for path in row.rglob("*") if path.is_file())


def main(args):
    row = RESULTS / args.row
    if not re.fullmatch(r"[a-z0-9][\w.-]*", args.row):
        raise UserError(f"--row {args.row}: give the name of a folder of results/, such as cifar10_ipc10")
    if args.dry_run:
        return print_plan(vars(args), run=str(run_folder(args)), output=str(row))
    print(f"{row}: {collect(run_folder(args), row):,} bytes")
    if args.row not in {each.folder for each in ROWS} | {folder for each in ABLATIONS for _, folder in each.values}:
        print(f"{args.row} stands in no line of report/rows.py: add one, or the tables will not show it")


def get_args(argv=None):
    parser = Parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--row", required=True, help="folder of results/, such as cifar10_ipc10")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
