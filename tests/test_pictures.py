"""Pictures: what is on a contact sheet and in an animation."""
import numpy as np
import pytest
from PIL import Image

from recover.pictures import GAP, animate, contact_sheet, save_snapshot, spread
from sre2l.data.image_folder import decode
from tests.helpers import synthetic_folder


@pytest.mark.parametrize("num_classes, ipc, rows, columns", ((3, 2, 3, 2), (11, 1, 4, 3)))
def test_contact_sheet_has_a_row_per_class_and_a_column_per_image(tmp_path, num_classes, ipc, rows, columns):
    """Classes of one image share a row, the last of which may be short.

    A tile, at its place, is the image enlarged twice: the first pixel of each 2x2 block gives it back."""
    root = synthetic_folder(tmp_path / "images", num_classes, ipc)
    contact_sheet(root, tmp_path / "sheet.png")
    sheet = decode(tmp_path / "sheet.png")
    assert sheet.shape == (rows * (64 + GAP) + GAP, columns * (64 + GAP) + GAP, 3)
    for number, path in enumerate(sorted(root.rglob("*.jpg"))):
        top, left = (GAP + place * (64 + GAP) for place in divmod(number, columns))
        assert np.array_equal(sheet[top:top + 64:2, left:left + 64:2], decode(path))


def test_a_large_set_gives_a_bounded_sheet(tmp_path):
    root = synthetic_folder(tmp_path / "images", num_classes=30, ipc=22, size=8)
    contact_sheet(root, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == (20 * (64 + GAP) + GAP, 20 * (64 + GAP) + GAP)
    assert spread(list(range(30)), 3) == [0, 14, 29] and spread([1, 2], 5) == [1, 2]


def test_animation_has_a_frame_per_snapshot_and_holds_the_last(tmp_path):
    rng = np.random.default_rng(0)
    for iteration in (0, 10, 20):
        save_snapshot(rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8), tmp_path / "s", iteration)
    animate(tmp_path / "s", tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 3
        gif.seek(2)
        assert gif.info["duration"] == 2000
