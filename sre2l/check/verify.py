"""Do a folder of images and one of labels hold what they should? By their manifests and hashes; without
those, by what the files tell.

This is the cheap part: names, counts, sizes, manifests, and that the hash files name exactly the files that
are there. contents.py is the deep part: every byte, every image, every field."""
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sre2l.check.folders import misplaced
from sre2l.check.manifest import check_images, describe_images, describe_names, is_packed_set, read_manifest
from sre2l.data.codecs import NONE, codec_in
from sre2l.data.image_folder import check_classes, image_path, read_folder
from sre2l.data.label_files import LabelFolder, inspect_labels, label_name
from sre2l.data.packed import epoch_bytes, packed_name
from sre2l.run.errors import UserError
from sre2l.run.files import hash_file, sidecar
from sre2l.run.hashes import AGAIN, numbers_in, read_hashes
from sre2l.run.layout import LAYOUT, check_links, scan
from sre2l.run.output import recorded

FILE_OVERHEAD = 16384  # bytes of a label file that are not its tensors, at most: 2,400 with torch 2.14


@dataclass
class Finding:
    """One line of the report: what was looked at, what was found, and the faults, each a sentence with the
    name of a file; notes: lines of their own."""
    subject: str
    text: str = ""
    faults: list = field(default_factory=list)
    notes: list = field(default_factory=list)

    @property
    def fault(self):
        """The first fault, and how many more there are."""
        more = f" (and {len(self.faults) - 1} more)" if len(self.faults) > 1 else ""
        return self.faults[0] + more

    def __str__(self):
        if self.faults:
            return f"FAULT  {self.subject}: {self.fault}"
        return f"ok     {self.subject}: {self.text}"


def attempt(finding, function, *args):
    """The function's value, or None with the UserError that it raised among the finding's faults."""
    try:
        return function(*args)
    except UserError as error:
        finding.faults.append(str(error))
        return None


def bring_back(kind, hashes):
    """How a file comes back: a stage writes again what it has recorded; other sets came from elsewhere."""
    return AGAIN if hashes is not None else f"bring it back from where these {kind} came from"


def folders_of(names):
    """The folders of some files: {'epoch_0'} of ['epoch_0/batch_0.tar']."""
    return {name.partition("/")[0] for name in names}


def in_order_of_numbers(names):
    return sorted(names, key=numbers_in)


def compare(finding, root, kind, sizes, wanted, stray, hashes):
    """Add a fault for each stray entry, each file that no hash is recorded for, each that is not wanted, each
    that is missing and each that is empty.

    sizes: the bytes of each file that is there, by name; wanted: a set of names; hashes: by name, or None."""
    # What is there and should not be.
    listing = sidecar(root, "sha256")
    faults = finding.faults
    for name in stray:
        faults.append(f"{root}/{name}: does not belong into a folder of {kind}; move it away")
    unrecorded = sizes.keys() - hashes.keys() if hashes is not None else set()
    for name in in_order_of_numbers(unrecorded):
        mend = AGAIN if name in wanted else "it is none of this set: move it away"
        faults.append(f"{root}/{name}: no hash is recorded for it in {listing}; {mend}")
    for name in in_order_of_numbers(sizes.keys() - wanted - unrecorded):
        faults.append(f"{root}/{name}: is one {kind[:-1]} file too many")

    # What should be there and is not. Without hashes, a file that half of the folders have may be missing in
    # the others, or be too many in these.
    file_names = {name.partition("/")[2]: name for name in sizes}
    counts = Counter(name.partition("/")[2] for name in sizes)
    num_folders = len(folders_of(wanted))
    for name in in_order_of_numbers(wanted - sizes.keys()):
        file_name = name.partition("/")[2]
        why = ""
        if name in (hashes or ()):
            why = f", though {listing} names it"
        elif hashes is None and 0 < 2 * counts[file_name] <= num_folders:
            why = f", or {root}/{file_names[file_name]} is one too many"
        faults.append(f"{root}/{name}: is missing{why}; {bring_back(kind, hashes)}")

    # An empty file is what a full disk or a copy that broke off leaves.
    for name, size in sizes.items():
        if not size:
            faults.append(f"{root}/{name}: is empty; delete it, and {bring_back(kind, hashes)}")


def read_records(finding, root, kind):
    """-> (settings in the manifest, hashes by name), None where there is none. What is wrong with the two
    files is added to the faults."""
    path = sidecar(root, "manifest.json")
    listing = sidecar(root, "sha256")
    hashes = None
    record = attempt(finding, read_manifest, root, kind)
    if record and json.dumps(record, indent=1) + "\n" != path.read_text(encoding="utf-8"):
        finding.faults.append(f"{path}: not as a run wrote it")
    settings = record and record["settings"]

    if listing.exists():
        hashes = attempt(finding, read_hashes, root, True)
        if settings and record.get("hashes", hash_file(listing)) != hash_file(listing):
            finding.faults.append(f"{path} and {listing}: do not belong together, or one was changed; "
                                  f"the same command as before mends the latter")
    elif settings:
        mend = AGAIN if settings.get("codec") == NONE else "bring it back, or start afresh with --overwrite"
        finding.faults.append(f"{listing}: this file of hashes is missing; {mend}")

    found = {path.name: settings, f"{listing.name} for {len(hashes or ())} files": hashes}
    finding.text = ", ".join(text for text, value in found.items() if value)
    return settings, hashes


def most_common(values):
    """The value that most have."""
    return Counter(values).most_common(1)[0][0]


def wanted_images(names, hashes, classes, num_classes):
    """The names that a complete set has: of each class the images whose numbers most classes have, with the
    suffix that most files have, and what hashes are recorded for.

    names: those there; hashes: by name, None without a hash file. Where some are recorded, the suffix is that
    of most of those."""
    names = set(names) | set(hashes or ())
    if not names:
        return set()
    suffix = most_common(Path(name).suffix for name in hashes or names)
    counts = Counter(numbers_in(name)[-1] for name in names)
    common = [number for number, count in counts.items() if 2 * count > len(classes)] or [0]
    numbers = range(min(common), max(common) + 1)
    paths = [image_path("", label, number, num_classes, suffix) for label in classes for number in numbers]
    return {path.as_posix() for path in paths} | set(hashes or ())


def check_complete(images):
    """Raise UserError unless all class folders have the same number of images."""
    counts = np.bincount(images.labels)
    if counts.min() != counts.max():
        low = images.class_names[counts.argmin()]
        high = images.class_names[counts.argmax()]
        raise UserError(f"{images.root}: {low} has {counts.min()} images, {high} has {counts.max()}; "
                        f"the set is not complete")


def read_synthetic(root, num_classes, classes=None):
    """Read a folder of synthetic images, whose file names are checked -> Images.

    The number in the name of a folder new... is its class. In folders of other names the class is the sorted
    position among `classes` (default: those that recover recorded for `root`, else all). Raises UserError for
    a folder of other classes, and for one of recover's layout in which a class has fewer images."""
    check_links(root)
    images = read_folder(root)
    classes = list(classes or recorded(sidecar(root, "manifest.json"), "classes") or range(num_classes))
    numbers = [re.fullmatch(r"new(\d+)", name) for name in images.class_names]
    found = classes
    if all(numbers):
        found = [int(number[1]) for number in numbers]
        check_classes(root, sorted(found), classes, "the set")
        check_complete(images)
    elif len(images.class_names) != len(classes):
        num_folders = len(images.class_names)
        raise UserError(f"{root}: {num_folders} class folders, the set has {len(classes)} classes")
    if max(found) >= num_classes:
        raise UserError(f"{root}: class {max(found)} is not among the network's {num_classes}")
    return replace(images, labels=np.array(found)[images.labels])


def verify_images(root, num_classes, classes=None):
    """The cheap part for images. Yield Findings -> (Images or None where faulty, settings, hashes)."""
    record = Finding(f"{root}, records")
    settings, hashes = read_records(record, root, "images")
    if record.faults or settings or hashes:
        yield record

    # A folder in recover's layout must hold what its hash file names, or else the same images of every class.
    names = Finding(f"{root}, names")
    classes = classes or (settings or {}).get("classes")
    # A published set may have any layout that ImageFolder reads.
    sizes = {}
    if any(re.fullmatch(LAYOUT["images"][0], entry.name) for entry in os.scandir(root)):
        classes = classes or range(num_classes)
        found = attempt(names, scan, root, "images")
        if not found:
            yield names
            return None, settings, hashes
        sizes, folders, stray = found
        wanted = wanted_images(sizes, hashes, classes, num_classes)
        if hashes is None:  # another data set's, perhaps: the number of folders says more than a missing file
            expected = sorted(image_path("", label, 0, num_classes).parent.name for label in classes)
            attempt(names, check_classes, root, folders, expected, "the set")
        stray += sorted(set(folders) - folders_of(wanted))
        compare(names, root, "images", sizes, wanted, stray, hashes)

    # Any folder must be one that torchvision's ImageFolder reads.
    images = None
    if not record.faults and not names.faults:
        images = attempt(names, read_synthetic, root, num_classes, classes)

    # Nothing of the kind in it: perhaps the set is deeper, in the folder of an unpacked archive.
    sentence = misplaced(root, "images") if names.faults and not sizes else None
    if sentence:
        names.faults = [sentence]
    if images:
        names.text = f"{len(images)} images in {len(images.class_names)} class folders"
    yield names
    return images, settings, hashes


def planned_labels(info, settings):
    """What the files of a label folder tell, with the manifest's settings, where there is one, in place of
    that -> LabelFolder."""
    if not settings:
        return info
    keys = settings.keys() & {"num_images", "batch_size", "num_classes", "mix"}
    return replace(info, **{key: settings[key] for key in keys}, codec=codec_in(settings))


def check_sizes(finding, root, sizes, plan, hashes):
    """Add a fault for each label file whose size cannot be that of its rows. plan: a LabelFolder."""
    if plan.is_packed:
        rows = rows_of_batches(plan.num_images, plan.batch_size)
        wanted = epoch_bytes(plan.codec, plan.mix, rows, plan.num_classes)
        finding.faults += [f"{root}/{name}: has {size} bytes, an epoch of {plan.num_images} rows of "
                           f"{plan.num_classes} classes has {wanted}; {bring_back('labels', hashes)}"
                           for name, size in sizes.items() if size != wanted]
        return
    logit_bytes = 2 if plan.codec == "fp16" else 4
    row_bytes = plan.num_classes * logit_bytes + 17  # logits, box and flip
    if plan.mix != "none":
        row_bytes += 8  # the partner
    for name, size in sizes.items():
        rows = min(plan.batch_size, plan.num_images - numbers_in(name)[1] * plan.batch_size)
        least = rows * row_bytes
        if not least < size < least + FILE_OVERHEAD:
            finding.faults.append(f"{root}/{name}: has {size} bytes, {rows} rows of {plan.num_classes} "
                                  f"classes have {least} and some; {bring_back('labels', hashes)}")


def rows_of_batches(num_images, batch_size):
    """How many images each batch of an epoch has."""
    return [min(batch_size, num_images - start) for start in range(0, num_images, batch_size)]


def wanted_labels(names, folders, settings):
    """The names that the manifest plans. Without one: in every epoch up to the last, every batch up to the
    last that half of the epochs have; or each epoch's one file."""
    if settings and codec_in(settings) == NONE:
        return set()
    packed = [name for name in names if "/" not in name]
    if is_packed_set(settings) if settings else packed:
        epochs = settings["epochs"] if settings else max(numbers_in(name)[0] for name in packed) + 1
        return {packed_name(epoch) for epoch in range(epochs)}
    if settings:
        epochs = settings["epochs"]
        per_epoch = -(-settings["num_images"] // settings["batch_size"])
    else:
        epochs = max((numbers_in(name)[0] for name in folders), default=0) + 1
        counts = Counter(numbers_in(name)[-1] for name in names)
        per_epoch = max((index for index, count in counts.items() if 2 * count >= epochs), default=-1) + 1
    return {label_name(epoch, index) for epoch in range(epochs) for index in range(per_epoch)}


def verify_labels(root, epochs=None):
    """The cheap part for labels. epochs: how many must be complete, None for all. Yield Findings ->
    (LabelFolder or None, settings, hashes)."""
    record = Finding(f"{root}, records")
    settings, hashes = read_records(record, root, "labels")
    if record.faults or settings or hashes:
        yield record
    if record.faults:
        return None, settings, hashes

    # The files there must be those that the manifest plans; epochs that are not wanted yet may be missing.
    names = Finding(f"{root}, names and sizes")
    found = attempt(names, scan, root, "labels")
    if not found:
        yield names
        return None, settings, hashes
    sizes, folders, stray = found
    wanted = wanted_labels(sizes, folders, settings)
    if epochs is not None:
        wanted = {name for name in wanted if name in sizes or numbers_in(name)[0] < epochs}
    wanted |= set(hashes or ())
    stray += sorted(set(folders) - folders_of(wanted | sizes.keys()))
    compare(names, root, "labels", sizes, wanted, stray, hashes)
    if settings and codec_in(settings) == NONE:
        names.text = f"nothing is stored: {settings['epochs']} epochs are derived from the manifest"
        yield names
        keys = ("num_images", "batch_size", "epochs", "num_classes", "mix")
        info = LabelFolder(*(settings[key] for key in keys), codec=NONE, is_packed=False, num_bytes=0)
        return None if names.faults else info, settings, hashes
    if not sizes and not names.faults:
        names.faults.append(f"{root}: no label files are in this folder")
    # One file tells the rest's type, mix and number of classes; a faulty set may not have it.
    info = None if names.faults else attempt(names, inspect_labels, root, sizes)

    # What is there must have the shape of the plan; a folder without any may be one level too high.
    sentence = misplaced(root, "labels") if names.faults and not sizes else None
    if sentence:
        names.faults = [sentence]
    if info:
        info = planned_labels(info, settings)
        check_sizes(names, root, sizes, info, hashes)
        names.text = (f"{len(sizes)} files, {info.epochs} epochs of {info.num_images} images, "
                      f"batch {info.batch_size}, {info.num_bytes / 1e6:.1f} MB")
    yield names
    return info if not names.faults else None, settings, hashes


def read_checked(findings):
    """What a generator of Findings returns first; raises UserError with the first fault."""
    try:
        while True:
            finding = next(findings)
            if finding.faults:
                raise UserError(finding.fault)
    except StopIteration as end:
        return end.value[0]


def verify_pair(images, root, info, settings, deep):
    """-> the Finding whether these labels were made for these images; deep: for every byte of them."""
    finding = Finding(f"{root}, the images' identity")
    if info.num_images != len(images):
        finding.faults.append(f"{root}: labels for {info.num_images} images, {images.root} has {len(images)}")
    elif settings:
        described = describe_images(images) if deep else describe_names(images)
        attempt(finding, check_images, root, settings, described, images.root)
    what = "as many as there are labels for"
    if settings:
        what = f"names{' and contents' if deep else ''} as the labels were made for"
    finding.text = f"{len(images)} images, {what}"
    return finding
