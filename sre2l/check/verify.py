"""Do a folder of images and one of labels hold what they should? By their manifests and hashes; without those, by what the files tell.

Cheap: names, counts, sizes, manifests, and that the hash files name exactly the files that are there. Deep: every byte, every image, every field."""
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from sre2l.run.errors import UserError
from sre2l.run.files import sidecar, hash_file
from sre2l.data.image_folder import check_classes, image_path, read_synthetic
from sre2l.run.links import check_links
from sre2l.data.label_files import inspect_labels, label_name, read_label_batch
from sre2l.check.folders import misplaced, scan
from sre2l.check.manifest import check_images, describe_images, describe_names, manifest_of, place, read_hashes
from sre2l.run.settings import LAYOUT, read_record

AGAIN = {"images": "the same recover command writes it again", "labels": "the same relabel command writes it again"}
FILE_OVERHEAD = 16384  # bytes of a label file that are not its tensors, at most: 2,400 with torch 2.14


@dataclass
class Finding:
    """One line of the report: what was looked at, what was found, and the faults, each a sentence with the name of a file; notes: lines of their own."""
    subject: str
    text: str = ""
    faults: list = field(default_factory=list)
    notes: list = field(default_factory=list)

    @property
    def fault(self):
        """The first fault, and how many more there are."""
        return self.faults[0] + (f" (and {len(self.faults) - 1} more)" if len(self.faults) > 1 else "")

    def __str__(self):
        return f"FAULT  {self.subject}: {self.fault}" if self.faults else f"ok     {self.subject}: {self.text}"


def attempt(finding, function, *args):
    """function's value, or None with the UserError it raised among the finding's faults."""
    try:
        return function(*args)
    except UserError as error:
        finding.faults.append(str(error))
        return None


def bring_back(kind, hashes):
    """How a file of a set comes back: what a stage has recorded, it writes again; a set without hashes came from elsewhere."""
    return AGAIN[kind] if hashes is not None else f"bring it back from where these {kind} came from"


def compare(finding, root, kind, there, wanted, stray, hashes):
    """Add a fault for each stray entry, each file that is there and not wanted, each that is wanted and not there, each empty one, and each
    that is not in the file of hashes, if there is one."""
    unrecorded = sorted(there.keys() - hashes.keys(), key=place) if hashes is not None else []
    listing = sidecar(root, "sha256")
    finding.faults += [f"{root}/{name}: does not belong into a folder of {kind}; move it away" for name in stray]
    finding.faults += [f"{root}/{name}: no hash is recorded for it in {listing}; {AGAIN[kind] if name in wanted else 'it is none of this set: move it away'}"
                       for name in unrecorded]
    finding.faults += [f"{root}/{name}: is one {kind[:-1]} file too many" for name in sorted(there.keys() - wanted - set(unrecorded), key=place)]
    namesakes = {name.partition("/")[2]: name for name in there}
    counts, num_folders = Counter(name.partition("/")[2] for name in there), len({name.partition("/")[0] for name in wanted})
    for name in sorted(wanted - there.keys(), key=place):
        file = name.partition("/")[2]
        is_open = hashes is None and 0 < 2 * counts[file] <= num_folders  # as many epochs have it as not
        why = f", though {listing} names it" if name in (hashes or ()) else f", or {root}/{namesakes[file]} is one too many" if is_open else ""
        finding.faults.append(f"{root}/{name}: is missing{why}; {bring_back(kind, hashes)}")
    finding.faults += [f"{root}/{name}: is empty; delete it, and {bring_back(kind, hashes)}" for name, size in there.items() if not size]


def refuse_strays(root, kind):
    """What a stage that is done has to say of its own folder: raise UserError for the first entry that is no file of the set. Others may
    be writing to it: what they write is recorded before it is there."""
    there, folders, stray = scan(root, kind)
    hashes = read_hashes(root)
    used = {name.partition("/")[0] for name in hashes}
    stray += sorted(there.keys() - hashes.keys(), key=place) + sorted(set(folders) - used)
    if stray:
        raise UserError(f"{root}/{stray[0]}: all is done, but this is no file of the set, and the next stage would refuse it; move it away")
    check_links(root)


def read_records(finding, root, kind):
    """-> (settings in the manifest, hashes by name), None where there is none. What is wrong with these two files is added to the faults."""
    path, listing = sidecar(root, "manifest.json"), sidecar(root, "sha256")
    settings = hashes = None
    if path.exists():
        record = attempt(finding, read_record, path)
        settings = record and record.get("settings")
        if record and json.dumps(record, indent=1) + "\n" != path.read_text():
            finding.faults.append(f"{path}: not as a run wrote it")
    elif listing.exists():
        finding.faults.append(f"{path}: is missing, though {listing} is there: bring it back, or delete that file too where {root} is of other origin")
    if settings and kind == "labels":
        settings = attempt(finding, manifest_of, root)
    if listing.exists():
        hashes = attempt(finding, read_hashes, root, True)
        if settings and record.get("hashes", hash_file(listing)) != hash_file(listing):
            finding.faults.append(f"{path} and {listing}: do not belong together, or one was changed; the same command as before mends the latter")
    elif settings:
        finding.faults.append(f"{listing}: this file of hashes is missing; bring it back, or start afresh with --overwrite")
    if not finding.faults:
        finding.text = ", ".join(text for text, value in ((path.name, settings), (f"{listing.name} for {len(hashes or ())} files", hashes)) if value)
    return settings, hashes


def wanted_images(there, hashes, classes, num_classes):
    """The names that a complete set has: of each class the images whose numbers most classes have, with the suffix that most have (most of those
    recorded, where some are), and what hashes are recorded for."""
    names = set(there) | set(hashes or ())
    counts, suffixes = Counter(place(name)[-1] for name in names), Counter(Path(name).suffix for name in hashes or names)
    common = [number for number, count in counts.items() if 2 * count > len(classes)]
    suffix = suffixes.most_common(1)[0][0] if suffixes else ".jpg"
    numbers = range(min(common, default=0), max(common, default=0) + 1)
    return {image_path("", label, number, num_classes, suffix).as_posix() for label in classes for number in numbers} | set(hashes or ())


def verify_images(root, num_classes, classes=None):
    """The cheap part for images. Yield Findings -> (Images, settings, hashes), Images being None where there is a fault."""
    record, names = Finding(f"{root}, records"), Finding(f"{root}, names")
    settings, hashes = read_records(record, root, "images")
    if record.faults or settings or hashes:
        yield record
    classes, there = classes or (settings or {}).get("classes"), {}
    if any(re.fullmatch(LAYOUT["images"][0], entry.name) for entry in os.scandir(root)):
        there, folders, stray = scan(root, "images")
        classes = classes or range(num_classes)
        wanted = wanted_images(there, hashes, classes, num_classes)
        if hashes is None:  # another data set's, perhaps: the number of folders says more than the first file that is missing
            attempt(names, check_classes, root, folders, sorted(image_path("", label, 0, num_classes).parent.name for label in classes), "the set")
        stray += sorted(set(folders) - {name.partition("/")[0] for name in wanted})
        compare(names, root, "images", there, wanted, stray, hashes)
    images = None if record.faults or names.faults else attempt(names, read_synthetic, root, num_classes, classes)
    if names.faults and not there and (sentence := misplaced(root, "images")):
        names.faults = [sentence]
    names.text = f"{len(images)} images in {len(images.class_names)} class folders" if images else f"{len(there)} images"
    yield names
    return images, settings, hashes


class Facts(NamedTuple):
    """What every label file has in common."""
    num_images: int
    batch_size: int
    num_classes: int
    mix: str
    dtype: torch.dtype


def facts_of(root, settings, info):
    """-> Facts by the manifest; for a folder without one, by its first file."""
    if settings:
        dtype = torch.float16 if settings["logits"] == "fp16" else torch.float32
        return Facts(settings["num_images"], settings["batch_size"], settings.get("num_classes", info.num_classes), settings["mix"], dtype)
    return Facts(info.num_images, info.batch_size, info.num_classes, info.mix, read_label_batch(root, 0, 0).logits.dtype)


def check_sizes(finding, root, there, facts, hashes):
    """Add a fault for each label file whose size cannot be that of its rows: cut off, or another's."""
    for name, size in there.items():
        rows = min(facts.batch_size, facts.num_images - place(name)[1] * facts.batch_size)
        least = rows * (facts.num_classes * facts.dtype.itemsize + 17 + (8 if facts.mix != "none" else 0))
        if not least < size < least + FILE_OVERHEAD:
            finding.faults.append(f"{root}/{name}: has {size} bytes, {rows} rows of {facts.num_classes} classes have {least} and some; "
                                  + bring_back("labels", hashes))


def wanted_labels(there, folders, settings):
    """The names that the manifest plans; without one, those of the files that half of the epochs have, for all epochs that there are."""
    if settings:
        epochs, per_epoch = settings["epochs"], -(-settings["num_images"] // settings["batch_size"])
        return {label_name(epoch, index) for epoch in range(epochs) for index in range(per_epoch)}
    counts = Counter(place(name)[1] for name in there)
    epochs = max((place(name)[0] for name in folders), default=0) + 1
    return {label_name(epoch, index) for epoch in range(epochs) for index, count in counts.items() if 2 * count >= epochs}


def verify_labels(root, epochs=None):
    """The cheap part for labels. epochs: how many must be complete, None for all. Yield Findings -> (LabelFolder or None, settings, hashes)."""
    record, names = Finding(f"{root}, records"), Finding(f"{root}, names and sizes")
    settings, hashes = read_records(record, root, "labels")
    if record.faults or settings or hashes:
        yield record
    if record.faults:
        return None, settings, hashes
    there, folders, stray = scan(root, "labels")
    wanted = wanted_labels(there, folders, settings)
    wanted = {name for name in wanted if name in there or epochs is None or place(name)[0] < epochs} | set(hashes or ())
    stray += sorted(set(folders) - {name.partition("/")[0] for name in wanted | there.keys()})
    compare(names, root, "labels", there, wanted, stray, hashes)
    info = None if names.faults else attempt(names, inspect_labels, root)
    if names.faults and not there and (sentence := misplaced(root, "labels")):
        names.faults = [sentence]
    if info:
        check_sizes(names, root, there, facts := facts_of(root, settings, info), hashes)
        names.text = f"{len(there)} files, {info.epochs} epochs of {info.num_images} images, batch {facts.batch_size}, {sum(there.values()) / 1e6:.1f} MB"
    yield names
    return info if not names.faults else None, settings, hashes


def read_checked(findings):
    """The first of what a generator of Findings returns, once they are all without fault; raises UserError with the first fault."""
    try:
        while True:
            if (finding := next(findings)).faults:
                raise UserError(finding.fault)
    except StopIteration as end:
        return end.value[0]


def verify_pair(images, root, info, settings, deep):
    """-> the Finding whether the labels in `root` were made for these images; deep: for every byte of them."""
    finding = Finding(f"{root}, the images' identity")
    if info.num_images != len(images):
        finding.faults.append(f"{root}: labels for {info.num_images} images, {images.root} has {len(images)}")
    elif settings:
        attempt(finding, check_images, root, settings, describe_images(images) if deep else describe_names(images), images.root)
    finding.text = (f"{len(images)} images" + (", names" if settings else "") + (" and contents" if settings and deep else "")
                    + f" as {'the labels were made for' if settings else 'many as there are labels for'}")
    return finding
