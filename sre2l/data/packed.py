"""Packed labels: one file for all batches of an epoch, epoch_{E}.labels.

    header    one HEADER: what the epoch's batches have in common, and the sha256 of header and table
    table     one ENTRY for each batch: where its arrays lie, their sha256, lam and the cutmix box
    batches   the arrays of each: crop boxes, flips, partners, then the codec's

All numbers are little-endian. Each batch begins at a multiple of 64 bytes, each array of it at a multiple of
8; zeros lie in between. The sha256 of a batch is of all bytes up to where the next one begins. A reader maps
the file into memory and checks what it is about to use; nothing in it is pickled."""
import functools
import hashlib
import mmap
import threading
from pathlib import Path

import numpy as np
import torch

from sre2l.data.augment import Crops, Mix
from sre2l.data.codecs import codec_of
from sre2l.run.errors import UserError
from sre2l.run.hashes import changed

MAGIC = b"SRE2L labels 2"
HEADER = np.dtype([("magic", "S16"), ("epoch", "<u8"), ("num_batches", "<u8"), ("num_classes", "<u8"),
                   ("mix", "S8"), ("codec", "S16"), ("sha256", "V32")])
ENTRY = np.dtype([("offset", "<u8"), ("num_bytes", "<u8"), ("num_rows", "<u8"), ("lam", "<f8"),
                  ("box", "<u4", 4), ("sha256", "V32")])
MIXES = ("none", "mixup", "cutmix")
BATCH_STEP = 64
ARRAY_STEP = 8
MAPPED = 2  # epochs that stay mapped: threads read ahead into the next one
OPENING = threading.Lock()  # one thread reads a file through, the others wait for it
READ_THROUGH = set()  # what files `map_epoch` has once seen to be as recorded


def packed_name(epoch):
    return f"epoch_{epoch}.labels"


def padded(size, step):
    """The next multiple of step."""
    return -(-size // step) * step


def arrays_of(codec, mix, rows, classes):
    """The arrays of a batch in their order: [(dtype, shape), ...]. mix: its kind."""
    partner = [(np.dtype("<u2" if rows <= 2 ** 16 else "<u4"), (rows,))] if mix != "none" else []
    return [(np.dtype("<f4"), (rows, 4)), (np.dtype("?"), (rows,)), *partner, *codec.shapes(rows, classes)]


def array_bytes(dtype, shape):
    return padded(dtype.itemsize * int(np.prod(shape)), ARRAY_STEP)


def batch_bytes(codec, mix, rows, classes):
    """How many bytes of a file are a batch's."""
    return padded(sum(array_bytes(*each) for each in arrays_of(codec, mix, rows, classes)), BATCH_STEP)


def head_bytes(num_batches):
    return padded(HEADER.itemsize + num_batches * ENTRY.itemsize, BATCH_STEP)


def epoch_bytes(name, mix, batch_rows, classes):
    """The size of an epoch's file. name: the codec's; batch_rows: how many rows each batch has."""
    codec = codec_of(name)
    return head_bytes(len(batch_rows)) + sum(batch_bytes(codec, mix, rows, classes) for rows in batch_rows)


def head_digest(head):
    """The sha256 of header and table, with zeros at its own place."""
    place = HEADER.fields["sha256"][1]
    return hashlib.sha256(head[:place] + bytes(32) + head[place + 32:]).digest()


def encode_batch(codec, label_batch):
    """-> the bytes of a batch."""
    crops, mix, logits = label_batch
    values = [crops.boxes.numpy(), crops.flips.numpy()]
    values += [mix.partner.numpy()] if mix.partner is not None else []
    values += codec.encode(logits)
    data = bytearray()
    for (dtype, shape), value in zip(arrays_of(codec, mix.kind, *logits.shape), values, strict=True):
        assert value.shape == shape
        data += value.astype(dtype, copy=False).tobytes()
        data += bytes(padded(len(data), ARRAY_STEP) - len(data))
    return bytes(data) + bytes(padded(len(data), BATCH_STEP) - len(data))


def encode_epoch(epoch, label_batches, name):
    """The bytes of an epoch's file. label_batches: LabelBatches in order; name: the codec's."""
    codec = codec_of(name)
    batches = [encode_batch(codec, label_batch) for label_batch in label_batches]
    table = np.zeros(len(batches), ENTRY)
    offset = head_bytes(len(batches))
    for entry, label_batch, data in zip(table, label_batches, batches):
        mix = label_batch.mix
        entry["offset"] = offset
        entry["num_bytes"] = len(data)
        entry["num_rows"] = len(label_batch.logits)
        entry["lam"] = 0 if mix.lam is None else mix.lam
        entry["box"] = 0 if mix.box is None else mix.box
        entry["sha256"] = hashlib.sha256(data).digest()
        offset += len(data)

    first = label_batches[0]
    header = np.zeros((), HEADER)
    header["magic"] = MAGIC
    header["codec"] = name.encode()
    header["mix"] = first.mix.kind.encode()
    header["epoch"] = epoch
    header["num_batches"] = len(batches)
    header["num_classes"] = first.logits.shape[1]
    head = header.tobytes() + table.tobytes()
    head += bytes(head_bytes(len(batches)) - len(head))
    header["sha256"] = head_digest(head)
    return b"".join([header.tobytes(), head[HEADER.itemsize:], *batches])


class EpochFile:
    """A packed file, mapped into memory. Its fields are those of the header, and num_rows of each batch.

    digest: the sha256 that was recorded for it; the whole file is then read once. Without one, each batch is
    checked by the table. Raises UserError for a file that is missing, damaged or of another kind."""

    def __init__(self, path, digest=None):
        self.path = Path(path)
        try:
            with open(path, "rb") as file:  # private pages, which can be written to: torch wants that
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise UserError(f"{path}: this label file is missing or not readable "
                            f"({error.strerror})") from None
        except ValueError:  # of mmap
            raise self.fault("it is empty") from None
        self.is_checked = digest is not None
        if self.is_checked and hashlib.sha256(self.data).hexdigest() != digest:
            raise changed(path, self.path.parent)
        self.read_head()

    def fault(self, why):
        return UserError(f"{self.path}: not a file of packed labels ({why})")

    def read_head(self):
        """Read header and table, and see that they describe this very file."""
        size = len(self.data)
        if size < HEADER.itemsize or not self.data[:len(MAGIC)] == MAGIC:
            raise self.fault("its first bytes are others")
        header = np.frombuffer(self.data, HEADER, 1)[0]
        self.epoch, num_batches, self.num_classes = (int(header[key]) for key in
                                                     ("epoch", "num_batches", "num_classes"))
        # Whatever the header claims, no more is read than there is.
        if not 0 < num_batches <= size // ENTRY.itemsize or not 0 < self.num_classes <= size:
            raise self.fault("it is cut off, or its header is damaged")
        end = head_bytes(num_batches)
        if end > size or header["sha256"].tobytes() != head_digest(self.data[:end]):
            raise self.fault("its table is damaged")
        try:
            self.mix = header["mix"].decode("ascii")
            self.codec = codec_of(header["codec"].decode("ascii"))
        except ValueError as error:
            raise self.fault(error) from None
        if self.mix not in MIXES:
            raise self.fault(f"no mix {self.mix!r} is known")

        self.table = np.frombuffer(self.data, ENTRY, num_batches, HEADER.itemsize)
        self.num_rows = self.table["num_rows"].tolist()
        if not all(0 < rows <= size for rows in self.num_rows):
            raise self.fault("a batch has no rows, or too many")
        sizes = [batch_bytes(self.codec, self.mix, rows, self.num_classes) for rows in self.num_rows]
        offsets = np.cumsum([end, *sizes])
        if self.table["offset"].tolist() != offsets[:-1].tolist() or offsets[-1] != size \
                or self.table["num_bytes"].tolist() != sizes:
            raise self.fault("it is cut off, or its batches lie elsewhere than its table says")

    def read(self, index):
        """Batch `index` -> (Crops, Mix, logits); views of the file where the codec stores the logits as they
        are. Raises UserError where it is damaged."""
        if not 0 <= index < len(self.table):
            raise self.fault(f"it has {len(self.table)} batches, so no batch {index}")
        entry = self.table[index]
        place = int(entry["offset"])
        rows = self.num_rows[index]
        if not self.is_checked:
            part = memoryview(self.data)[place:place + int(entry["num_bytes"])]
            if hashlib.sha256(part).digest() != entry["sha256"].tobytes():
                raise self.fault(f"batch {index} is damaged: its sha256 is not the one in the table")
        arrays = []
        for dtype, shape in arrays_of(self.codec, self.mix, rows, self.num_classes):
            arrays.append(np.frombuffer(self.data, dtype, int(np.prod(shape)), place).reshape(shape))
            place += array_bytes(dtype, shape)

        mix = Mix()
        boxes, flips, *arrays = arrays
        if self.mix != "none":
            partner, *arrays = arrays
            box = entry["box"].tolist() if self.mix == "cutmix" else None
            mix = Mix(torch.from_numpy(partner.astype(np.int64)), float(entry["lam"]), box)
        try:
            logits = self.codec.decode(arrays, self.num_classes)
        except IndexError as error:
            raise self.fault(f"batch {index}: {error}") from None
        return Crops(torch.from_numpy(boxes), torch.from_numpy(flips)), mix, logits


@functools.lru_cache(MAPPED)
def map_epoch(path, digest, *identity):
    """A file that is mapped again, as those of a pool often are, is not read through again: of such a one
    each batch is checked by the table, as without a digest."""
    key = (path, digest, *identity)
    file = EpochFile(path, None if key in READ_THROUGH else digest)
    READ_THROUGH.add(key)
    return file


def open_epoch(root, epoch, digest=None):
    """The EpochFile of an epoch, mapped once for all threads. digest: as there."""
    path = Path(root) / packed_name(epoch)
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{path}: this label file is missing or not readable ({error.strerror})") from None
    with OPENING:
        file = map_epoch(path, digest, found.st_ino, found.st_size, found.st_mtime_ns)
    if file.epoch != epoch:
        raise file.fault(f"it is that of epoch {file.epoch}")
    return file
