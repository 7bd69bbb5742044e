"""report.html says what the run wrote and loads nothing; a page that cannot be made fails no run."""
import base64
import fcntl
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relabel import relabel
from report import curves, summary
from report import page as report_page
from report.data import read_run
from report.page import make_report
from sre2l.run.files import sidecar, write_json
from sre2l.run.log import read_metrics
from sre2l.run.output import read_record, recorded, write_record
from tests.helpers import SMALL, refused, run_main
from tests.pages import Reader
from tests.test_continue import files_of
from tests.worlds import common, make_world, recover_flags, teacher, train_flags
from validate import random_real
from validate.results import write_page


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run of recover, relabel, two students and one with hard labels -> the folder that holds run/."""
    root = make_world(tmp_path_factory.mktemp("report"))
    shutil.rmtree(root / "run")
    run_main(*recover_flags(root, "--iteration", 5, "--ipc-end", 2, name="run"))
    run_main(relabel, *common(root), *teacher(root), "--epochs", 2, "-b", 8, "-j", 0)
    run_main(*train_flags(root, "--epochs", 2, "--eval-every", 1, "--seeds", "0-1"))
    with pytest.MonkeyPatch.context() as patch:  # the last student's page is about all
        patch.setattr("validate.results.write_page", write_page)
        run_main(*train_flags(root, "--epochs", 2, "--eval-every", 1, "--hard-labels"))
    return root


@pytest.fixture
def run(world, tmp_path):
    """A copy of the run that may be broken. Its args.json name folders that are gone, as after a move."""
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
        assert f"{results['top1']['mean']:.2f}{spread}" in text
        assert f"{results['best_top1']['mean']:.2f}" in text
        assert f"{results['seconds']['validate']:,.1f}" in text
        assert f"{name}, {len(results['seeds'])} seed" in text
    assert f"{results['image_bytes']:,}" in text and f"{results['label_bytes']:,}" in text
    hard = f"student_{SMALL}_hard"
    assert f"{hard} has the protocol of student_{SMALL} but for hard_labels, loss, temperature." in text
    assert "its top-1 has not been measured" in text
    assert "No teacher was trained in this run" in text
    assert base64.b64encode((run / "images.png").read_bytes()).decode() in html


def test_another_student_does_not_become_the_pages_first(run):
    """The first is the one with controls, named as train.sh names it; a control is compared with it."""
    for name, changes in (("student_60", {"model": "other", "epochs": 60}), ("student_15", {"epochs": 15})):
        shutil.copytree(run / f"student_{SMALL}", run / name)
        results = json.loads((run / name / "results.json").read_text())
        results["protocol"] |= changes
        write_json(run / name / "results.json", results)
    students = read_run(run).students
    assert [student.name for student in students] == \
        [f"student_{SMALL}", "student_15", "student_60", f"student_{SMALL}_hard"]
    text = Reader(make_report(run)).text
    assert f"_hard has the protocol of student_{SMALL} but for hard_labels" in text
    assert f"student_60 has the protocol of student_{SMALL} but for model, epochs." in text
    assert "Chance is 10%; measured on" in text


def test_the_teachers_top1_is_the_measured_one_else_that_of_its_checkpoint(run, monkeypatch):
    path = run / f"student_{SMALL}" / "results.json"
    results = json.loads(path.read_text())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    labels = results["protocol"]["labels"]
    labels["teacher"]["top1"] = 12.345
    for measured, wanted in ((77.254, "77.25"), (None, "12.35"), (0.0, "0.00")):
        labels["measured_top1"] = measured
        path.write_text(json.dumps(results))
        text = Reader(make_report(run)).text
        assert f"Its teacher, {SMALL}, has {wanted} %." in text
        assert ("as relabel measured it" in text) == (measured is not None)


def test_the_settings_of_every_stage_stand_on_the_page(world):
    text = Reader(make_report(world / "run")).text
    images = recorded(sidecar(world / "run" / "images", "manifest.json"))
    labels = recorded(sidecar(world / "run" / "labels", "manifest.json"))
    for key in ("iteration", "r_bn", "lr", "batch_size"):
        assert f"{key}{images[key]:g}" in text
    for key in ("mix", "order_seed", "epochs"):
        assert f"{key}{labels[key]}" in text
    assert "optimizer.nameAdamW" in text and "classes0 to 9, 10 in all" in text


def test_the_page_loads_nothing_and_every_picture_has_a_text(world):
    html = make_report(world / "run")
    read = Reader(html)
    assert all(url.startswith("data:image/") for url in read.loaded) and len(read.loaded) == 1
    tags = [tag for tag, _ in read.elements]
    assert not {"script", "link", "iframe", "object"} & set(tags) and "@import" not in html
    assert tags.count("style") == 1
    pictures = [attributes for tag, attributes in read.elements if tag in ("img", "svg")]
    assert all(len(attributes.get("alt") or attributes.get("aria-label")) > 20 for attributes in pictures)
    assert make_report(world / "run") == html  # nothing in it depends on when it was made
    assert str(world) not in html


def test_with_matplotlib_there_are_three_figures(world):
    pytest.importorskip("matplotlib")
    html = make_report(world / "run")
    read = Reader(html)
    assert [tag for tag, _ in read.elements].count("svg") == 3
    assert "pip install matplotlib" not in read.text
    assert f"student_{SMALL}_hard" in read.text and "cross entropy, nats" in read.text
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert all(f'id="{name}"' in html for name in re.findall(r"url\(#([^)]+)\)", html))
    assert curves.INK not in html and "currentColor" in html


def test_picked_images_have_no_empty_curve_of_recover(run):
    pytest.importorskip("matplotlib")
    assert "Recover: terms of the loss" in Reader(make_report(run)).text
    settings = recorded(run / "images.manifest.json")
    (run / "images.metrics.jsonl").unlink()
    picked = {**settings, "source": "x", "score": "confidence"}
    write_record(run / "images.manifest.json", {"settings": picked})
    text = Reader(make_report(run)).text
    assert "Recover: terms of the loss" not in text and "There is nothing to draw yet" not in text
    assert "Students: loss" in text and "Students: top-1" in text


def test_a_recipe_stands_on_the_page_of_a_run_of_another_name(world, tmp_path):
    assert "The recipe is" not in Reader(make_report(world / "run")).text
    script, _, _, *flags = recover_flags(world, name=tmp_path / "q")
    run_main(script, "--dataset", "cifar10+young", *flags)
    text = Reader(make_report(tmp_path / "q")).text
    assert "The recipe is cifar10+young." in text and "datasetcifar10" in text


def test_without_matplotlib_one_sentence_and_all_else(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    read = Reader(make_report(world / "run"))
    tags = [tag for tag, _ in read.elements]
    assert read.text.count("pip install matplotlib adds the curves") == 1 and "svg" not in tags
    assert read.text.count("Accuracy") == 1 and tags.count("img") == 1


def test_curves_are_the_metrics_and_the_last_line_of_a_step_counts(run):
    figure = pytest.importorskip("matplotlib.figure")
    path = run / "images.metrics.jsonl"
    lines = [values for values in read_metrics(path) if "iteration" in values]
    again = {**lines[2], "ce": 123.0}
    with open(path, "a") as file:
        file.write(f"{json.dumps(again)}\n{{torn\n[1]\n")
    last = {(values["unit"], values["iteration"]): values for values in [*lines, again]}
    axis = figure.Figure().subplots()
    curves.plot_run_terms(axis, read_run(run))
    for term, line in zip(("ce", "r_bn_bn"), axis.lines):
        for iteration, height in zip(*line.get_data()):
            batches = [values[term] for (_, number), values in last.items() if number == iteration]
            assert height == pytest.approx(np.mean(batches))

    soft = read_metrics(run / f"student_{SMALL}" / "metrics.jsonl")
    hard = read_metrics(run / f"student_{SMALL}_hard" / "metrics.jsonl")
    by_seed = [[line for line in soft if line["seed"] == seed] for seed in (0, 1)] + [hard]
    for key in ("loss", "top1"):
        axis = figure.Figure().subplots()
        curves.plot_students(axis, read_run(run), key)
        found = [dict(zip(*line.get_data())) for line in axis.lines]
        assert found == [{line["epoch"]: line[key] for line in seed if key in line} for seed in by_seed]


def test_a_file_that_cannot_be_read_is_named(run):
    (run / f"student_{SMALL}" / "results.json").write_text("{torn")
    assert f"student_{SMALL}/results.json" in refused(report_page, "--run", run)


def test_names_and_values_are_text(run):
    """A student's folder and the values in its results that look like markup stay what they are."""
    odd = '<script>alert(1)</script>"\'&$x^'
    (run / f"student_{SMALL}_hard").rename(run / odd.replace("/", ""))
    path = run / f"student_{SMALL}" / "results.json"
    results = json.loads(path.read_text())
    results["versions"]["device"] = results["protocol"]["model"] = odd
    path.write_text(json.dumps(results))
    html = make_report(run)
    read = Reader(html)
    assert "script" not in {tag for tag, _ in read.elements}
    assert odd in read.text and odd.replace("/", "") in read.text


def test_a_run_with_images_alone_says_what_is_missing(world, tmp_path):
    run_main(*recover_flags(world, name=tmp_path / "new"))
    run_main(report_page, "--run", tmp_path / "new")
    text = Reader((tmp_path / "new" / "report.html").read_text()).text
    assert "No student has been trained here yet" in text and "seed0" in text
    assert "No manifest beside labels: no labels yet" in text
    assert "There is nothing to draw yet" in text or "pip install matplotlib" in text
    assert "images (recover)" in text
    assert "there is no such run" in refused(report_page, "--dataset", "cifar10", "--name", tmp_path / "none")
    run_main(report_page, "--dataset", "cifar10", "--name", tmp_path / "none", "--dry-run")
    assert not (tmp_path / "none").exists()


def test_a_student_elsewhere_has_a_page_of_its_own_that_overwrite_knows(world, page, tmp_path, monkeypatch):
    flags = train_flags(world, "--output-dir", tmp_path / "elsewhere")
    before = (world / "run" / "report.html").read_bytes()
    run_main(*flags)
    assert (world / "run" / "report.html").read_bytes() == before
    text = Reader((tmp_path / "elsewhere" / "report.html").read_text()).text
    assert f"{SMALL}, distilled images, soft labels" in text and "elsewhere, 1 seed" in text
    first = files_of(tmp_path / "elsewhere").keys()
    monkeypatch.setattr("validate.results.write_page", lambda run, student: "no report: a test")
    run_main(*flags, "--overwrite", "--adamw-lr", 0.1)
    assert files_of(tmp_path / "elsewhere").keys() == first - {Path("report.html")}


def test_a_page_that_cannot_be_written_fails_no_run(world, page, tmp_path, capsys):
    """A folder stands in its place: a line in the log, and the run is done."""
    (tmp_path / "s" / "report.html" / "mine").mkdir(parents=True)
    run_main(*train_flags(world, "--output-dir", tmp_path / "s"))
    said = capsys.readouterr().out
    assert "no report: " in said and "done: top1" in said
    assert recorded(tmp_path / "s" / "settings.json") and (tmp_path / "s" / "results.json").exists()


def test_what_a_kill_left_of_a_page_goes_with_the_next_one(run):
    (run / "report.html.0123456789ab.tmp").touch()
    report_page.write_report(run)
    assert [path.name for path in run.glob("report.html*")] == ["report.html"]


def test_two_pages_of_a_run_are_written_one_after_the_other(run, monkeypatch):
    def page_that_tries_the_lock(folder):
        other = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
        return "page"

    monkeypatch.setattr(report_page, "make_report", page_that_tries_the_lock)
    report_page.write_report(run)
    report_page.write_report(run)  # the first has let it go
    assert (run / "report.html").read_text() == "page"


def test_a_large_contact_sheet_is_made_smaller(run):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (1000, 2000, 3), dtype=np.uint8)).save(run / "images.png")
    html = make_report(run)
    data = base64.b64decode(re.search(r"data:image/jpeg;base64,([^\"]+)", html)[1])
    (run / "small.jpg").write_bytes(data)
    with Image.open(run / "small.jpg") as sheet:
        assert sheet.size == (report_page.LARGEST_SIDE, report_page.LARGEST_SIDE // 2)
    assert len(data) < (run / "images.png").stat().st_size / 4


def test_real_images_are_called_so(world, tmp_path):
    """By the manifest of the images, wherever the student's folder lies."""
    shutil.copytree(world / "run", tmp_path / "run")
    for path in (tmp_path / "run").rglob("*args.json"):
        path.write_text(path.read_text().replace(str(world / "run"), str(tmp_path / "run")))
    run_main(random_real, "--dataset", "cifar10", "--name", tmp_path / "run", "--real-data", world / "real",
             "--model", SMALL)
    text = Reader(make_report(tmp_path / "run")).text
    assert f"{SMALL}, random real images, soft labels" in text
    assert re.search(rf"random_real/student_{SMALL}, \d seeds?", text)  # as many as the shared world has
    assert f"random_real/student_{SMALL} has the protocol of student_{SMALL}." in text


def test_a_time_that_is_not_known_is_not_added(run, capsys):
    """A stage whose metrics file is gone has no seconds: neither has a sum of which they are a part."""
    real = json.loads((run / f"student_{SMALL}" / "results.json").read_text())
    real["seconds"] |= {"relabel": None, "validate": 12.0}
    (run / "random_real" / f"student_{SMALL}").mkdir(parents=True)
    write_json(run / "random_real" / f"student_{SMALL}" / "results.json", real)
    run_main(summary, "--dataset", "cifar10", "--name", run, "--model", SMALL)
    seconds = json.loads((run / "summary.json").read_text())["seconds"]
    assert seconds["random_real_control"] is None and seconds["hard_label_control"] > 0
    printed = capsys.readouterr().out
    assert "random_real_control" not in printed and "hard_label_control" in printed


def test_a_student_of_earlier_images_is_called_so_and_stands_in_no_summary(run):
    """As after recover and relabel with --overwrite: its figures are not those of the images on the page."""
    shutil.copytree(run / f"student_{SMALL}", run / "random_real" / f"student_{SMALL}")
    manifest = run / "labels.manifest.json"
    write_record(manifest, {"settings": {**read_record(manifest)["settings"], "images_sha256": "0" * 64}})
    assert f"{SMALL}, distilled images of an earlier run" in Reader(make_report(run)).text
    message = refused(summary, "--dataset", "cifar10", "--name", run, "--model", SMALL)
    assert "trained on other images than the labels there belong to now; run train.sh again" in message
