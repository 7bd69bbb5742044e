"""The contract between relabel and validate: the label files, what may stand in them, and what a folder of them tells."""
import hashlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sre2l.data.augment import Crops, Mix
from sre2l.run.errors import UserError
from sre2l.run.files import sidecar
from sre2l.run.links import check_link
from sre2l.run.safe_load import is_whole, safe_load

try:
    from numpy._core.multiarray import scalar as numpy_scalar  # numpy 2
except ImportError:
    from numpy.core.multiarray import scalar as numpy_scalar
# What a published file may hold besides tensors: numpy integers in the cutmix box, under the names of numpy 1 and 2.
NUMPY_TYPES = [(numpy_scalar, "numpy.core.multiarray.scalar"), (numpy_scalar, "numpy._core.multiarray.scalar"),
               np.dtype, type(np.dtype(np.int64)), type(np.dtype(np.float64))]
torch.serialization.add_safe_globals(NUMPY_TYPES)  # once: to add and remove them at each file disturbs the other threads


class LabelBatch(NamedTuple):
    """What is drawn for a batch, and what the teacher said: the six fields of a label file. logits (m, C) are of the mixed images."""
    crops: Crops
    mix: Mix
    logits: torch.Tensor | None = None


def label_name(epoch, index):
    return f"epoch_{epoch}/batch_{index}.tar"


def label_path(root, epoch, index):
    return Path(root) / label_name(epoch, index)


def encode_label_batch(sheet):
    """A label file in the released format, a list of six, plain ints in the box -> its bytes."""
    data = io.BytesIO()
    torch.save([sheet.crops.boxes, sheet.crops.flips, sheet.mix.partner, sheet.mix.lam, sheet.mix.box, sheet.logits], data)
    return data.getvalue()


def read_fields(path, digest=None):
    """The six fields of a label file, ours or a published one, without open pickle; raises UserError for anything else.

    digest: the sha256 that was recorded for it, None = unknown; then the zip's own checksums are all there is."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: this label file is missing or not readable ({error.strerror})") from None
    if digest and hashlib.sha256(data).hexdigest() != digest:
        listing = sidecar(path.parents[1], "sha256")
        raise UserError(f"{path}: its sha256 is not the one in {listing}; the same relabel command writes it again")
    fields = safe_load(path, "label file", data)
    if not isinstance(fields, (list, tuple)) or len(fields) != 6:
        raise UserError(f"{path}: a label file is a list of six fields")
    return fields


def is_tensor(value, shape, dtypes):
    return is_whole(value) and tuple(value.shape) == tuple(shape) and value.dtype in dtypes


def is_box(value):
    """Four whole numbers from 0: plain ints, or numpy's in published files."""
    return isinstance(value, (list, tuple)) and len(value) == 4 and all(isinstance(v, (int, np.integer)) and v >= 0 for v in value)


def read_label_batch(root, epoch, index, num_rows=None, num_classes=None, hashes=None):
    """Read and check one label file. num_rows, num_classes: what they must be, None = as they are; hashes: the recorded ones by
    name, None for a folder without. Raises UserError."""
    path = label_path(root, epoch, index)
    if hashes is not None and label_name(epoch, index) not in hashes:
        raise UserError(f"{path}: no hash is recorded for it in {sidecar(root, 'sha256')}; the same relabel command writes it again")
    boxes, flips, partner, lam, box, logits = read_fields(path, hashes and hashes[label_name(epoch, index)])
    if not is_whole(logits) or logits.ndim != 2 or logits.dtype not in (torch.float16, torch.float32):
        raise UserError(f"{path}: field 5 must be logits (m, C) in float16 or float32")
    rows, outputs = (logits.shape[0] if num_rows is None else num_rows), (num_classes or logits.shape[1])
    if tuple(logits.shape) != (rows, outputs):
        raise UserError(f"{path}: logits of shape {tuple(logits.shape)}, expected {(rows, outputs)}")
    if not torch.isfinite(logits).all():
        raise UserError(f"{path}: logits are not finite")
    if not is_tensor(boxes, (rows, 4), (torch.float32,)) or not (boxes.abs() <= 1.5).all() or not (boxes[:, 2:] > 0).all():
        raise UserError(f"{path}: field 0 must be {rows} crop boxes (top, left, height, width) as fractions, float32")
    if not is_tensor(flips, (rows,), (torch.bool,)):
        raise UserError(f"{path}: field 1 must be {rows} flips, bool")
    if partner is not None and (not is_tensor(partner, (rows,), (torch.int64,)) or not ((partner >= 0) & (partner < rows)).all()):
        raise UserError(f"{path}: field 2 must be {rows} partners within the batch, int64")
    if (partner is None) != (lam is None) or (lam is not None and not (isinstance(lam, (int, float)) and 0 <= lam <= 1)):
        raise UserError(f"{path}: field 3, lam, must be in [0, 1] where there are partners")
    if box is not None and (partner is None or not is_box(box)):
        raise UserError(f"{path}: field 4 must be the four corners of a cutmix box")
    mix = Mix(partner, None if lam is None else float(lam), None if box is None else [int(v) for v in box])
    return LabelBatch(Crops(boxes, flips), mix, logits)


@dataclass(frozen=True)
class LabelFolder:
    """What a label folder itself tells: no manifest needed. mix: 'none', 'mixup' or 'cutmix'."""
    num_images: int
    batch_size: int
    epochs: int
    num_classes: int
    mix: str
    num_bytes: int


def numbered(folder, pattern, root):
    """The numbers in the names of a folder's entries, which must be 0..n-1 with nothing else beside them, and no link out of the label
    folder `root`; raises UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such label folder")
    with os.scandir(folder) as scan:
        entries = list(scan)
    for entry in entries:
        if entry.is_symlink():
            check_link(entry.path, os.path.realpath(root))
    matches = {entry.name: re.fullmatch(pattern, entry.name) for entry in entries}
    stray = sorted(name for name, match in matches.items() if not match)
    if stray:
        raise UserError(f"{folder / stray[0]}: does not belong into a label folder")
    numbers = sorted(int(match[1]) for match in matches.values())
    if not numbers or numbers != list(range(len(numbers))):
        gap = next((i for i, n in enumerate(numbers) if i != n), 0)
        raise UserError(f"{folder}: number {gap} of its {'batches' if 'batch' in pattern else 'epochs'} is missing")
    return len(numbers)


def inspect_labels(root):
    """Derive the shape of a label folder from its names and from the first and last file of epoch 0; checks every epoch's names."""
    root = Path(root)
    epochs = numbered(root, r"epoch_(\d+)", root)
    counts = [numbered(root / f"epoch_{epoch}", r"batch_(\d+)\.tar", root) for epoch in range(epochs)]
    odd = next((epoch for epoch, count in enumerate(counts) if count != counts[0]), None)
    if odd is not None:
        raise UserError(f"{root / f'epoch_{odd}'}: {counts[odd]} label files, epoch_0 has {counts[0]}")
    first, last = read_label_batch(root, 0, 0), read_label_batch(root, 0, counts[0] - 1)
    batch_size, num_classes = first.logits.shape
    num_bytes = sum(path.stat().st_size for path in root.glob("epoch_*/batch_*.tar"))
    return LabelFolder(batch_size * (counts[0] - 1) + last.logits.shape[0], batch_size, epochs, num_classes, first.mix.kind, num_bytes)
