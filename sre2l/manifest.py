"""What a label folder's files do not say, in two files beside its root: a manifest (JSON) and a hash of every label file (sha256sum -c)."""
import glob
import hashlib
import re
from pathlib import Path

from sre2l.distributed import rank
from sre2l.images import hash_images
from sre2l.runtime import UserError, as_json, atomic, beside, read_json, refuse_unclaimed

LABEL_FORMAT = "sre2l-labels-1"
ORDER_RULE = "torch RandomSampler, own generator, two permutations an epoch, the second dropped"
REQUIRED = {"num_images", "classes", "paths_sha256", "images_sha256", "image_bytes", "epochs", "batch_size", "order_seed", "seed", "mix",
            "mix_alpha", "crop", "input_size", "mean", "std", "logits", "teacher", "teacher_classes", "measured_top1"}
FREE = ("epochs", "measured_top1", "versions", "half_against_fp32", "images_seed")  # may differ between the runs that fill one folder


def describe_images(images):
    """The part of a manifest that ties labels to images: their number, classes, and hashes of paths and bytes."""
    paths_sha256, images_sha256, num_bytes = hash_images(images)
    return {"num_images": len(images), "classes": sorted(set(images.labels.tolist())), "class_folders": images.class_names,
            "paths_sha256": paths_sha256, "images_sha256": images_sha256, "image_bytes": num_bytes}


def manifest_of(root):
    """The settings in a label folder's manifest, or None for a folder without one, such as the published ones."""
    path = beside(root, "manifest.json")
    if not path.exists():
        return None
    settings = read_json(path).get("settings", {})
    if settings.get("format") != LABEL_FORMAT or not settings.keys() >= REQUIRED:
        raise UserError(f"{path}: no manifest of the format {LABEL_FORMAT!r}, or some of its keys are missing; relabel the images")
    return settings


def seed_of_images(folder):
    """The seed that recover (or the random-real control) recorded beside a folder of images, None where nothing stands there."""
    path = beside(folder, "manifest.json")
    return read_json(path).get("settings", {}).get("seed") if path.exists() else None


def check_images(root, manifest, described, folder):
    """Raise UserError unless the labels were made for exactly these images, by number, paths and bytes.

    described: describe_images of them, which reads every byte; folder: where they lie, for the message."""
    here = as_json(described)
    wrong = [key for key in ("num_images", "classes", "paths_sha256", "images_sha256") if here[key] != manifest.get(key)]
    if wrong:
        what = {"num_images": f"{manifest.get('num_images')} images, {folder} has {here['num_images']}",
                "classes": "other classes", "paths_sha256": "images of other names", "images_sha256": "images with other contents"}
        raise UserError(f"{root}: these labels belong to {what[wrong[0]]}; relabel {folder}, or give the images they were made for")


def hash_file(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def read_hashes(root):
    """The recorded hash of each label file, {'epoch_0/batch_0.tar': sha256}; the last line of a file counts, and a further process's file
    over the first's."""
    paths = [path for path in (beside(root, "sha256"), *rank_hashes(root)) if path.exists()]
    lines = (line.rstrip("\n").partition("  ") for path in paths for line in open(path))
    return {name: digest for digest, _, name in lines if name}


def rank_hashes(root):
    """The hash files of further processes: one file each, since two machines cannot append to one in a shared folder."""
    first = beside(root, "sha256")
    return sorted(first.parent.glob(f"{glob.escape(first.name)}.rank*"))


def earlier_epochs(root):
    """How many epochs an earlier run meant to write here, 0 for a new folder; UserError for label files that nobody vouches for."""
    refuse_unclaimed(root)
    manifest = manifest_of(root)
    return manifest["epochs"] if manifest else 0


def keep_hashes(root, hashes):
    """Write the hash file anew with these lines, in the order of epochs and batches; replaced hashes are gone then."""
    def place(name):
        return [int(number) for number in re.findall(r"\d+", name)]
    with atomic(beside(root, "sha256")) as tmp:
        tmp.write_text("".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes, key=place)))
    for path in rank_hashes(root):
        path.unlink()


def record_hash(root, name, digest):
    """Append the hash of a finished label file, in the format of sha256sum (run it inside the root); one write, since several threads
    append."""
    with open(beside(root, f"sha256.rank{rank()}" if rank() else "sha256"), "a") as file:
        file.write(f"{digest}  {name}\n")
