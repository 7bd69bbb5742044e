"""The deep part of verify.py: the files of image and label folders, byte by byte and field by field."""
import hashlib
import math
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from sre2l.check.agreement import Agreement, frequencies, top1_hits
from sre2l.check.verify import Finding, most_common
from sre2l.data.codecs.exact import name_of
from sre2l.data.derived import draw_label_batch
from sre2l.data.image_folder import decode
from sre2l.data.label_files import file_of, read_label_batch
from sre2l.data.loader import Batches
from sre2l.data.packed import open_epoch
from sre2l.data.pixel_store import find_shapes
from sre2l.run.ahead import in_order
from sre2l.run.errors import UserError
from sre2l.run.hashes import changed
from sre2l.run.layout import LAYOUT

CLEAR = 6  # standard deviations: among a million label files, none is so far from the others by chance


class Look(NamedTuple):
    """What one file of images or labels shows."""
    name: str
    digest: str | None = None   # sha256: of an image's bytes, of a label file's logits and crops
    fault: str | None = None    # a sentence
    shape: tuple | None = None  # of an image, height and width
    # Of labels whose images are known:
    hits: int | None = None     # rows whose top-1 is the class of the image or of its partner
    luck: float = 0.0           # rows that would hit by luck
    rows: int = 0


def look_at_all(finding, look_at, files, threads, kind):
    """Look at every file on threads -> the looks; their faults go to the finding."""
    looks = in_order(look_at, files, threads)
    looks = list(tqdm(looks, kind, total=len(files), unit="file", disable=None, leave=False))
    finding.faults += dict.fromkeys(look.fault for look in looks if look.fault)
    return looks


def look_at_image(root, hashes, path):
    """Read and decode one image -> Look. hashes: the recorded ones by name, None for none."""
    name = Path(path).relative_to(root).as_posix()
    try:
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        if hashes is not None and hashes[name] != digest:
            return Look(name, digest, str(changed(path, root)))
        return Look(name, digest, shape=decode(path).shape[:2])
    except UserError as error:
        return Look(name, fault=str(error))
    except OSError as error:
        return Look(name, fault=f"{path}: not readable ({error.strerror})")


def repeated(looks):
    """The looks whose digest an earlier one has -> pairs (name, earlier name)."""
    first = {}
    for look in looks:
        if look.digest and first.setdefault(look.digest, look.name) != look.name:
            yield look.name, first[look.digest]


def verify_pixels(images, settings, hashes, threads):
    """The deep part for images: every byte hashed, every image decoded and of one size. Yield a Finding ->
    whether it is without fault."""
    root = images.root
    finding = Finding(f"{root}, contents")
    looks = look_at_all(finding, partial(look_at_image, root, hashes), images.items, threads, "images")

    shapes = Counter(look.shape for look in looks if look.shape)
    is_synthetic = all(re.fullmatch(LAYOUT["images"][0], name) for name in images.class_names)
    if shapes and is_synthetic:
        size = (settings["size"],) * 2 if settings else most_common(shapes.elements())
        odd = [look for look in looks if look.shape and look.shape != size]
        finding.faults += [f"{root}/{look.name}: is {look.shape[0]} by {look.shape[1]} pixels, "
                           f"the set has {size[0]} by {size[1]}" for look in odd]
    if is_synthetic and not settings:  # of recovered images no two are equal; a manifest's hashes tell anyway
        finding.faults += [f"{root}/{name}: is {earlier} once more" for name, earlier in repeated(looks)]

    sizes = " and ".join(f"{height} by {width}" for height, width in sorted(shapes))
    sizes = sizes if len(shapes) < 3 else f"{len(shapes)} sizes"
    finding.text = f"{len(images)} of {len(images)} decode, {sizes} pixels{count_right(hashes)}"
    yield finding
    return not finding.faults


def count_right(hashes):
    return "" if hashes is None else f", {len(hashes)} hashes right"


def draws_of(label_batch):
    """The crops, flips and mix of a LabelBatch as plain values, which can be compared."""
    crops, mix, _ = label_batch
    partner = None if mix.partner is None else mix.partner.tolist()
    return crops.boxes.tolist(), crops.flips.tolist(), partner, mix.lam, mix.box


def look_at_label_file(root, plan, size, hashes, labels, frequency, draw, batch):
    """Read the labels of one batch and check their fields -> Look. plan: a LabelFolder; size: of the
    networks' input; labels: the classes of all images, None where not known; frequency: the share of each
    class; draw: Batch -> the LabelBatch that the manifest's seed draws, None where not compared."""
    name = file_of(batch, plan.is_packed) + f", batch {batch.index}" * plan.is_packed
    path = f"{root}/{name}"
    try:
        stored = read_label_batch(root, batch.epoch, batch.index, len(batch.rows), plan.num_classes, hashes)
    except UserError as error:
        return Look(name, fault=str(error))
    kind = stored.mix.kind
    codec = open_epoch(root, batch.epoch).codec.name if plan.is_packed else name_of(stored.logits.dtype)
    if (kind, codec) != (plan.mix, plan.codec):
        return Look(name, fault=f"{path}: {kind} and {codec}, the set has {plan.mix} and {plan.codec}")
    if stored.mix.box and max(stored.mix.box) > size:
        return Look(name, fault=f"{path}: its cutmix box {stored.mix.box} reaches out of {size} pixels")
    if draw and draws_of(stored) != draws_of(draw(batch)):
        return Look(name, fault=f"{path}: its crops or its mix are not those that the manifest's seed "
                                f"draws (with numpy {np.__version__})")

    content = stored.logits.numpy().tobytes() + stored.crops.boxes.numpy().tobytes()
    digest = hashlib.sha256(content).hexdigest()
    if labels is None:
        return Look(name, digest)
    hits, luck = top1_hits(stored, torch.from_numpy(labels[batch.rows]), frequency)
    return Look(name, digest, hits=hits, luck=luck, rows=len(batch.rows))


def deviation(rows, share):
    """The standard deviation of how many of these rows hit, where each does with this probability."""
    return math.sqrt(max(rows * share * (1 - share), 1))


def out_of_place(looks):
    """The files whose logits fit their images no better than luck, unlike the others: exchanged ones."""
    suspects = []
    others = []
    for look in looks:
        is_luck = look.hits - look.luck < 3 * deviation(look.rows, look.luck / look.rows)
        (suspects if is_luck else others).append(look)
    share = sum(look.hits for look in others) / max(sum(look.rows for look in others), 1)
    return [look for look in suspects
            if look.rows * share - look.hits > CLEAR * deviation(look.rows, share)]


def verify_label_files(root, plan, settings, hashes, images, num_pixels, order_seed, threads):
    """The deep part for labels: every byte hashed, every field checked. Yield Findings.

    plan: a LabelFolder; images: those that the labels belong to, None where not known; num_pixels,
    order_seed: the input size and the order of the images, for labels without a manifest."""
    order_seed = settings["order_seed"] if settings else order_seed
    size = settings["input_size"] if settings else num_pixels
    batches = Batches(plan.num_images, plan.batch_size, order_seed, plan.epochs)
    labels = images.labels if images else None
    frequency = frequencies(labels) if images else None
    draw = None
    if plan.is_packed and settings and images:
        shapes = find_shapes(images)
        draw = lambda batch: draw_label_batch(settings, batch, shapes[batch.rows])  # noqa: E731

    finding = Finding(f"{root}, contents")
    look_at = partial(look_at_label_file, root, plan, size, hashes, labels, frequency, draw)
    looks = look_at_all(finding, look_at, batches, threads, "labels")
    finding.faults += [f"{root}/{name}: is {earlier} once more" for name, earlier in repeated(looks)]
    finding.text = f"{len(looks)} of {len(looks)} load and have the right fields{count_right(hashes)}"
    if plan.is_packed:
        finding.text = f"{plan.epochs} epochs, {plan.codec}: batches, {finding.text}"
    yield finding

    compared = [look for look in looks if look.hits is not None]
    if compared:
        yield verify_agreement(root, compared, settings)


def verify_agreement(root, looks, settings):
    """-> the Finding of all label files' top-1, with a manifest a warning at most: the teacher may be bad."""
    rows = sum(look.rows for look in looks)
    found = Agreement(sum(look.hits for look in looks) / rows, sum(look.luck for look in looks) / rows, rows)
    notes = [found.warning] if found.warning else []
    finding = Finding(f"{root}, agreement with the images", found.text, notes=notes)
    if settings:
        return finding
    if found.is_chance:
        finding.faults.append(f"{root}: {found.text}: these labels do not belong to these images, "
                              f"or the order has another seed")
    for look in out_of_place(looks):
        finding.faults.append(f"{root}/{look.name}: the top-1 of {look.hits} of its {look.rows} logits fits "
                              f"the images, in all files it is {100 * found.share:.1f}%: "
                              f"is it another batch's file?")
    return finding
