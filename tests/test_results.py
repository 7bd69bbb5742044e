"""results/: a run becomes a row without what is its machine's, its commands give the run's flags, and the README has the rows' numbers."""
import importlib
import json
import os
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from report import curves as plots
from report import collect, tables as make_table, rows
from report.rows import ABLATIONS, RESULTS, ROWS, Ablation, Row
from sre2l.run.files import read_json, write_json
from sre2l.data.image_folder import decode
from sre2l.run.errors import UserError
from sre2l.run.log import stage_seconds
from sre2l.run.paths import ROOT
from tests.helpers import launch, refused, run_main
from tests.synthetic_run import TRAIN, synthetic_run

FOLDERS = sorted(path.parent for path in RESULTS.glob("*/commands.sh"))


@pytest.fixture
def row(tmp_path):
    """A row made of a synthetic run."""
    collect.collect(synthetic_run(tmp_path / "runs" / "try"), tmp_path / "row")
    return tmp_path / "row"


def texts(folder):
    return {path: path.read_text() for path in folder.rglob("*") if path.suffix in (".json", ".jsonl", ".txt", ".sh")}


def test_the_readme_has_the_tables_that_results_give():
    text = make_table.README.read_text()
    assert make_table.with_tables(text, make_table.make_tables()) == text, "run `python -m report.tables`"


def test_every_folder_is_a_row_of_the_tables():
    named = {row.folder for row in ROWS} | {folder for ablation in ABLATIONS for _, folder in ablation.values}
    assert {path.name for path in FOLDERS} <= named


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_row_is_small_and_tells_nothing_of_its_machine(folder):
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    pictures = sum(size for path, size in sizes.items() if path.parent.name == "images.snapshots")
    assert sum(sizes.values()) - pictures < 400_000 and pictures < 1_200_000  # at 224 pixels
    for path, text in texts(folder).items():
        assert not re.search(r"(^|[\s\"'=:,(])/(work|tmp|home|root|mnt|data|runs|usr)\b|://", text), path
        assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text) or len(socket.gethostname()) < 4, path


@pytest.fixture
def printing_python(tmp_path):
    """-> a PATH whose python3 prints its arguments in place of running."""
    fake = tmp_path / "bin" / "python3"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\ncase $1 in */preflight.py) exit 0 ;; esac\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    return f"{fake.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_the_commands_of_a_row_start_stages_that_know_their_flags(folder, tmp_path, printing_python):
    """Through the launchers, from anywhere, each to a stage's own parser; a teacher comes first, and images have the settings that the row says."""
    result = launch(folder / "commands.sh", cwd=tmp_path, PATH=printing_python)
    assert result.returncode == 0, result.stderr
    found = {}
    for words in re.split(r"^-m\n", result.stdout, flags=re.M)[1:]:
        module, *flags = words.splitlines()
        found.setdefault(module, vars(importlib.import_module(module).get_args(flags)))
    assert "squeeze.squeeze" not in list(found)[1:] and found
    elsewhere = {Path(ours["teacher"]).parts[-3] for ours in found.values() if ours.get("teacher")}
    assert not elsewhere or elsewhere == {found["squeeze.squeeze"]["name"]}, "a teacher that no command of this row makes"
    if (folder / "images.manifest.json").exists():
        settings, ours = read_json(folder / "images.manifest.json")["settings"], found["recover.recover"]
        assert {key: ours[key] for key in ("dataset", "iteration", "lr", "r_bn", "seed", "batch_size")}.items() <= settings.items()


def test_paths_of_a_machine_become_relative(row, tmp_path):
    found = json.loads((row / "images.args.json").read_text())
    assert found == {"teacher": "runs/try/teacher/teacher.pth", "val_dir": "data/digits/val", "name": "runs/try"}
    assert not [path for path, text in texts(row).items() if str(tmp_path) in text or "someone" in text or "disk7" in text]
    assert collect.scrub('a/b 3 / 4 "/x/y.pth" box:/x/z.pth https://host/a/b 10/60', row) == 'a/b 3 / 4 "y.pth" box:z.pth https://host/a/b 10/60'


def test_commands_give_the_flags_that_the_run_had(row, printing_python):
    """The launcher, its table taken away from the log's line, hands Python the same flags again."""
    lines = (row / "commands.sh").read_text().splitlines()[4:]
    assert sorted(lines) == ["sh validate/train.sh digits --hard-labels --name try", "sh validate/train.sh digits --name try"]
    found = launch(*min(lines).split()[1:], PATH=printing_python).stdout.split()
    assert found == ["-m", "validate.train", *TRAIN.split(), "--hard-labels", "--name", "try"]


def test_commands_begin_with_the_teacher_of_another_run(tmp_path):
    """With the real data under data/, wherever they were."""
    run, teacher = synthetic_run(tmp_path / "runs" / "try"), tmp_path / "runs" / "long" / "teacher"
    write_json(run / "labels.args.json", {"teacher": str(teacher / "teacher.pth"), "name": None})
    teacher.mkdir(parents=True)
    command = f"squeeze.py --dataset cifar10 --name {tmp_path}/runs/long --real-data /disk7/cifar10 --epochs 3"
    (teacher / "log.txt").write_text(f"2026-11-22 09:00:00  /somewhere/squeeze/{command}\n")
    collect.collect(run, tmp_path / "row")
    lines = (tmp_path / "row" / "commands.sh").read_text().splitlines()[4:]
    assert lines[0] == "sh squeeze/squeeze.sh cifar10 --name long --real-data data/cifar10 --epochs 3" and len(lines) == 3


def test_commands_say_how_many_processes_ran():
    log = "2026-11-23 10:00:00  recover/recover.py --dataset digits --name {}\n{{\"python\": \"3.12\", \"processes\": {}, \"commit\": \"a\"}}\n"
    lines = collect.commands([log.format("a", 4), log.format("b", 1)])
    assert lines == ["GPUS=4 sh recover/recover.sh digits --name a", "sh recover/recover.sh digits --name b"]


def test_a_launcher_whose_table_has_changed_since_is_given_all_flags():
    flags = ["--dataset", "digits", "--epochs", "61", "--name", "/x/runs/try"]
    assert collect.launcher_line("validate/train", flags) == "sh validate/train.sh digits --epochs 61 --name try"


def test_thinned_metrics_keep_their_seconds_and_every_accuracy(tmp_path):
    lines = [{"epoch": i, "loss": 1.0, "seconds": 0.25, **({"top1": i} if i % 37 == 0 else {})} for i in range(1000)]
    thinned = collect.thin(lines)
    assert len(thinned) < 200 and thinned[-1]["epoch"] == 999
    assert [values["top1"] for values in thinned if "top1" in values] == list(range(0, 1000, 37))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(values) + "\n" for values in thinned))
    assert stage_seconds(tmp_path / "metrics.jsonl") == 250


@pytest.mark.parametrize("num_units, num_lines", ((1, 40), (1, 1000), (10, 41), (500, 41)))
def test_thinned_terms_are_of_the_same_batches_at_every_iteration(num_units, num_lines, tmp_path):
    """In groups of five that run side by side, each unit with its own terms: a mean over those kept has no steps. The last iteration stays."""
    lines = []
    for first in range(0, num_units, 5):
        units = range(first, min(first + 5, num_units))
        lines += [{"unit": unit, "iteration": i, "ce": unit, "r_bn_bn": 1.0, "seconds": 0.5} for i in range(num_lines) for unit in units]
        lines += [{"unit": unit, "images": 10, "seconds": 0.5} for unit in units]
    thinned = collect.thin(lines)
    assert len(thinned) <= 155 and sum(values["seconds"] for values in thinned) == pytest.approx(0.5 * len(lines))
    (tmp_path / "images.metrics.jsonl").write_text("".join(json.dumps(values) + "\n" for values in thinned))
    terms = plots.read_terms(SimpleNamespace(path=tmp_path))
    assert len({ce for ce, _ in terms.values()}) == 1 and max(terms) == num_lines - 1 and len(terms) > 30


def test_a_large_set_gives_some_images_of_ten_classes(tmp_path, monkeypatch):
    run = synthetic_run(tmp_path / "runs" / "try", ipc=4, classes=30)
    monkeypatch.setattr(collect, "IMAGE_BYTES", 10 ** 6)
    every = collect.choose_images(run / "images")
    assert len(every) == 120
    monkeypatch.setattr(collect, "IMAGE_BYTES", sum(path.stat().st_size for path in every) * 0.17)
    assert len(collect.choose_images(run / "images")) == 20
    monkeypatch.setattr(collect, "IMAGE_BYTES", 1)
    assert [path.name for path in collect.choose_images(run / "images")][::9] == ["class000_id000.jpg", "class029_id000.jpg"]


@pytest.mark.parametrize("dataset, classes, side", [("digits", 10, 32), ("tiny-imagenet", 200, 64), ("imagenet1k", 100, 112)])
def test_pictures_of_the_recovery_show_ten_classes_in_order(tmp_path, dataset, classes, side):
    run = synthetic_run(tmp_path / "runs" / "try", dataset, 1, classes)
    collect.collect(run, tmp_path / "row")
    strip = decode(tmp_path / "row" / "images.snapshots" / "iteration_000020.jpg")
    assert strip.shape == (side, 10 * side, 3)
    levels = [strip[:, i * side:(i + 1) * side].mean() - 40 for i in range(10)]
    wanted = np.arange(10) if classes == 10 else np.array([0, 12, 21, 33, 45, 54, 66, 78, 87, 99]) % 20
    assert np.abs(levels - wanted).max() < 2.5


def test_a_row_says_what_was_measured_and_a_missing_one_that_it_was_not(row, monkeypatch):
    monkeypatch.setattr(rows, "RESULTS", row.parent)
    found = [Row("row", "tiny-imagenet", 50, note="a note"), Row("row", "tiny-imagenet", None), Row("gone", "cifar10", 10)]
    assert make_table.missing(found) == "Not run yet: CIFAR-10 IPC 10, ResNet-18."
    assert make_table.missing([Row("gone", "tiny-imagenet", None)]) == "Not run yet: Tiny-ImageNet, ResNet-18 as the teacher (59.57 published)."
    lines = make_table.make_tables(found, [Ablation("cifar10", "r_bn", (("0", "gone"), ("1", "row")), "one of two")]).splitlines()
    assert lines[2] == ("| Tiny-ImageNet | 50 | ResNet-18 | 41.1 +- 0.4 | **66.00 +- 1.25** (3 seeds); a note "
                        "| 60 epochs, batch 20, cutmix, AdamW 0.002, T 20, fp32 | 1 CPU thread and NVIDIA H200: squeeze 40; 2 CPU threads: validate 100 "
                        "| `sh results/row/commands.sh` | [row](results/row) |")
    assert lines[3].startswith("| Tiny-ImageNet | - | ResNet-18 (teacher) | 59.57 | 90.50 (1 seed) |")
    assert not lines[4] and lines[5].startswith("Not run yet: CIFAR-10")
    assert "| Tiny-ImageNet | 50 | ResNet-18 | 90.50 | 66.00 +- 1.25 | 78.00 +- 1.25 | 71.00 +- 1.25 |" in lines
    assert lines[-1] == "| CIFAR-10 | r_bn | 1: 66.00 +- 1.25 | one of two |"


def test_images_without_a_student_say_so(row, monkeypatch):
    monkeypatch.setattr(rows, "RESULTS", row.parent)
    (row / "student_resnet18" / "results.json").unlink()
    assert make_table.main_row(Row("row", "imagenet1k", 1))[4:7] == ["images alone: cross entropy 0.10 at the teacher", "", ""]
    with open(row / "images.metrics.jsonl", "a") as file:
        file.write('{"unit": 0, "iteration": 99, "ce": 0.3}\n{"unit": 1, "iteration": 99, "ce": 0.1}\n')
    seen = {"mobilenet_v2": {"top1": 40.0, "top5": 90.5}, "efficientnet_lite0": {"top1": 30.0, "top5": 60.0}}
    write_json(row / "recognised.json", {"num_images": 10, "networks": seen})
    assert make_table.main_row(Row("row", "imagenet1k", 1))[4] == (
        "images alone: cross entropy 0.20 at the teacher; MobileNetV2 finds the class in 40 % of 10, among its first five in 90.5 %; "
        "EfficientNet-Lite0 finds the class in 30 % of 10, among its first five in 60 %")
    assert "MobileNetV2 (the teacher) finds" in make_table.main_row(Row("row", "imagenet1k", 1, "mobilenet_v2"))[4]


def test_what_is_no_row_is_never_replaced(row, tmp_path):
    (row / "commands.sh").unlink()
    with pytest.raises(UserError, match="is no row"):
        collect.collect(tmp_path / "runs" / "try", row)
    assert "folder of results/" in refused(collect, "--row", "../img")
    assert "no run" in refused(collect, "--name", tmp_path / "gone", "--row", "x")
    with pytest.raises(UserError, match="each once"):
        make_table.with_tables("no markers", "")


@pytest.mark.parametrize("script", (collect, make_table))
def test_a_dry_run_writes_nothing(script, capsys):
    run_main(script, "--dry-run", *["--row", "x"] * (script is collect))
    assert json.loads(capsys.readouterr().out)["output"] and not (ROOT / "results" / "x").exists()
