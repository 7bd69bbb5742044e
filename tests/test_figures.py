"""The pictures of img/ are drawn from rows of results/ by themselves, and show the numbers of the rows."""
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from report import figures, plots, rows
from report.collect import collect
from report.rows import RESULTS, Row
from sre2l.data.image_folder import decode
from sre2l.run.files import read_json, write_json
from sre2l.run.paths import ROOT
from sre2l.run.start import run_script
from tests.synthetic_run import synthetic_run


def make_recipe(folder):
    """A row of a recipe that begins with real images and merges them in twice."""
    run = synthetic_run(folder / "runs" / "best", "cifar10")
    settings = read_json(run / "images.manifest.json")["settings"]
    settings |= {"init": {"num_images": 20}, "blocks": "10@32,10@32,10@32", "merge": 0.5}
    write_json(run / "images.manifest.json", {"settings": settings})
    collect(run, folder / "best")
    return Row("best", "cifar10", 10, recipe="best")


def test_every_row_that_arrives_is_in_the_figures(tmp_path, monkeypatch):
    """Rows of noise of three data sets, and the digits of results/: all plots and images, none too large."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    shutil.copytree(RESULTS / "digits_ipc10", tmp_path / "digits_ipc10")
    found = [Row("digits_ipc10", "digits", 10), Row("none", "cifar10", 50), Row("none", "cifar10", None)]
    for dataset, ipc, classes in (("cifar10", 10, 10), ("tiny-imagenet", 50, 12), ("imagenet1k", 1, 12)):
        run = synthetic_run(tmp_path / "runs" / dataset, dataset, 2 if ipc > 1 else 1, classes)
        collect(run, tmp_path / dataset)
        found.append(Row(dataset, dataset, ipc))
    found.append(make_recipe(tmp_path))
    results = found[0].results()
    made = figures.make_figures(found, tmp_path, {"a step": results}, {"images": {"protocol": results}})
    made = {path.name: path for path in made}

    images = {f"images_{name}.png" for name in ("digits", "cifar10", "tiny-imagenet", "imagenet1k")}
    plotted = {"results.png", "terms.png", "steps.png", "protocols.png"}
    assert images | plotted | {"animation.gif", "animation_real.gif", "recipes_cifar10.png"} == set(made)
    for path in made.values():
        assert Image.open(path).width <= 2000 and path.stat().st_size < 3e6
    # What is drawn of digits is what the project shows, to the pixel.
    shown = (ROOT / "img" / "images_digits.png").read_bytes()
    assert made["images_digits.png"].read_bytes() == shown, "run `python -m report.figures`"
    with Image.open(made["animation.gif"]) as gif:
        assert gif.n_frames == 4 and gif.size[0] == 5 * 112 + 4 * figures.GAP  # the hardest data set's
    sheet = decode(made["images_cifar10.png"])
    assert sheet.shape[1] == 10 * 128 + 9 * figures.GAP
    image = decode(tmp_path / "runs/cifar10/images/new000/class000_id000.jpg")
    assert np.abs(sheet[:128:4, :128:4].astype(int) - image).mean() < 20  # a palette's loss
    with Image.open(made["animation_real.gif"]) as gif:
        assert gif.size[0] == 5 * 96 + 4 * figures.GAP
    # The recipe's line below that of SRe2L, the same class, right of the names.
    sheet = decode(made["recipes_cifar10.png"])
    left = sheet.shape[1] - (10 * 128 + 9 * figures.GAP)
    recipe = decode(tmp_path / "runs/best/images/new009/class009_id000.jpg")
    shown = sheet[128 + figures.GAP:256 + figures.GAP:4, left + 9 * (128 + figures.GAP)::4]
    assert np.abs(shown.astype(int) - recipe).mean() < 20


def test_the_plots_show_the_means_and_spreads_of_the_rows(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    collect(synthetic_run(tmp_path / "runs" / "try"), tmp_path / "try")
    panels = plots.plot_results([Row("try", "tiny-imagenet", 10), Row("try", "cifar10", 1)])
    tiny, cifar = panels.axes
    assert [axis.get_title() for axis in panels.axes] == ["Tiny-ImageNet", "CIFAR-10"]
    drawn = {bars.get_label(): bars[0].get_ydata()[0] for bars in tiny.containers}
    assert sorted(drawn.values()) == [66, 71, 78, 78] and drawn[plots.KINDS["hard"][0]] == 71
    low, high = tiny.containers[0][2][0].get_segments()[0][:, 1]
    assert (low, high) == (66 - 1.25, 66 + 1.25)
    lines = {line.get_label(): list(line.get_ydata()) for line in tiny.lines}
    assert lines[plots.PUBLISHED_TEXT] == [41.1, 49.7] and lines[plots.TEACHER_TEXT] == [90.5, 90.5]
    assert plots.PUBLISHED_TEXT not in {line.get_label() for line in cifar.lines}
    terms = plots.mean_terms(Row("try", "digits", 10).metrics("images"))
    assert terms[30] == {"ce": 9 / 31, "r_bn_bn": 90 / 31}


def test_recipes_of_one_ipc_stand_beside_each_other_and_those_of_several_have_a_panel(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    run = synthetic_run(tmp_path / "runs" / "try")
    collect(run, tmp_path / "try")
    write_json(run / "images.manifest.json", {"settings": {"source": "data/cifar10/train"}})
    shutil.rmtree(run / "images.snapshots")
    collect(run, tmp_path / "picked")
    found = [Row("try", "cifar10", 10), *(Row("try", "cifar10", ipc, recipe="best") for ipc in (1, 10)),
             Row("picked", "cifar10", 10, recipe="rded")]
    panels = plots.plot_results(found)
    titles = ["CIFAR-10", "CIFAR-10, best", "CIFAR-10, 10 images per class"]
    assert [axis.get_title() for axis in panels.axes] == titles
    recipes = panels.axes[2]
    assert [label.get_text() for label in recipes.get_xticklabels()] == ["SRe2L", "best", "rded"]
    drawn = {bars.get_label(): list(bars[0].get_xdata()) for bars in recipes.containers}
    # rded's images are picked real ones: nothing of it was distilled.
    assert drawn[plots.KINDS["soft"][0]] == [0, 1] and drawn[plots.KINDS["picked"][0]] == [0, 1, 2]
    assert [values[0].get_ydata()[2] for values in recipes.containers if len(values[0].get_xdata()) == 3
            and values.get_label() == plots.KINDS["picked"][0]] == [66]


def test_steps_and_protocols_show_the_numbers_that_they_are_given(tmp_path):
    pytest.importorskip("matplotlib")
    before = {"top1": {"mean": 17.24, "std": 0.95}}
    after = {"top1": {"mean": 58.52, "std": None}}
    axis = plots.plot_steps({"before": before, "after": after}).axes[0]
    assert [bar.get_width() for bar in axis.patches] == [17.24, 58.52]
    assert [text.get_text() for text in axis.texts] == ["17.2", "58.5"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["before", "after"]
    grid = {"real": {"a": before, "b": None}, "best": {"a": after, "b": None}}
    axis = plots.plot_protocols(grid).axes[0]
    assert [text.get_text() for text in axis.texts] == ["17.2", "not run", "58.5", "not run"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "b"]


def test_an_animation_marks_the_merges(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    row = make_recipe(tmp_path)
    assert figures.merges_of(row) == [10, 20] and figures.merges_of(Row("none", "cifar10", 10)) == []
    strip = np.zeros((32, 320, 3), np.uint8)
    plain, marked = (np.asarray(figures.draw_frame(strip, 0, 30, merges)) for merges in ((), (10, 20)))
    columns = np.flatnonzero((plain != marked).any(axis=(0, 2)))
    assert len(columns) == 6 and columns[3] - columns[0] == pytest.approx((plain.shape[1] - 231) / 3, abs=2)


def test_without_matplotlib_one_sentence_and_nothing_drawn(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(figures, "save_png", None)
    with pytest.raises(SystemExit) as caught:
        run_script(figures.main, lambda: figures.get_args([]))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and "pip install matplotlib" in error and len(error.splitlines()) == 1


def test_the_pictures_of_the_readmes_are_shown_and_small():
    sizes = {path.name: path.stat().st_size for path in (ROOT / "img").iterdir()}
    pages = (ROOT / "README.md").read_text() + (ROOT / "docs" / "pictures.md").read_text()
    assert set(re.findall(r"\]\([./]*img/([\w.-]+)\)", pages)) == set(sizes)
    assert {name.rpartition(".")[2] for name in sizes} == {"png", "gif"}
    assert sum(sizes.values()) < 4e6 and sizes["animation.gif"] < 3e6
