"""What a label folder's files do not say, in two files beside its root: a manifest (JSON) and a hash of every label file (sha256sum -c)."""
import glob
import hashlib
import re
from pathlib import Path

from sre2l.distributed import rank
from sre2l.images import hash_images, hash_paths
from sre2l.runtime import UserError, as_json, atomic, beside, first_line, read_json, refuse_unclaimed

LABEL_FORMAT = "sre2l-labels-1"
ORDER_RULE = "torch RandomSampler, own generator, two permutations an epoch, the second dropped"
REQUIRED = {"num_images", "classes", "paths_sha256", "images_sha256", "image_bytes", "epochs", "batch_size", "order_seed", "seed", "mix",
            "mix_alpha", "crop", "input_size", "mean", "std", "logits", "teacher", "teacher_classes", "measured_top1"}
HASH_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
FREE = ("epochs", "measured_top1", "versions", "half_against_fp32")  # may differ between the runs that fill one folder


def describe_names(images):
    """What their names alone tell: number, classes, and a hash of the paths."""
    return {"num_images": len(images), "classes": sorted(set(images.labels.tolist())), "class_folders": images.class_names,
            "paths_sha256": hash_paths(images)}


def describe_images(images):
    """The part of a manifest that ties labels to images: their number, classes, and hashes of paths and bytes."""
    images_sha256, num_bytes = hash_images(images)
    return {**describe_names(images), "images_sha256": images_sha256, "image_bytes": num_bytes}


def manifest_of(root):
    """The settings in a label folder's manifest, or None for a folder without one, such as the published ones."""
    path, hashes = beside(root, "manifest.json"), beside(root, "sha256")
    if not path.exists():
        if hashes.exists():
            raise UserError(f"{path}: this manifest is missing, though {hashes.name} stands beside it: bring it back; labels of other origin have neither")
        return None
    settings = read_json(path).get("settings", {})
    if settings.get("format") != LABEL_FORMAT or not settings.keys() >= REQUIRED:
        raise UserError(f"{path}: no manifest of the format {LABEL_FORMAT!r}, or some of its keys are missing; relabel the images")
    return settings


def check_images(root, manifest, described, folder):
    """Raise UserError unless the labels were made for exactly these images, by number, paths and bytes.

    described: describe_images of them, which reads every byte, or describe_names, which reads none; folder: where they lie, for the message."""
    here = as_json(described)
    wrong = [key for key in ("num_images", "classes", "paths_sha256", "images_sha256") if key in here and here[key] != manifest.get(key)]
    if wrong == ["images_sha256"]:
        for name, digest in read_hashes(folder).items():
            if hash_file(Path(folder) / name) != digest:
                raise UserError(f"{folder}/{name}: its sha256 is not the one in {beside(folder, 'sha256')}; the same recover command writes it again")
    if wrong:
        what = {"num_images": f"{manifest.get('num_images')} images, {folder} has {here['num_images']}",
                "classes": "other classes", "paths_sha256": "images of other names", "images_sha256": "images with other contents"}
        raise UserError(f"{root}: these labels belong to {what[wrong[0]]}; relabel {folder}, or give the images they were made for")


def hash_file(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def is_inside(name):
    """Whether a name in a hash file is that of a file inside the root: relative, no '..', nothing that is not printed."""
    return name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def parse_hashes(path, strict=False):
    """{name: sha256} of one hash file, a later line over an earlier; raises UserError for a line that is not one.

    A last line without its end is what a killed run leaves: it is passed over, so that its file counts as not recorded. strict: that is a
    fault as well, and so is a name that stands there twice."""
    try:
        lines = Path(path).read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as a file of hashes ({first_line(error)})") from None
    if strict and lines[-1]:
        raise UserError(f"{path}: line {len(lines)}, its last, is torn: {lines[-1][:80]!r}; the same command as before mends it")
    found = {}
    for number, line in enumerate(lines[:-1], 1):
        match = HASH_LINE.fullmatch(line)
        if not match or not is_inside(match[2]):
            raise UserError(f"{path}: line {number} is no hash of a file inside {Path(path).name.partition('.')[0]}: {line[:80]!r}; "
                            f"restore the file, or delete it and give the same command as before, which then does everything anew")
        if strict and match[2] in found:
            raise UserError(f"{path}: line {number} names {match[2]} for the second time; the same command as before mends it")
        found[match[2]] = match[1]
    return found


def read_hashes(root, strict=False):
    """The recorded hash of each file of a folder, {'epoch_0/batch_0.tar': sha256}; a further process's file counts over the first's.
    strict: as in parse_hashes, for a folder that nothing writes to."""
    paths = [path for path in (beside(root, "sha256"), *rank_hashes(root)) if path.exists()]
    return {name: digest for path in paths for name, digest in parse_hashes(path, strict).items()}


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
