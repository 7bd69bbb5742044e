"""Collect: make a row of results/ of a finished run, from its small files and the commands that repeat it.

Run: python3 -m report.collect --dataset digits --name digits_ipc10 --row digits_ipc10
Result: the files of results/<row>/, as results/README.md says. Paths in the run, its teacher's run, its real
images (data/<data set>) and this project are made relative; others stay as they were typed, so read a row
before you publish it.
"""
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from recover.batches import plan_batches
from recover.pictures import GAP, NUM_SNAPSHOT_TILES, contact_sheet, spread
from report.rows import RESULTS
from sre2l.data.flags import add_run_flags
from sre2l.data.image_folder import decode, encode
from sre2l.run.errors import UserError
from sre2l.run.files import hash_file, read_json, sidecar, write_bytes, write_json
from sre2l.run.flags import Parser
from sre2l.run.log import read_metrics
from sre2l.run.output import print_plan
from sre2l.run.paths import ROOT, run_folder
from sre2l.run.start import run_script

STAGES = ("squeeze/squeeze", "recover/pick", "recover/recover", "relabel/relabel", "validate/train",
          "validate/random_real")
HEAD = """#!/bin/sh
# The commands of this row, in order; real images, where the data set is not built in, under data/.
set -e
cd "$(dirname "$0")/../.."
"""
MAX_LINES = 150        # about so many lines of an output's metrics are kept,
ROW_LINES = 2000       # and of all outputs together
IMAGE_BYTES = 120_000  # images up to this size together are all kept,
CLASSES = 10           # else those of ten classes,
FEW = 5                # as many of each as the pictures of docs/ show
FRAMES = 24            # pictures of the recovery


def find_records(run, record):
    """Find the files of one kind in a run: 'args.json' -> {'images': .../images.args.json, ...}."""
    paths = sorted(path for path in run.rglob(f"*{record}") if path.is_file())
    return {path.relative_to(run).as_posix().removesuffix(record).rstrip("./"): path for path in paths}


def find_teachers(run):
    """The logs of teachers that are of other runs, by the arguments of a run's outputs."""
    named = [read_json(path).get("teacher") or "none" for path in find_records(run, "args.json").values()]
    logs = {(ROOT / file).with_name("log.txt") for files in named for file in files.split(",")}
    return sorted(log for log in logs if log.exists() and not log.is_relative_to(run))


def find_places(run):
    """What a row calls the folders that a run names: [(as it stands there, as a row has it)].

    The run and those of its teachers are in runs/, and its real images in data/."""
    places = {}
    for args in map(read_json, find_records(run, "args.json").values()):
        for folder in filter(None, (args.get("val_dir"), args.get("real_data"))):
            if Path(folder).is_absolute() and not Path(folder).is_relative_to(ROOT):
                places[folder.rstrip("/")] = f"data/{args['dataset']}"
    if len(places) > len(set(places.values())):  # two for one data set: each by its own name
        places = {folder: f"data/{Path(folder).name}" for folder in places}
    for folder in (run, *(log.parents[1] for log in find_teachers(run))):
        places[str(folder)] = f"runs/{folder.name}"
    longest_first = sorted(places.items(), key=lambda place: -len(place[0]))
    return [*longest_first, (f"{ROOT}/", "")]


def read_text(path, places):
    """Read a text of a run, and make paths relative. places: of `find_places`."""
    text = path.read_text(encoding="utf-8", errors="replace")
    for there, here in places:
        text = text.replace(there, here)
    # Commands begin with the script, which may have lain in another copy of this project.
    return re.sub(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  )/\S*/(\w+/\w+\.py)\b", r"\1\2", text, flags=re.M)


def collect_json(run):
    """-> {student: results.json}, {output: {'args': args.json, 'manifest' or 'settings': that record}}."""
    places = find_places(run)
    found = find_records(run, "results.json")
    results = {output: json.loads(read_text(path, places)) for output, path in found.items()}
    settings = {}
    for record in ("args", "manifest", "settings"):
        for output, path in find_records(run, f"{record}.json").items():
            settings.setdefault(output, {})[record] = json.loads(read_text(path, places))
    return results, settings


def recognised(run):
    """recognised.json, None where there is none. Raises UserError where it is of other images."""
    path = run / "recognised.json"
    if not path.exists():
        return None
    seen = read_json(path)
    listing = sidecar(run / "images", "sha256")
    if not listing.exists() or seen.get("images_sha256") != hash_file(listing):
        raise UserError(f"{path}: is of other images than {run / 'images'}; run report.recognise again")
    return seen


def thin(lines, most=MAX_LINES):
    """Which lines of an output's metrics a row keeps: about `most`, evenly spread, and every accuracy.

    Of recover's batches some are kept, each at the same iterations, so that means are over the same ones."""
    batches = {}
    for values in lines:
        batches.setdefault(values.get("unit"), []).append(values)
    chosen = spread(list(batches.values()), max(1, len(batches) * most // max(1, len(lines))))
    step = -(-sum(map(len, chosen)) // most)
    # The last two of a batch are recover's last terms, and its line about the images.
    return [values for batch in chosen for number, values in enumerate(batch, 1)
            if number % step == 0 or number > len(batch) - 2 or "top1" in values]


def collect_metrics(run):
    """The thinned metrics of every output, each line with the output that it is of: JSON lines."""
    lines = ""
    found = find_records(run, "metrics.jsonl")
    for output, path in found.items():
        for values in thin(read_metrics(path), min(MAX_LINES, ROW_LINES // len(found))):
            lines += json.dumps({"output": output, **values}) + "\n"
    return lines


@cache
def launcher_words(launcher, word):
    """The arguments that a launcher gives a stage for its first word, a data set or one with a recipe. None
    where it knows none of that name."""
    with tempfile.TemporaryDirectory() as folder:
        printing = Path(folder) / "python3"  # in place of Python, which would start the stage
        printing.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
        printing.chmod(0o755)
        alone = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "GPUS": "1",
                 "TORCHRUN": ""}
        done = subprocess.run(["sh", str(ROOT / launcher), word], capture_output=True, encoding="utf-8",
                              check=False, env=alone)
    return done.stdout.splitlines()[2:] if done.returncode == 0 else None  # without -m and the module


def command_of(stage, words):
    """The command that starts a stage with these arguments: its launcher, which adds some of them itself, or
    Python, where today's launcher has other settings than that of the run."""
    added = launcher_words(f"{stage}.sh", words[1]) if words[:1] == ["--dataset"] else None
    if added and words[:len(added)] == added:
        words = ["sh", f"{stage}.sh", words[1], *words[len(added):]]
    else:
        words = ["python3", "-m", stage.replace("/", "."), *words]
    return shlex.join(words).replace("--name runs/", "--name ")


def commands_in(log):
    """Find the commands in a log, which has one at each start -> [(time, command)]."""
    found = []
    for time, script, arguments in re.findall(r"^(\S+ \S+)  (\S+)\.py(.*)$", log, re.M):
        stage = "/".join(script.split("/")[-2:])
        if stage in STAGES:
            found.append((time, command_of(stage, shlex.split(arguments))))
    return found


def commands(run, networks=()):
    """The script that repeats a run: its distinct commands in the order of time, and those of its teacher.

    networks: those that report.recognise measured."""
    places = find_places(run)
    found = []
    for path in (*find_records(run, "log.txt").values(), *find_teachers(run)):
        found += commands_in(read_text(path, places))
    lines = list(dict.fromkeys(command for _, command in sorted(found)))
    if networks:
        lines.append(f"python3 -m report.recognise --name {run.name} --networks {','.join(networks)}")
    if any(line.startswith("python3") for line in lines):
        lines.insert(0, "root=$PWD; . sre2l/run/env.sh")
    return HEAD + "\n".join(lines) + "\n"


def choose_images(root):
    """Which images a row keeps: all where they are small together, else FEW of each of ten classes, fewer
    of large ones."""
    classes = [sorted(folder.glob("class*")) for folder in sorted(root.iterdir()) if folder.is_dir()]
    every = [path for files in classes for path in files]
    total = sum(path.stat().st_size for path in every)
    if total <= IMAGE_BYTES:
        return every
    few = 2 * IMAGE_BYTES * len(every) // (total * CLASSES)
    return [path for files in spread(classes, CLASSES) for path in files[:max(1, min(FEW, few))]]


def read_snapshot(path, settings):
    """Cut ten images of ten classes out of recover's picture of its first batch -> (S, 10 * S, 3) uint8."""
    # The 25 images of the picture are spread over the batch. A range is recorded where it matters.
    first = plan_batches(settings["classes"], settings["batch_size"], *settings.get("ipc_range", (0, 1)),
                         settings.get("batch_order", "ipc"))[0]
    labels = spread([label for _, label in first.pairs], NUM_SNAPSHOT_TILES)
    places = [labels.index(label) for label in spread(sorted(set(labels)), CLASSES)]

    # The picture shows them enlarged by a whole factor.
    sheet = decode(path)
    columns = -(-len(labels) // max(1, round(len(labels) ** 0.5)))
    tile = (sheet.shape[1] - GAP) // columns - GAP
    step = max(1, tile // settings["size"])
    images = []
    for place in places:
        row, column = divmod(place, columns)
        top = GAP + row * (tile + GAP)
        left = GAP + column * (tile + GAP)
        images.append(sheet[top:top + tile:step, left:left + tile:step])
    return np.concatenate(images, 1)


def collect_images(run, settings):
    """The run's images and pictures of the recovery -> {path in the run: bytes}."""
    if not (run / "images").is_dir():
        return {}
    files = {path.relative_to(run).as_posix(): path.read_bytes() for path in choose_images(run / "images")}
    for path in spread(sorted((run / "images.snapshots").glob("iteration_*.png")), FRAMES):
        strip = read_snapshot(path, settings["images"]["manifest"]["settings"])
        files[f"images.snapshots/{path.stem}.jpg"] = encode(strip)
    return files


def pack(files):
    """{name: bytes} -> an archive; equal files give equal bytes, since it records no times and no owners."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    return data.getvalue()


def write_images(files, row):
    """Write images.tar, images.sha256 with the hash of each file in it, and images.png, a contact sheet."""
    write_bytes(row / "images.tar", pack(files))
    hashes = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    write_bytes(row / "images.sha256", "".join(hashes).encode())
    with tempfile.TemporaryDirectory() as folder:
        for name in files:
            write_bytes(Path(folder) / name, files[name])
        contact_sheet(Path(folder) / "images", row / "images.png")
    with Image.open(row / "images.png") as sheet:  # a palette takes a third of the bytes
        sheet.quantize(256, dither=Image.Dither.NONE).save(row / "images.png", optimize=True)


def collect(run, row):
    """Write the row -> its size in bytes. An earlier one is replaced."""
    results, settings = collect_json(run)
    if not settings and not results:
        raise UserError(f"{run}: no run, or nothing in it yet; "
                        f"give --name the run folder's name or its absolute path")
    if row.exists() and not (row / "commands.sh").exists():
        raise UserError(f"{row}: is no row, so nothing in it is replaced; choose another --row")

    # Read all that the row will hold.
    seen = recognised(run)
    if seen:
        results["recognised"] = seen
    script = commands(run, seen and seen["networks"])
    metrics = collect_metrics(run)
    found = find_records(run, "log.txt")
    places = find_places(run)
    logs = [f"==> {output} <==\n{read_text(path, places)}" for output, path in found.items()]
    images = collect_images(run, settings)

    # All is read, and nothing was refused: now an earlier row may go.
    shutil.rmtree(row, ignore_errors=True)
    write_bytes(row / "commands.sh", script.encode())
    write_json(row / "settings.json", settings)
    write_json(row / "results.json", results)
    write_bytes(row / "metrics.jsonl", metrics.encode())
    write_bytes(row / "log.txt", "\n".join(logs).encode())
    if images:
        write_images(images, row)
    return sum(path.stat().st_size for path in row.iterdir())


def main(args):
    row = RESULTS / args.row
    if row.parent != RESULTS or args.row.startswith("."):
        raise UserError(f"--row {args.row}: give the name of a folder of results/, such as cifar10_ipc10")
    if args.dry_run:
        return print_plan(vars(args), run=str(run_folder(args)), output=str(row))
    num_bytes = collect(run_folder(args), row)
    print(f"{row}: {num_bytes:,} bytes; a line in results/rows.json shows it in the tables")


def get_args(argv=None):
    parser = Parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--row", required=True, help="folder of results/, such as cifar10_ipc10")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
