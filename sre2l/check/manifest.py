"""What the files of an image or label folder do not say, in two files beside its root: a manifest (JSON) and a hash of every file (sha256sum -c)."""
import contextlib
import hashlib
import re
from pathlib import Path

import torch
from tqdm import tqdm

from sre2l.data.loader import in_order
from sre2l.run.claims import release
from sre2l.run.processes import rank, sum_over_processes, world_size
from sre2l.run.errors import UserError
from sre2l.run.files import TOKEN, alone_in, append_line, as_json, sidecar, hash_file, is_alive, token, write_bytes
from sre2l.data.image_folder import hash_images, hash_paths
from sre2l.run.settings import finish, recorded, refuse_unclaimed

LABEL_FORMAT = "sre2l-labels-1"
ORDER_RULE = "torch RandomSampler, own generator, two permutations an epoch, the second dropped"
REQUIRED = {"num_images", "classes", "paths_sha256", "images_sha256", "image_bytes", "epochs", "batch_size", "order_seed", "seed", "mix",
            "mix_alpha", "crop", "input_size", "mean", "std", "logits", "teacher", "teacher_classes", "measured_top1"}
FREE = ("epochs", "measured_top1", "versions", "half_against_fp32", "images_seed")  # may differ between the runs that fill one folder


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
    path = sidecar(root, "manifest.json")
    settings = recorded(path)
    if settings is None:
        if sidecar(root, "sha256").exists():
            raise UserError(f"{path}: this manifest is missing, though {sidecar(root, 'sha256')} is there: bring it back, or delete "
                            f"that file too where the labels are of other origin or gone")
        return None
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
            if (path := Path(folder) / name).exists() and hash_file(path) != digest:
                raise UserError(f"{folder}/{name}: its sha256 is not the one in {sidecar(folder, 'sha256')}; the same recover command writes it again")
    if wrong:
        what = {"num_images": f"{manifest.get('num_images')} images, {folder} has {here['num_images']}",
                "classes": "other classes", "paths_sha256": "images of other names", "images_sha256": "images with other contents"}
        raise UserError(f"{root}: by {sidecar(root, 'manifest.json')} these labels belong to {what[wrong[0]]}; relabel {folder} (relabel.sh with --overwrite "
                        f"deletes them and starts afresh), or give the images they were made for")


def hash_files(root):
    """The hash files of a folder: the main one and, while processes write, one of each, since two machines cannot append to one file."""
    main = sidecar(root, "sha256")
    parts = [path for path in main.parent.glob("*.sha256.*") if re.fullmatch(rf"{re.escape(main.name)}\.{TOKEN}", path.name)]
    return [main] * main.exists() + sorted(parts, key=lambda path: path.stat().st_mtime_ns)


def is_inside(name):
    """Whether a name in a hash file is that of a file inside the root: relative, no '..', nothing that is not printed."""
    return name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def read_hash_file(path, strict=False):
    """{'epoch_0/batch_0.tar': sha256}; the last line of a name counts, and a line that is none counts as not there, as what a kill left of one.

    strict: raise UserError for such a line, and for a name that is there twice."""
    lines, found = Path(path).read_bytes().decode(errors="replace").split("\n"), {}
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        is_torn = number == len(lines)  # whatever it holds, its end is missing; a whole file ends with an empty one
        if match and is_inside(match[2]) and not is_torn and not (strict and match[2] in found):
            found[match[2]] = match[1]
        elif strict and (line or not is_torn):
            what = "is torn" if is_torn else "names a file for the second time" if match and match[2] in found else "is no hash of a file inside"
            raise UserError(f"{path}: line {number} {what}: {line[:100]!r}; the same command as before mends it")
    return found


def read_hashes(root, strict=False):
    """The recorded hash of each file of an image or label folder, by its path in it. strict: of a folder that nobody writes to, in which
    every line must be one."""
    for _ in range(5):
        with contextlib.suppress(FileNotFoundError):  # a process that writes another range has just ended, and its lines are in the main file now
            return {name: digest for path in hash_files(root) for name, digest in read_hash_file(path, strict).items()}
    raise UserError(f"{sidecar(root, 'sha256')}: processes that write to {root} end all the time; wait until they are done")


def earlier_epochs(root):
    """How many epochs an earlier run meant to write here, 0 for a new folder; UserError for label files that nobody vouches for."""
    refuse_unclaimed(root)
    manifest = manifest_of(root)
    return manifest["epochs"] if manifest else 0


def is_writing(root, owner):
    """Does another process, by its token, write to this folder? It has a claim then, and touches it now and then."""
    claim, mine = (sidecar(root, f"{name}.claim") for name in (owner, token()))
    now = mine.stat().st_mtime if mine.exists() else None
    return owner != token() and claim.exists() and is_alive(owner, claim, now)


def place(name):
    """The numbers in a name, to sort by."""
    return [int(number) for number in re.findall(r"\d+", name)]


def merge_hashes(root, drop=()):
    """Write the main hash file anew, in the order of its numbers, with what this process and dead ones have recorded, without the names
    in `drop`. What living processes record stays theirs until they end."""
    main = sidecar(root, "sha256")
    with alone_in(main.parent):
        parts = [path for path in hash_files(root) if path != main]
        ended = [path for path in parts if not is_writing(root, path.name.removeprefix(f"{main.name}."))]
        before = read_hash_file(main) if main.exists() else {}
        hashes = {name: digest for path in ended for name, digest in read_hash_file(path).items()}
        hashes = {name: digest for name, digest in (before | hashes).items() if name not in drop}
        text = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes, key=place)).encode()
        if text != (main.read_bytes() if main.exists() else b""):
            write_bytes(main, text)
        for path in ended:
            path.unlink()


def missing_files(root, names, threads, what, counts=Path.exists):
    """-> which of these files, by their paths in the folder, are not there or are not what was recorded; what else is recorded of them is
    forgotten. Of several processes each reads a part. what: 'images', for the progress bar; counts: does what is at a path count as there?"""
    hashes, intact = read_hashes(root), torch.zeros(len(names), dtype=torch.int32)

    def look(number):
        path = Path(root) / names[number]
        intact[number] = counts(path) and hashes.get(names[number]) == hash_file(path)

    own = range(rank(), len(names), world_size())
    for _ in tqdm(in_order(look, own, threads), f"checking {what}", total=len(own), disable=None, leave=False):
        pass
    missing = [name for name, is_intact in zip(names, sum_over_processes(intact).tolist()) if not is_intact]
    if rank() == 0:
        merge_hashes(root, drop=set(missing))
    return missing


def complete(root, names, log, what):
    """End what several processes have written into a folder: collect what they recorded, see that all of `names` is there, and tie the
    manifest to its hashes -> whether this process is the first, which does what is left to do. Raises UserError for files that are gone."""
    if rank() > 0:
        release()  # its part is done: the first process collects what it has recorded
    log.wait()
    if rank() > 0:
        return False
    merge_hashes(root)
    if gone := sum(not (Path(root) / name).exists() for name in names):
        raise UserError(f"{root}: {gone} {what} are not there any more, removed under way? The same command writes them again")
    finish(sidecar(root, "manifest.json"), sidecar(root, "sha256"))
    return True


def write_recorded(root, files):
    """Write files {path in the folder: bytes}, and record their hashes before: one that a kill leaves is then a known one."""
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    append_line(sidecar(root, f"sha256.{token()}"), "".join(f"{digest}  {name}\n" for name, digest in hashes.items()))
    for name, data in files.items():
        write_bytes(Path(root) / name, data, root)
