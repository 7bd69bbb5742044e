"""The pictures of img/ are drawn from rows of results/ by themselves, and show the numbers of the rows."""
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from report import figures, plots, rows
from report.collect import collect
from report.rows import RESULTS, Row
from sre2l.data.image_folder import decode
from sre2l.run.paths import ROOT
from sre2l.run.start import run_script
from tests.synthetic_run import synthetic_run


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
    made = {path.name: path for path in figures.make_figures(found, tmp_path)}

    images = {f"images_{name}.png" for name in ("digits", "cifar10", "tiny-imagenet", "imagenet1k")}
    assert images | {"animation.gif", "results.png", "terms.png"} == set(made)
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


def test_the_plots_show_the_means_and_spreads_of_the_rows(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    collect(synthetic_run(tmp_path / "runs" / "try"), tmp_path / "try")
    panels = plots.plot_results([Row("try", "tiny-imagenet", 10), Row("try", "cifar10", 1)])
    tiny, cifar = panels.axes
    assert [axis.get_title() for axis in panels.axes] == ["Tiny-ImageNet", "CIFAR-10"]
    drawn = {bars.get_label(): bars[0].get_ydata()[0] for bars in tiny.containers}
    assert sorted(drawn.values()) == [66, 71, 78] and drawn[plots.KINDS["hard"][0]] == 71
    low, high = tiny.containers[0][2][0].get_segments()[0][:, 1]
    assert (low, high) == (66 - 1.25, 66 + 1.25)
    lines = {line.get_label(): list(line.get_ydata()) for line in tiny.lines}
    assert lines[plots.PUBLISHED_TEXT] == [41.1, 49.7] and lines[plots.TEACHER_TEXT] == [90.5, 90.5]
    assert plots.PUBLISHED_TEXT not in {line.get_label() for line in cifar.lines}
    terms = plots.mean_terms(Row("try", "digits", 10).metrics("images"))
    assert terms[30] == {"ce": 9 / 31, "r_bn_bn": 90 / 31}


def test_without_matplotlib_one_sentence_and_nothing_drawn(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(figures, "save_png", None)
    with pytest.raises(SystemExit) as caught:
        run_script(figures.main, lambda: figures.get_args([]))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and "pip install matplotlib" in error and len(error.splitlines()) == 1


def test_the_pictures_of_the_readmes_are_small():
    sizes = {path.name: path.stat().st_size for path in (ROOT / "img").iterdir()}
    assert {name.rpartition(".")[2] for name in sizes} == {"png", "gif"}
    assert sum(sizes.values()) < 4e6 and sizes["animation.gif"] < 3e6
