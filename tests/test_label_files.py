"""The label files: the released format, ours, and everything that is not one."""
import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sre2l.check.verify import read_checked, verify_labels
from sre2l.data.augment import Crops, Mix, draw_crops, draw_mix
from sre2l.data.label_files import LabelBatch, label_path, read_label_batch
from sre2l.run.errors import UserError
from tests.helpers import write_label_batch

ROWS = 5
CLASSES = 7


def released_fields(**changed):
    """The six fields as the released code writes them, cutmix box in numpy integers."""
    g = torch.Generator().manual_seed(0)
    fields = {"boxes": torch.rand(ROWS, 4, generator=g) * 0.5 + 0.1,
              "flips": torch.tensor([True, False, True, True, False]),
              "partner": torch.randperm(ROWS, generator=g), "lam": 0.37,
              "box": [np.int64(v) for v in (3, 0, 20, 17)],
              "logits": torch.randn(ROWS, CLASSES, generator=g).half()}
    return list({**fields, **changed}.values())


def write_file(root, data, epoch=0, index=0):
    """Put bytes, or fields in torch.save's format, where a label file belongs."""
    path = label_path(root, epoch, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(data, bytes):
        buffer = io.BytesIO()
        torch.save(data, buffer)
        data = buffer.getvalue()
    path.write_bytes(data)
    return path


def rename_in_pickle(path, module):
    """Rewrite a torch.save zip so that its pickle names numpy's scalar reconstructor under `module`."""
    with zipfile.ZipFile(path) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    entries[name], count = re.subn(rb"cnumpy\._?core\.multiarray\nscalar\n", f"c{module}\nscalar\n".encode(),
                                   entries[name])
    assert count == 1
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for key, value in entries.items():
            target.writestr(key, value)


@pytest.mark.parametrize("module", ("numpy.core.multiarray", "numpy._core.multiarray"))
def test_released_file_with_numpy_integers_loads_and_gives_plain_ints(tmp_path, module):
    fields = released_fields()
    rename_in_pickle(write_file(tmp_path, fields), module)
    sheet = read_label_batch(tmp_path, 0, 0, ROWS, CLASSES)
    assert sheet.mix.box == [3, 0, 20, 17] and [type(v) for v in sheet.mix.box] == [int] * 4
    assert sheet.mix.lam == 0.37 and torch.equal(sheet.mix.partner, fields[2])
    assert torch.equal(sheet.crops.boxes, fields[0]) and torch.equal(sheet.crops.flips, fields[1])
    assert torch.equal(sheet.logits, fields[5]) and sheet.logits.dtype == torch.float16


class Trap:
    """An object whose unpickling creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("place", range(6))
def test_malicious_file_does_not_execute(tmp_path, place, monkeypatch):
    """The trap works under open pickle, and read_label_batch refuses it without springing it."""
    mark = tmp_path / "sprung"
    fields = released_fields()
    fields[place] = Trap(mark)
    path = write_file(tmp_path / "labels", fields)
    with monkeypatch.context() as patch:
        patch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")  # which the package sets
        torch.load(path, weights_only=False)
    assert mark.exists()
    mark.unlink()
    with pytest.raises(UserError, match="batch_0.tar"):
        read_label_batch(tmp_path / "labels", 0, 0)
    assert not mark.exists()


@pytest.mark.parametrize("dtype", (torch.float16, torch.float32))
@pytest.mark.parametrize("kind, alpha", (("cutmix", 1.0), ("mixup", 0.8), ("none", None)))
def test_our_files_are_lists_of_six_plain_values(tmp_path, kind, alpha, dtype):
    """Field types of spec section 5, by plain torch.load, and the same values back from read_label_batch."""
    rng = np.random.default_rng(1)
    crops = draw_crops([(40, 30)] * ROWS, "resized", (0.08, 1), 0, True, rng)
    sheet = LabelBatch(crops, draw_mix(kind, alpha, ROWS, 32, rng), torch.randn(ROWS, CLASSES).to(dtype))
    write_label_batch(tmp_path, 3, 12, sheet)
    fields = torch.load(tmp_path / "epoch_3" / "batch_12.tar", weights_only=True)
    mixed = kind != "none"
    boxed = kind == "cutmix"
    assert type(fields) is list and len(fields) == 6
    assert (fields[0].dtype, fields[0].shape) == (torch.float32, (ROWS, 4))
    assert (fields[1].dtype, fields[1].shape) == (torch.bool, (ROWS,))
    if mixed:
        assert fields[2].dtype == torch.int64 and sorted(fields[2].tolist()) == list(range(ROWS))
    else:
        assert fields[2] is None
    assert type(fields[3]) is (float if mixed else type(None))
    assert (len(fields[4]) == 4 and all(type(v) is int for v in fields[4])) if boxed else fields[4] is None
    assert fields[5].dtype == dtype and fields[5].shape == (ROWS, CLASSES)

    back = read_label_batch(tmp_path, 3, 12, ROWS, CLASSES)
    assert torch.equal(back.crops.boxes, crops.boxes) and torch.equal(back.crops.flips, crops.flips)
    assert (back.mix.lam, back.mix.box, back.mix.kind) == (sheet.mix.lam, sheet.mix.box, kind)
    assert torch.equal(back.mix.partner, sheet.mix.partner) if mixed else back.mix.partner is None
    assert torch.equal(back.logits, sheet.logits)


BOXES = released_fields()[0]
LOGITS = released_fields()[5]
MALFORMED = {  # values of each field that no label file has
    "boxes": (None, BOXES.double(), BOXES[:4], torch.rand(ROWS, 5), BOXES * float("nan"), BOXES * 100,
              BOXES * torch.tensor([1.0, 1, 0, 1]), BOXES.tolist()),
    "flips": (None, torch.zeros(ROWS, dtype=torch.int64), torch.zeros(3) > 0),
    "partner": (None, torch.rand(ROWS), torch.arange(3), torch.arange(1, ROWS + 1),
                torch.arange(-1, ROWS - 1), [0, 1, 2, 3, 4]),
    "lam": (None, 1.5, -0.1, float("nan"), "high", [0.5]),
    "box": ([1, 2, 3], 7, ["a", "b", "c", "d"], "abcd", [0.5, 1.5, 2.5, 3.5], [-3, 0, 5, 5],
            [[1], [2], [3], [4]]),
    "logits": (None, LOGITS.double(), LOGITS[0], LOGITS[:4], LOGITS[:, :6], LOGITS * float("nan"),
               LOGITS * float("inf"), LOGITS.long())}
CASES = [{field: value} for field, values in MALFORMED.items() for value in values]


@pytest.mark.parametrize("changed", [*CASES, {"partner": None, "lam": None}])
def test_malformed_field_is_refused_with_the_files_name(tmp_path, changed):
    write_file(tmp_path, released_fields(**changed), 2, 5)
    with pytest.raises(UserError, match=r"epoch_2/batch_5\.tar"):
        read_label_batch(tmp_path, 2, 5, ROWS, CLASSES)


def whole_file():
    buffer = io.BytesIO()
    torch.save(released_fields(), buffer)
    return buffer.getvalue()


BROKEN = {
    "missing": None, "empty": b"", "text": b"hello\n", "zeros": bytes(5000), "one byte": b"\x80",
    "bad opcode": b"\x80\x04\xff\xff", "a plain pickle": b"\x80\x02]q\x00.",
    "zip without pickle": b"PK\x05\x06" + bytes(18), "cut short": whole_file()[:-700],
    "half": whole_file()[:len(whole_file()) // 2],
    "unknown encoding": whole_file().replace(b"latin1", b"l0tin1"), "five fields": released_fields()[:5],
    "seven fields": released_fields() + [None], "a dict": {"logits": LOGITS}, "a tensor": LOGITS}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("case", BROKEN)
def test_anything_else_is_refused_with_the_files_name(tmp_path, case):
    if case != "missing":
        write_file(tmp_path, BROKEN[case], 2, 5)
    with pytest.raises(UserError, match=r"epoch_2/batch_5\.tar"):
        read_label_batch(tmp_path, 2, 5)


def label_folder(root, epochs=3, batches=(ROWS, ROWS, 2)):
    """Well-formed files for a set of sum(batches) images."""
    for epoch in range(epochs):
        for index, rows in enumerate(batches):
            crops = Crops(BOXES[:rows], torch.zeros(rows, dtype=torch.bool))
            write_label_batch(root, epoch, index,
                              LabelBatch(crops, Mix(torch.arange(rows), 0.5), LOGITS[:rows]))
    return root


def test_folder_tells_its_own_shape(tmp_path):
    info = read_checked(verify_labels(label_folder(tmp_path / "labels")))
    assert (info.num_images, info.batch_size, info.epochs) == (12, ROWS, 3)
    assert (info.num_classes, info.mix) == (CLASSES, "mixup")
    assert info.num_bytes == sum(path.stat().st_size for path in (tmp_path / "labels").rglob("*.tar"))


@pytest.mark.parametrize("gone", (
    "epoch_0", "epoch_1", "epoch_1/batch_0.tar", "epoch_2/batch_1.tar", "epoch_2/batch_2.tar",
    "epoch_0/batch_2.tar"))
def test_missing_epoch_or_batch_is_refused(tmp_path, gone):
    path = label_folder(tmp_path) / gone
    path.rename(tmp_path.parent / f"{tmp_path.name}_gone")
    with pytest.raises(UserError, match="epoch"):
        read_checked(verify_labels(tmp_path))
