"""What is in the files of an image folder and of a label folder, byte for byte and field for field: the deep part of verify.py."""
import hashlib
import math
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from sre2l.check.agreement import Agreement, frequencies, top1_hits
from sre2l.data.loader import Batches, in_order
from sre2l.run.errors import UserError
from sre2l.run.files import sidecar
from sre2l.data.image_folder import decode
from sre2l.data.label_files import label_name, label_path, read_label_batch
from sre2l.run.settings import LAYOUT
from sre2l.check.verify import AGAIN, Finding, facts_of

CLEAR = 6  # standard deviations: among a million label files, none is so far from the others by chance


class Shown(NamedTuple):
    """What one label file tells about its images: rows whose top-1 is the class of the image or of its partner, those by luck, all rows."""
    name: str
    hits: int
    luck: float
    rows: int


def look_at_image(root, hashes, path):
    """Read and decode one image -> (its name, sha256, shape, fault or None)."""
    name = Path(path).relative_to(root).as_posix()
    try:
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        if hashes is not None and hashes[name] != digest:
            return name, digest, None, f"{path}: its sha256 is not the one in {sidecar(root, 'sha256')}; {AGAIN['images']}"
        return name, digest, decode(path).shape[:2], None
    except (UserError, OSError) as error:
        return name, None, None, str(error) if isinstance(error, UserError) else f"{path}: not readable ({error.strerror})"


def verify_pixels(images, settings, hashes, threads):
    """The deep part for images: every byte hashed, every image decoded and of one size. Yield a Finding -> whether it is without fault."""
    root, finding = images.root, Finding(f"{images.root}, contents")
    look = in_order(partial(look_at_image, root, hashes), images.items, threads)
    looks = list(tqdm(look, "images", total=len(images), unit="image", disable=None, leave=False))
    finding.faults += [fault for _, _, _, fault in looks if fault]
    shapes = Counter(shape for _, _, shape, _ in looks if shape)
    uniform = all(re.fullmatch(LAYOUT["images"][0], name) for name in images.class_names)
    if shapes and uniform:
        size = (settings["size"],) * 2 if settings else shapes.most_common(1)[0][0]
        finding.faults += [f"{root}/{name}: is {shape[0]} by {shape[1]} pixels, the set has {size[0]} by {size[1]}" for name, _, shape, _ in looks
                           if shape and shape != size]
    if uniform and not settings:  # of recovered images no two are equal; a manifest's hashes tell anyway
        seen = {}
        finding.faults += [f"{root}/{name}: is {seen[digest]} once more" for name, digest, _, _ in looks if digest and seen.setdefault(digest, name) != name]
    sizes = " and ".join(f"{height} by {width}" for height, width in sorted(shapes)) if len(shapes) < 3 else f"{len(shapes)} sizes"
    finding.text = f"{len(images)} of {len(images)} decode, {sizes} pixels" + (f", {len(hashes)} hashes right" if hashes is not None else "")
    yield finding
    return not finding.faults


def look_at_label_file(root, facts, size, hashes, labels, frequency, batch):
    """Read one label file and check its fields -> (Shown or None without labels, hash of its contents, fault or None)."""
    name, path = label_name(batch.epoch, batch.index), label_path(root, batch.epoch, batch.index)
    try:
        sheet = read_label_batch(root, batch.epoch, batch.index, len(batch.rows), facts.num_classes, hashes)
    except UserError as error:
        return None, None, str(error)
    if (sheet.mix.kind, sheet.logits.dtype) != (facts.mix, facts.dtype):
        return None, None, f"{path}: {sheet.mix.kind} and {sheet.logits.dtype}, the set has {facts.mix} and {facts.dtype}"
    if sheet.mix.box and max(sheet.mix.box) > size:
        return None, None, f"{path}: its cutmix box {sheet.mix.box} reaches out of {size} pixels"
    digest = hashlib.sha256(sheet.logits.numpy().tobytes() + sheet.crops.boxes.numpy().tobytes()).digest()
    if labels is None:
        return None, digest, None
    hits, luck = top1_hits(sheet, torch.from_numpy(labels[batch.rows]), frequency)
    return Shown(name, hits, luck, len(batch.rows)), digest, None


def out_of_place(shown):
    """The files whose logits agree with their images no better than by luck, clearly unlike the others: exchanged, or of another batch."""
    lucky = [part for part in shown if part.hits - part.luck < 3 * math.sqrt(max(part.luck * (1 - part.luck / part.rows), 1))]
    names = {part.name for part in lucky}
    others = [part for part in shown if part.name not in names]
    share = sum(part.hits for part in others) / max(sum(part.rows for part in others), 1)
    return [part for part in lucky if part.rows * share - part.hits > CLEAR * math.sqrt(max(part.rows * share * (1 - share), 1))]


def verify_label_files(root, info, settings, hashes, images, num_pixels, order_seed, threads):
    """The deep part for labels: every byte hashed, every field checked. images: those they belong to, or None. Yield Findings."""
    finding, facts = Finding(f"{root}, contents"), facts_of(root, settings, info)
    batches = Batches(facts.num_images, facts.batch_size, settings["order_seed"] if settings else order_seed, info.epochs)
    labels = images.labels if images else None
    frequency = frequencies(labels) if images else None
    size = settings["input_size"] if settings else num_pixels
    look = in_order(partial(look_at_label_file, root, facts, size, hashes, labels, frequency), batches, threads)
    looks = list(tqdm(look, "labels", total=len(batches), unit="file", disable=None, leave=False))
    finding.faults += [fault for _, _, fault in looks if fault]
    shown, seen = [part for part, _, _ in looks if part], {}
    for batch, (_, digest, _) in zip(batches, looks):
        name = label_name(batch.epoch, batch.index)
        if digest and seen.setdefault(digest, name) != name:
            finding.faults.append(f"{root}/{name}: is {seen[digest]} once more")
    finding.text = f"{len(looks)} of {len(looks)} load and have the right fields" + (f", {len(hashes)} hashes right" if hashes is not None else "")
    yield finding
    if images and shown:
        yield verify_agreement(root, shown, settings)


def verify_agreement(root, shown, settings):
    """-> the Finding of all label files' top-1. With a manifest it is a warning at most: a teacher may be that bad."""
    rows = sum(part.rows for part in shown)
    found = Agreement(sum(part.hits for part in shown) / rows, sum(part.luck for part in shown) / rows, rows)
    finding = Finding(f"{root}, agreement with the images", found.text, notes=[found.warning] if found.warning else [])
    if not settings and found.is_chance:
        finding.faults.append(f"{root}: {found.text}: these labels do not belong to these images, or the order has another seed")
    if not settings:
        finding.faults += [f"{root}/{name}: the top-1 of {hits} of its {m} logits fits the images, in all files it is {100 * found.share:.1f}%: "
                           f"is it another batch's file?" for name, hits, _, m in out_of_place(shown)]
    return finding
