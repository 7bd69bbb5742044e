"""Pictures: what is on a contact sheet and in an animation, and that the README's figures can be drawn from rows of results/."""
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from report import figures as make_figures, curves as plots
from recover.pictures import GAP, animate, contact_sheet, save_snapshot, spread
from report import rows
from report.collect import collect
from report.rows import RESULTS, Row
from sre2l.data.datasets import DATASETS
from sre2l.data.image_folder import decode
from sre2l.run.paths import ROOT
from sre2l.run.start import run_script
from tests.helpers import refused, run_main, synthetic_folder
from tests.synthetic_run import synthetic_run


def test_contact_sheet_has_a_row_per_class_and_a_column_per_image(tmp_path):
    """Each tile, at its place, is the image enlarged twice: the first pixel of every 2x2 block gives it back."""
    root = synthetic_folder(tmp_path / "images", num_classes=3, ipc=2)
    contact_sheet(root, tmp_path / "sheet.png")
    sheet = decode(tmp_path / "sheet.png")
    assert sheet.shape == (3 * (64 + GAP) + GAP, 2 * (64 + GAP) + GAP, 3)
    for label in range(3):
        for i in range(2):
            top, left = GAP + label * (64 + GAP), GAP + i * (64 + GAP)
            wanted = decode(root / f"new{label:03d}" / f"class{label:03d}_id{i:03d}.jpg")
            assert np.array_equal(sheet[top:top + 64:2, left:left + 64:2], wanted)


def test_a_large_set_gives_a_bounded_sheet(tmp_path):
    contact_sheet(synthetic_folder(tmp_path / "images", num_classes=30, ipc=22, size=8), tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == (20 * (64 + GAP) + GAP, 20 * (64 + GAP) + GAP)
    assert spread(list(range(30)), 3) == [0, 14, 29] and spread([1, 2], 5) == [1, 2]


def test_classes_of_one_image_share_a_row(tmp_path):
    """Class after class, row after row; the last row may be short."""
    root = synthetic_folder(tmp_path / "images", num_classes=11, ipc=1)
    contact_sheet(root, tmp_path / "sheet.png")
    sheet = decode(tmp_path / "sheet.png")
    assert sheet.shape == (4 * (64 + GAP) + GAP, 3 * (64 + GAP) + GAP, 3)
    for label in range(11):
        top, left = (GAP + place * (64 + GAP) for place in divmod(label, 3))
        assert np.array_equal(sheet[top:top + 64:2, left:left + 64:2], decode(root / f"new{label:03d}" / f"class{label:03d}_id000.jpg"))


def test_animation_has_a_frame_per_snapshot_and_holds_the_last(tmp_path):
    rng = np.random.default_rng(0)
    for iteration in (0, 10, 20):
        save_snapshot(rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8), tmp_path / "s", iteration)
    animate(tmp_path / "s", tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 3
        gif.seek(2)
        assert gif.info["duration"] == 2000


def test_every_row_that_arrives_is_in_the_figures(tmp_path, monkeypatch):
    """Rows of four data sets, of noise, and the digits of results/: all pictures, at most as large as planned."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    shutil.copytree(RESULTS / "digits_ipc10", tmp_path / "digits_ipc10")
    found = [Row("digits_ipc10", "digits", 10), Row("none", "cifar10", 50), Row("none", "cifar10", None)]
    for dataset, ipc, classes in (("cifar10", 10, 10), ("tiny-imagenet", 50, 12), ("imagenet1k", 1, 12)):
        collect(synthetic_run(tmp_path / "runs" / dataset, dataset, 2 if ipc > 1 else 1, classes), tmp_path / dataset)
        found.append(Row(dataset, dataset, ipc))
    made = {path.name: path for path in make_figures.make_figures(found, tmp_path)}
    assert {f"images_{name}.png" for name in DATASETS} - {"images_cifar100.png"} | {"overview.png", "animation.gif", "results.png", "terms.png"} <= set(made)
    assert all(Image.open(path).width <= 2000 and path.stat().st_size < 3e6 for path in made.values())
    with Image.open(made["animation.gif"]) as gif:
        assert gif.n_frames == 4 and gif.size[0] == 5 * 112 + 4 * make_figures.GAP  # the hardest data set's
    sheet = decode(made["images_cifar10.png"])
    assert sheet.shape[1] == 10 * 128 + 9 * make_figures.GAP
    assert np.abs(sheet[:128:4, :128:4].astype(int) - decode(tmp_path / "cifar10/images/new000/class000_id000.jpg")).mean() < 20  # a palette's loss


def test_the_plots_show_the_means_and_spreads_of_the_rows(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    collect(synthetic_run(tmp_path / "runs" / "try"), tmp_path / "try")
    figure = plots.plot_results([Row("try", "tiny-imagenet", 10), Row("try", "cifar10", 1)])
    tiny, cifar = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["Tiny-ImageNet", "CIFAR-10"]
    drawn = {bars.get_label(): bars[0].get_ydata()[0] for bars in tiny.containers}
    assert sorted(drawn.values()) == [66, 71, 78] and drawn[plots.KINDS["hard"][0]] == 71
    low, high = tiny.containers[0][2][0].get_segments()[0][:, 1]
    assert (low, high) == (66 - 1.25, 66 + 1.25)
    published = {line.get_label(): list(line.get_ydata()) for line in tiny.lines}
    assert published[plots.THEIRS] == [41.1, 49.7] and published[plots.TEACHER] == [90.5, 90.5]
    assert plots.THEIRS not in {line.get_label() for line in cifar.lines}
    assert plots.read_terms(Row("try", "digits", 10))[30] == (9 / 31, 90 / 31)


def test_without_matplotlib_one_sentence_and_nothing_drawn(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(make_figures, "save_png", None)
    with pytest.raises(SystemExit) as caught:
        run_script(make_figures.main, lambda: make_figures.get_args([]))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and "pip install matplotlib" in error and len(error.splitlines()) == 1


def test_figures_need_rows(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(make_figures, "ROWS", ())
    run_main(make_figures, "--dry-run")
    assert "report.collect" in refused(make_figures)


def test_the_pictures_of_the_readmes_are_there_and_small():
    for readme in [ROOT / "README.md", *ROOT.glob("*/README.md")]:
        for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)|<img [^>]*src=\"([^\"]+)\"", readme.read_text()):
            assert Image.open(readme.parent / next(filter(None, picture))).width >= 100, picture
    assert sum(path.stat().st_size for path in (ROOT / "img").iterdir() if path.suffix in (".png", ".gif")) < 4e6
    assert (ROOT / "img" / "animation.gif").stat().st_size < 3e6
