"""The manifest of a label folder: which images the labels are for, and how they were made."""
import hashlib
from pathlib import Path

from sre2l.run.errors import UserError
from sre2l.run.files import as_json, hash_file, sidecar
from sre2l.run.hashes import changed, read_hashes
from sre2l.run.output import read_record

LABEL_FORMAT = "sre2l-labels-1"
ORDER_RULE = "torch RandomSampler, own generator, two permutations an epoch, the second dropped"
REQUIRED = {"num_images", "classes", "paths_sha256", "images_sha256", "image_bytes", "epochs", "batch_size",
            "order_seed", "seed", "mix", "mix_alpha", "crop", "input_size", "mean", "std", "logits",
            "teacher", "teacher_classes", "measured_top1"}
# Settings that may differ between the runs that fill one folder of labels.
FREE = ("epochs", "measured_top1", "versions", "half_against_fp32", "images_seed", "teacher_sources")


def is_packed_set(settings):
    """Do labels with these settings lie in a file for each epoch?"""
    return settings.get("layout") == "packed"


def describe_names(images):
    """The part of a manifest that the images' names alone tell: number, classes, and the sha256 of their
    relative paths, a line each, in flat order."""
    names = [Path(path).relative_to(images.root).as_posix() for path in images.items]
    paths_sha256 = hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()
    return {"num_images": len(images), "classes": sorted(set(images.labels.tolist())),
            "class_folders": images.class_names, "paths_sha256": paths_sha256}


def describe_images(images):
    """The part of a manifest that ties labels to images: what their names tell, the sha256 of the sha256 of
    all files in flat order, and their bytes."""
    contents = hashlib.sha256()
    num_bytes = 0
    for path in images.items:
        data = Path(path).read_bytes()
        contents.update(hashlib.sha256(data).digest())
        num_bytes += len(data)
    return {**describe_names(images), "images_sha256": contents.hexdigest(), "image_bytes": num_bytes}


def read_manifest(root, kind):
    """The manifest of a folder of images or labels; None where there is none, as of the published folders."""
    path = sidecar(root, "manifest.json")
    listing = sidecar(root, "sha256")
    if not path.exists():
        if listing.exists():
            raise UserError(f"{path}: this manifest is missing, though {listing} is there: bring it back, or "
                            f"delete that file too where the {kind} are of other origin or gone")
        return None
    record = read_record(path)
    settings = record["settings"]
    if kind == "labels" and (settings.get("format") != LABEL_FORMAT or not settings.keys() >= REQUIRED):
        raise UserError(f"{path}: no manifest of the format {LABEL_FORMAT!r}, or some of its keys are "
                        f"missing; relabel the images")
    return record


def manifest_of(root):
    """The settings in a label folder's manifest; None where there is none."""
    record = read_manifest(root, "labels")
    return record and record["settings"]


def refuse_changed(folder):
    """Raise UserError for the first image in a folder that is not as it was recorded."""
    for name, digest in read_hashes(folder).items():
        path = Path(folder) / name
        if path.exists() and hash_file(path) != digest:
            raise changed(path, folder)


def check_images(root, manifest, described, folder):
    """Raise UserError unless the labels in `root` were made for exactly these images, by number, classes,
    paths and bytes.

    described: describe_images of them, which reads every byte, or describe_names, which reads none; folder:
    where they lie, for the message."""
    described = as_json(described)
    what = {"num_images": f"{manifest.get('num_images')} images, {folder} has {described['num_images']}",
            "classes": "other classes", "paths_sha256": "images of other names",
            "images_sha256": "images with other contents"}
    wrong = [key for key in what if key in described and described[key] != manifest.get(key)]
    if wrong == ["images_sha256"]:
        refuse_changed(folder)
    if wrong:
        raise UserError(f"{root}: by {sidecar(root, 'manifest.json')} these labels belong to "
                        f"{what[wrong[0]]}; relabel {folder} (relabel.sh with --overwrite deletes them and "
                        f"starts afresh), or give the images they were made for")
