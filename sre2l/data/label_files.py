"""The contract between relabel and validate: the labels of a batch, in whichever file they are, and what a
folder tells."""
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sre2l.data.augment import Crops, Mix
from sre2l.data.codecs import is_sparse
from sre2l.data.codecs.exact import name_of
from sre2l.data.packed import encode_epoch, open_epoch, packed_name
from sre2l.run.errors import UserError
from sre2l.run.files import sidecar
from sre2l.run.hashes import AGAIN, changed, numbers_in
from sre2l.run.safe_load import is_whole, safe_load


class LabelBatch(NamedTuple):
    """The six fields of a label file: what is drawn, and logits (m, C) of the mixed images."""
    crops: Crops
    mix: Mix
    logits: torch.Tensor | None = None


def label_name(epoch, index):
    return f"epoch_{epoch}/batch_{index}.tar"


def file_of(batch, is_packed):
    """The name of the file that holds a batch's labels."""
    return packed_name(batch.epoch) if is_packed else label_name(batch.epoch, batch.index)


def label_path(root, epoch, index):
    return Path(root) / label_name(epoch, index)


def encode_label_batch(labels):
    """The bytes of a LabelBatch's file in the released format: a list of six, with plain ints in the box."""
    crops, mix, logits = labels
    data = io.BytesIO()
    torch.save([crops.boxes, crops.flips, mix.partner, mix.lam, mix.box, logits], data)
    return data.getvalue()


def encode_file(epoch, label_batches, codec, is_packed):
    """The bytes of a label file: of an epoch where packed, else of the one batch. codec: its name."""
    if is_packed:
        return encode_epoch(epoch, label_batches, codec)
    return encode_label_batch(*label_batches)


def read_fields(path, digest=None):
    """The six fields of a label file, ours or a published one, without open pickle; raises UserError for
    anything else.

    digest: the sha256 that was recorded for it, None = unknown: the zip's own checksums then tell."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: this label file is missing or not readable ({error.strerror})") from None
    if digest and hashlib.sha256(data).hexdigest() != digest:
        raise changed(path, path.parents[1])
    fields = safe_load(path, "label file", data)
    if not isinstance(fields, (list, tuple)) or len(fields) != 6:
        raise UserError(f"{path}: a label file is a list of six fields")
    return fields


def is_tensor(value, shape, dtype):
    return is_whole(value) and value.shape == shape and value.dtype == dtype


def is_crops(boxes):
    """Are these fractions (m, 4), none empty and none far outside of its image?"""
    return bool((boxes.abs() <= 1.5).all() and (boxes[:, 2:] > 0).all())


def is_partners(value, rows):
    """Does each row have a partner within the batch?"""
    return is_tensor(value, (rows,), torch.int64) and bool(((value >= 0) & (value < rows)).all())


def is_box(value):
    """Are these four whole numbers from 0: plain ints, or numpy's in published files?"""
    is_four = isinstance(value, (list, tuple)) and len(value) == 4
    return is_four and all(isinstance(number, (int, np.integer)) and number >= 0 for number in value)


def are_numbers(logits, sparse=False):
    """Are all logits finite? sparse: but for those that are left out, -inf, and not a whole row of these."""
    if not logits.numel():
        return True
    extremes = (logits.amax(1),) if sparse else logits.aminmax()  # a NaN is both; isfinite is slow in fp16
    return all(bool(torch.isfinite(each).all()) for each in extremes)


def check_fields(path, fields, num_rows, num_classes, sparse=False):
    """Raise UserError unless the six fields of a label file are what they must be. num_rows, num_classes:
    None = as they are; sparse: as in are_numbers."""
    boxes, flips, partner, lam, box, logits = fields
    if not is_whole(logits) or logits.ndim != 2 or logits.dtype not in (torch.float16, torch.float32):
        raise UserError(f"{path}: field 5 must be logits (m, C) in float16 or float32")
    rows = logits.shape[0] if num_rows is None else num_rows
    wanted = (rows, num_classes or logits.shape[1])
    if logits.shape != wanted:
        raise UserError(f"{path}: logits of shape {tuple(logits.shape)}, expected {wanted}")
    if not are_numbers(logits, sparse):
        raise UserError(f"{path}: logits are not finite")

    if not is_tensor(boxes, (rows, 4), torch.float32) or not is_crops(boxes):
        raise UserError(f"{path}: field 0 must be {rows} crop boxes (top, left, height, width) as fractions, "
                        f"float32")
    if not is_tensor(flips, (rows,), torch.bool):
        raise UserError(f"{path}: field 1 must be {rows} flips, bool")

    if partner is not None and not is_partners(partner, rows):
        raise UserError(f"{path}: field 2 must be {rows} partners within the batch, int64")
    is_share = isinstance(lam, (int, float)) and 0 <= lam <= 1
    if not (lam is None if partner is None else is_share):
        raise UserError(f"{path}: field 3, lam, must be in [0, 1] where there are partners")
    if box is not None and (partner is None or not is_box(box)):
        raise UserError(f"{path}: field 4 must be the four corners of a cutmix box")


def digest_of(root, name, hashes):
    """The recorded sha256 of a label file; None where nothing is recorded. Raises UserError for a file that
    is none of those."""
    if hashes is not None and name not in hashes:
        raise UserError(f"{Path(root) / name}: no hash is recorded for it in {sidecar(root, 'sha256')}; "
                        f"{AGAIN}")
    return None if hashes is None else hashes[name]


def read_label_batch(root, epoch, index, num_rows=None, num_classes=None, hashes=None):
    """Read and check the labels of one batch, whatever the layout -> LabelBatch. Raises UserError.

    num_rows, num_classes: what they must be, None = as they are; hashes: the recorded ones by name."""
    name = packed_name(epoch)
    # Which layout it is, is asked of this epoch first: a whole folder is not listed for each batch.
    if (Path(root) / name).exists() or not (Path(root) / f"epoch_{epoch}").is_dir() and is_packed(root):
        file = open_epoch(root, epoch, digest_of(root, name, hashes))
        crops, mix, logits = file.read(index)
        fields = crops.boxes, crops.flips, mix.partner, mix.lam, mix.box, logits
        check_fields(f"{file.path}, batch {index}", fields, num_rows, num_classes, is_sparse(file.codec.name))
        return LabelBatch(crops, mix, logits)

    name = label_name(epoch, index)
    path = Path(root) / name
    fields = read_fields(path, digest_of(root, name, hashes))
    check_fields(path, fields, num_rows, num_classes)
    boxes, flips, partner, lam, box, logits = fields
    lam = None if lam is None else float(lam)
    box = None if box is None else [int(corner) for corner in box]
    return LabelBatch(Crops(boxes, flips), Mix(partner, lam, box), logits)


def stored_batches(root, batches):
    """Yield (Batch, LabelBatch) as a label folder holds them."""
    for batch in batches:
        yield batch, read_label_batch(root, batch.epoch, batch.index, len(batch.rows))


def is_packed(root):
    """Does a label folder hold files of whole epochs, and not of batches?"""
    return not (Path(root) / "epoch_0").is_dir() and any(Path(root).glob("epoch_*.labels"))


@dataclass(frozen=True)
class LabelFolder:
    """What a label folder's files have in common. mix: 'none', 'mixup', 'cutmix'; codec: its name."""
    num_images: int
    batch_size: int
    epochs: int
    num_classes: int
    mix: str
    codec: str
    is_packed: bool
    num_bytes: int


def inspect_labels(root, sizes):
    """What a label folder tells without a manifest, from its names and from epoch 0 -> LabelFolder.

    sizes: the bytes of each file, {'epoch_0/batch_0.tar': bytes}; no batch of epoch 0 may be missing."""
    numbers = [numbers_in(name) for name in sizes]
    epochs = max(epoch for epoch, *_ in numbers) + 1
    num_bytes = sum(sizes.values())
    if packed_name(0) in sizes:
        file = open_epoch(root, 0)
        return LabelFolder(sum(file.num_rows), file.num_rows[0], epochs, file.num_classes, file.mix,
                           file.codec.name, True, num_bytes)
    per_epoch = max(index for _, index in numbers) + 1
    first = read_label_batch(root, 0, 0)
    last = read_label_batch(root, 0, per_epoch - 1)
    batch_size, num_classes = first.logits.shape
    num_images = batch_size * (per_epoch - 1) + last.logits.shape[0]
    return LabelFolder(num_images, batch_size, epochs, num_classes, first.mix.kind,
                       name_of(first.logits.dtype), False, num_bytes)
