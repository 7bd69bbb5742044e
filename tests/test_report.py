"""report.html: what it says is what the run wrote, it loads nothing, and nothing that stands in a run folder can break it or a run's end."""
import base64
import json
import re
import shutil
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from recover.pictures import GAP, contact_sheet
from relabel import relabel
from sre2l.run.files import sidecar
from sre2l.run.log import read_metrics
from sre2l.run.settings import recorded
from tests.helpers import SMALL, refused, run_main, synthetic_folder
from tests.pages import Reader
from tests.test_settings import files_of
from tests.worlds import common, make_world, recover_flags, teacher, train_flags
from validate import random_real
from report import page as report, plots as report_plots
from report.page import make_report, report_in_words
from report.data import read_run
from report.plots import colour_numbers


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run of recover, relabel, two students and one with hard labels -> the folder that holds run/."""
    root = make_world(tmp_path_factory.mktemp("report"))
    shutil.rmtree(root / "run")
    run_main(*recover_flags(root, "--iteration", 5, "--ipc-end", 2, name="run"))
    run_main(relabel, *common(root), *teacher(root), "--epochs", 2, "-b", 8, "-j", 0)
    run_main(*train_flags(root, "--epochs", 2, "--eval-every", 1, "--seeds", "0-1"))
    run_main(*train_flags(root, "--epochs", 2, "--eval-every", 1, "--hard-labels"))
    return root


@pytest.fixture
def run(world, tmp_path):
    """A copy of the run that may be broken. Its args.json name folders that are there no more, as after a move to another machine."""
    folder = shutil.copytree(world / "run", tmp_path / "run")
    for path in folder.glob("student*/args.json"):
        path.write_text(path.read_text().replace(str(world), "/gone"))
    return folder


def test_the_end_of_validate_leaves_a_page_with_the_results_of_the_run(world):
    run, html = world / "run", (world / "run" / "report.html").read_text()
    text = Reader(html).text
    for name in (f"student_{SMALL}", f"student_{SMALL}_hard"):
        results = json.loads((run / name / "results.json").read_text())
        spread = "" if results["top1"]["std"] is None else f" ± {results['top1']['std']:.2f}"
        assert f"{results['top1']['mean']:.2f}{spread}" in text and f"{results['best_top1']['mean']:.2f}" in text
        assert f"{results['seconds']['validate']:,.1f}" in text
        assert f"{name}, {len(results['seeds'])} seed" in text
    assert f"{results['image_bytes']:,}" in text and f"{results['label_bytes']:,}" in text
    assert f"student_{SMALL}_hard has the protocol of student_{SMALL} but for hard_labels, loss, temperature." in text
    assert "its top-1 has not been measured" in text
    assert "No control with random real images yet" in text and "No control with hard labels" not in text
    assert "No teacher was trained in this run" in text
    assert base64.b64encode((run / "images.png").read_bytes()).decode() in html


def test_the_teachers_top1_is_the_measured_one_else_that_of_its_checkpoint(run, monkeypatch):
    path = run / f"student_{SMALL}" / "results.json"
    results = json.loads(path.read_text())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for measured, in_checkpoint, wanted in ((77.254, 12.345, "77.25"), (None, 12.345, "12.35"), (0.0, 12.345, "0.00")):
        labels = results["protocol"]["labels"]
        labels["measured_top1"], labels["teacher"]["top1"] = measured, in_checkpoint
        path.write_text(json.dumps(results))
        text = Reader(make_report(run)).text
        assert f"Its teacher, {SMALL}, has {wanted} %." in text and ("as relabel measured it" in text) == (measured is not None)


def test_the_settings_of_every_stage_stand_on_the_page(world):
    text = Reader(make_report(world / "run")).text
    for root, keys in (("images", ("iteration", "r_bn", "lr", "batch_size")), ("labels", ("mix", "order_seed", "epochs"))):
        settings = recorded(sidecar(world / "run" / root, "manifest.json"))
        assert all(f"{key}{settings[key]:g}" in text if isinstance(settings[key], float) else f"{key}{settings[key]}" in text for key in keys)
    assert "optimizer.nameAdamW" in text and "classes0 to 9, 10 in all" in text


def test_the_page_loads_nothing_and_every_picture_has_a_text(world):
    html = make_report(world / "run")
    page = Reader(html)
    assert all(url.startswith("data:image/") for url in page.loaded) and len(page.loaded) == 1
    assert not {"script", "link", "iframe", "object", "style"} & {tag for tag, _ in page.elements[7:]} and "@import" not in html
    assert [tag for tag, _ in page.elements].count("style") == 1
    pictures = [attributes for tag, attributes in page.elements if tag in ("img", "svg")]
    assert all(len(attributes.get("alt") or attributes.get("aria-label")) > 20 for attributes in pictures)
    assert make_report(world / "run") == html  # nothing in it depends on when it was made
    assert str(world) not in html


def test_with_matplotlib_there_are_three_figures(world):
    pytest.importorskip("matplotlib")
    html = make_report(world / "run")
    page = Reader(html)
    assert [tag for tag, _ in page.elements].count("svg") == 3 and "could not be made" not in page.text and "pip install matplotlib" not in page.text
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids) and all(f'id="{name}"' in html for name in re.findall(r"url\(#([^)]+)\)", html))
    assert report_plots.INK not in html and "currentColor" in html


def test_without_matplotlib_one_sentence_and_all_else(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = Reader(make_report(world / "run"))
    assert page.text.count("pip install matplotlib adds the curves") == 1 and "svg" not in {tag for tag, _ in page.elements}
    assert "could not be made" not in page.text and page.text.count("Accuracy") == 1 and [tag for tag, _ in page.elements].count("img") == 1


def drawn(monkeypatch, run, make, *args):
    """The curves that a figure would draw -> [{x: y}]."""
    found = []
    monkeypatch.setattr(report_plots, "draw", lambda name, curves, *_: found.extend(curves) or "<svg viewBox='0 0 1 1'></svg>".replace("'", '"'))
    make(read_run(run), *args)
    return [curve.points for curve in found]


def test_curves_are_the_metrics_and_the_last_line_of_a_step_counts(run, monkeypatch):
    path = run / "images.metrics.jsonl"
    rows = [row for row in read_metrics(path) if "iteration" in row]
    again = {**rows[2], "ce": 123.0}
    path.write_text(path.read_text() + json.dumps(again) + "\n{torn\n[1]\n" + json.dumps({**rows[1], "unit": 99, "ce": float("nan"), "r_bn_bn": 0.0}) + "\n")
    wanted = {row["iteration"]: row["ce"] for row in rows if row["unit"] == 0} | ({again["iteration"]: 123.0} if again["unit"] == 0 else {})
    curves = drawn(monkeypatch, run, report_plots.recover_curves)
    assert curves[0] == wanted and curves[1] == {row["iteration"]: row["r_bn_bn"] for row in rows if row["unit"] == 0}
    assert 0 in curves[0] and len(curves) == 2 * len({row["unit"] for row in rows})
    lines = [read_metrics(run / name / "metrics.jsonl") for name in (f"student_{SMALL}", f"student_{SMALL}_hard")]
    by_seed = [[line for line in lines[0] if line["seed"] == seed] for seed in (0, 1)] + [lines[1]]
    monkeypatch.undo()
    for key in ("loss", "top1"):
        curves = drawn(monkeypatch, run, report_plots.student_curves, key, key, "", lambda student: student.name)
        assert curves == [{line["epoch"]: line[key] for line in seed if key in line} for seed in by_seed]


USED = ("images.manifest.json", "images.metrics.jsonl", "images.png", "labels.manifest.json", f"student_{SMALL}/args.json",
        f"student_{SMALL}/metrics.jsonl", f"student_{SMALL}/results.json", f"student_{SMALL}_hard/results.json")
BROKEN = {"empty": b"", "bytes": b"\xff\xfe\x00", "list": b"[]", "object": b'{"protocol": 3, "top1": {"mean": "x"}, "seeds": []}', "number": b"3",
          "odd": b'{"settings": 1, "unit": "<i>", "iteration": [1], "ce": {}, "r_bn_bn": null, "seed": {}, "epoch": "x", "loss": "y", "top1": true}\n'}


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that_cannot_be_read_is_named_and_the_rest_stands(what, run, monkeypatch):
    """Each file of the run that the page is made of, in turn; a run's end never fails over it."""
    monkeypatch.setitem(sys.modules, "matplotlib", ModuleType("matplotlib"))
    monkeypatch.setattr(report_plots, "draw", lambda *_: '<svg viewBox="0 0 1 1"></svg>')
    silent = []
    for name in USED:
        before = (run / name).read_bytes()
        (run / name).write_bytes(BROKEN[what])
        page = Reader(make_report(run))
        assert all(title in page.text for title in ("Accuracy", "Images", "Curves", "Bytes and seconds", "Settings"))
        students = [student.name for student in read_run(run).students]
        assert len(students) == 2 - name.endswith("results.json") and all(page.text.count(student) > 1 for student in students)
        if name not in page.text:
            silent.append(name)
        (run / name).write_bytes(before)
    logs = [name for name in USED if name.endswith("metrics.jsonl")]  # a line that is none is passed over, as everywhere
    assert [name for name in silent if name != f"student_{SMALL}/args.json" or what not in ("object", "odd")] == logs
    assert report_in_words(run).startswith("report: ")


def test_names_and_values_are_text(run):
    """A student's folder and the values in its results that look like markup stay what they are."""
    odd = '<script>alert(1)</script>"\'&$x^'
    (run / f"student_{SMALL}_hard").rename(run / odd.replace("/", ""))
    path = run / f"student_{SMALL}" / "results.json"
    results = json.loads(path.read_text())
    results["versions"]["device"] = results["protocol"]["model"] = odd
    path.write_text(json.dumps(results))
    html = make_report(run)
    page = Reader(html)
    assert "script" not in {tag for tag, _ in page.elements} and odd in page.text and odd.replace("/", "") in page.text
    assert "could not be made" not in page.text


def test_a_run_with_images_alone_says_what_is_missing(world, tmp_path):
    run_main(*recover_flags(world, name=tmp_path / "new"))
    run_main(report, "--dataset", "cifar10", "--name", tmp_path / "new")
    text = Reader((tmp_path / "new" / "report.html").read_text()).text
    for words in ("No student has been trained here yet", "No manifest beside labels: no labels yet", "There is nothing to draw yet", "seed0"):
        assert words in text or words == "There is nothing to draw yet" and "pip install matplotlib" in text
    assert "images (recover)" in text and "Could not be read" not in text
    assert "there is no such run" in refused(report, "--dataset", "cifar10", "--name", tmp_path / "none")
    run_main(report, "--dataset", "cifar10", "--name", tmp_path / "none", "--dry-run")
    assert not (tmp_path / "none").exists()


def test_a_student_elsewhere_has_a_page_of_its_own_that_overwrite_knows(world, tmp_path):
    flags = train_flags(world, "--output-dir", tmp_path / "elsewhere")
    before = (world / "run" / "report.html").read_bytes()
    run_main(*flags)
    assert (world / "run" / "report.html").read_bytes() == before
    text = Reader((tmp_path / "elsewhere" / "report.html").read_text()).text
    assert f"{SMALL}, distilled images, soft labels" in text and "elsewhere, 1 seed" in text and "Could not be read" not in text
    first = files_of(tmp_path / "elsewhere").keys()
    run_main(*flags, "--overwrite", "--adamw-lr", 0.1)
    assert files_of(tmp_path / "elsewhere").keys() == first


def test_a_page_that_cannot_be_written_fails_no_run(world, tmp_path, capsys):
    """A folder stands in its place: a line in the log, and the run is done."""
    (tmp_path / "s" / "report.html" / "mine").mkdir(parents=True)
    run_main(*train_flags(world, "--output-dir", tmp_path / "s"))
    said = capsys.readouterr().out
    assert "no report: " in said and "done: top1" in said
    assert recorded(tmp_path / "s" / "settings.json") and (tmp_path / "s" / "results.json").exists()


@pytest.mark.parametrize("ipc, columns", ((4, 8), (5, 5)))
def test_what_is_said_of_the_contact_sheet_is_what_it_shows(ipc, columns, tmp_path):
    contact_sheet(synthetic_folder(tmp_path / "images", 12, ipc), tmp_path / "images.png")
    with Image.open(tmp_path / "images.png") as sheet:
        assert (sheet.width - GAP) // (64 + GAP) == columns
    assert "with its first images (20 at most); where a class has 4 or fewer, several share a row (100 images at most)." in Reader(make_report(tmp_path)).text


def test_a_large_contact_sheet_is_made_smaller(run):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (1000, 2000, 3), dtype=np.uint8)).save(run / "images.png")
    html = make_report(run)
    data = base64.b64decode(re.search(r"data:image/jpeg;base64,([^\"]+)", html)[1])
    (run / "small.jpg").write_bytes(data)
    with Image.open(run / "small.jpg") as sheet:
        assert sheet.size == (report.LARGEST_SIDE, report.LARGEST_SIDE // 2) and len(data) < (run / "images.png").stat().st_size / 4


def test_real_images_are_called_so(world, tmp_path):
    """By the manifest of the images, wherever the student's folder lies."""
    shutil.copytree(world / "run", tmp_path / "run")
    for path in (tmp_path / "run").rglob("*args.json"):
        path.write_text(path.read_text().replace(str(world / "run"), str(tmp_path / "run")))
    run_main(random_real, "--dataset", "cifar10", "--name", tmp_path / "run", "--real-data", world / "real", "--model", SMALL)
    text = Reader((tmp_path / "run" / "report.html").read_text()).text
    assert f"{SMALL}, random real images, soft labels" in text and f"labels of random_real/student_{SMALL}" in text
    assert "No control" not in text and f"random_real/student_{SMALL} has the protocol of student_{SMALL}." in text


def test_a_kind_of_student_has_its_colour_whatever_else_is_there():
    """Those of the README's plot: distilled, hard labels, random real."""
    def student(real, hard):
        return SimpleNamespace(is_real=real, is_hard=hard)
    soft, hard, real = student(False, False), student(False, True), student(True, False)
    assert colour_numbers([soft, hard, real]) == [0, 1, 2] and colour_numbers([soft, real]) == [0, 2]
    assert colour_numbers([soft, soft, real, soft, hard]) == [0, 3, 2, 4, 1]
