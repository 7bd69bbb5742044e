"""Labels of which only the recipe is stored (--codec none): the manifest is the set.

Crops and mixes are drawn from its seed, and the frozen teacher runs beside the student. It is the one whose
hash the manifest has, in the precision in which it would have labelled; its logits are rounded as label files
round them. On the same machine with the same threads these are the bits that --codec fp16 stores."""
import argparse
import hashlib
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from relabel.teacher_form import mean_logits, part_of, prepare_teachers, use_batch_statistics
from sre2l.check.verify import Finding, attempt
from sre2l.data.codecs import NONE
from sre2l.data.derived import derived_of, draw_label_batch
from sre2l.data.loader import BatchDataset, Batches
from sre2l.nets.functions import is_function
from sre2l.nets.precision import dtype_of, memory_format_of, set_tf32
from sre2l.nets.teacher import find_teachers
from sre2l.run.errors import UserError
from sre2l.run.files import sidecar
from sre2l.run.flags import checkpoint_files, network_names


def add_teacher_flags(add):
    """Add the flags that say where the teacher of such labels is now, by a parser's add_argument."""
    add("--label-teacher", type=checkpoint_files, metavar="FILE[,FILE]",
        help="of labels by --codec none: their teacher, where it is not where relabel found it")
    add("--label-arch", type=network_names, metavar="ARCH[,ARCH]",
        help="the same: its network, where that is PATH.py:function")


def check_teacher_flags(root, args, codec):
    """Raise UserError where those flags would do nothing, with labels in this codec or none at all."""
    if codec != NONE and (args.label_teacher or args.label_arch):
        raise UserError(f"{root}: no labels by --codec none, so no teacher runs: --label-teacher and "
                        f"--label-arch would do nothing; leave them away")


def source_of(teacher, root):
    """Where a teacher comes from, for the manifest of the label folder `root`: a path from the folder that it
    lies in, so that a run can be moved as a whole, or a word of torchvision."""
    place = Path(root).parent
    return os.path.relpath(teacher.source, place) if os.path.isfile(teacher.source) else teacher.source


def draws_sha256(item):
    """The sha256 of what is drawn for a batch. item: (Batch, crops, LabelBatch), of BatchDataset.

    NumPy and torch promise no future version the same draws; so a manifest has this of the first batch."""
    batch, _, (crops, mix, _) = item
    arrays = [batch.rows, crops.boxes.numpy(), crops.flips.numpy()]
    arrays += [mix.partner.numpy()] if mix.partner is not None else []
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays))
    digest.update(repr((mix.lam, mix.box)).encode())
    return digest.hexdigest()


def describe_recipe(teachers, item, root):
    """What the manifest of such labels says besides."""
    return {"teacher_sources": [source_of(teacher, root) for teacher in teachers],
            "draws_sha256": draws_sha256(item)}


def find_recorded_teachers(root, manifest, spec, files=None, archs=None):
    """The teachers that a manifest names -> [Teacher, ...], the data set's row as they see it.

    files, archs: as --teacher and --arch of relabel, where the manifest's are not right here. Raises
    UserError for teachers that are not there and for those of another hash."""
    described = manifest.get("teachers") or [manifest["teacher"]]
    functions = [teacher["arch"] for teacher in described if is_function(teacher["arch"])]
    if functions and archs is None:
        raise UserError(f"{root}: the labels' teacher is {functions[0]}, code that runs only where you name "
                        f"it yourself: type --label-arch PATH/{functions[0]}")
    record = sidecar(root, "manifest.json")
    sources = [Path(root).parent / source for source in manifest["teacher_sources"]]
    gone = [path for path in sources if not path.is_file()]
    is_torchvision = all(source.startswith("torchvision ") for source in manifest["teacher_sources"])
    if files is None and not is_torchvision:
        if gone:
            raise UserError(f"{record}: the labels' teacher was {gone[0]}, which is not there; say where it "
                            f"is now with --label-teacher FILE")
        files = ",".join(os.path.normpath(path) for path in sources)
    stems = {teacher["stem"] for teacher in described}
    args = argparse.Namespace(
        dataset=spec.name, name=None, teacher=files, dry_run=False,
        stem=stems.pop() if len(stems) == 1 else None,
        arch=archs or ",".join(teacher["arch"] for teacher in described), input_size=manifest["input_size"],
        mean=tuple(manifest["mean"]), std=tuple(manifest["std"]))
    teachers, spec = find_teachers(args, spec)
    for teacher, wanted in zip(teachers, described):
        if teacher.sha256 != wanted["sha256"]:
            raise UserError(f"{teacher.source}: by {record} the labels' teacher has the sha256 "
                            f"{wanted['sha256'][:8]}..., this one {teacher.sha256[:8]}...; give the one that "
                            f"the labels were made with (--label-teacher FILE), or relabel the images")
        if teacher.arch_sha256 != wanted.get("arch_sha256"):
            raise UserError(f"{record}: the code of {teacher.arch}, or a file beside it, has been edited "
                            f"since these labels were begun; bring it back, or relabel the images")
    return teachers, spec


@dataclass(frozen=True)
class Recipe:
    """Teachers that label beside a student. dtype: of the logits; precision: of the student, to which TF32 is
    set back."""
    labellers: list
    spec: object
    dtype: torch.dtype
    precision: str

    def complete(self, pixels, label_batch):
        """A LabelBatch as relabel draws it -> the same with the logits that it would have stored, on the
        device of the pixels (m, 3, S, S) uint8."""
        logits = mean_logits(self.labellers, pixels, label_batch, self.spec).to(self.dtype)
        set_tf32(self.precision)
        return label_batch._replace(logits=logits.clone())  # outside of inference mode: for autograd

    def completed(self, stream):
        """The same for each (Batch, pixels, LabelBatch)."""
        for batch, pixels, label_batch in stream:
            yield batch, pixels, self.complete(pixels, label_batch)


def check_draws(root, manifest, item):
    """Raise UserError where the first batch is not drawn as it was when the manifest was written."""
    if draws_sha256(item) != manifest["draws_sha256"]:
        then = (manifest.get("versions") or {}).get("numpy")
        raise UserError(f"{root}: NumPy {np.__version__} does not draw the crops and mixes of these labels, "
                        f"which were begun with NumPy {then}; install that one, or relabel the images")


def first_item(manifest, images):
    """-> (Batch, crops, LabelBatch) of the first batch."""
    shown = BatchDataset(images, manifest["input_size"], partial(draw_label_batch, manifest),
                         derived_of(manifest))
    batches = Batches(manifest["num_images"], manifest["batch_size"], manifest["order_seed"], 1)
    return shown[next(iter(batches))]


def verify_recipe(root, manifest, images, find_teachers):
    """-> the Finding whether labels that are not stored can be had: their teacher, and the same draws.

    images: those that they belong to, None where not known; find_teachers: as in check.verify."""
    finding = Finding(f"{root}, recipe")
    found = []
    if images is not None:
        item = attempt(finding, first_item, manifest, images)
        if item:
            attempt(finding, check_draws, root, manifest, item)
        found.append("crops and mix are drawn as they were")
    if find_teachers:
        attempt(finding, find_teachers, manifest)
        found.append("the teacher is there, with the hash of the manifest")
    finding.text = "; ".join(found) or "neither teacher nor images to check by"
    return finding


def prepare_recipe(root, manifest, teachers, spec, images, device, precision):
    """-> the Recipe of a label folder. images: decoded; precision: of the student. Raises UserError where the
    teacher cannot label here as it did."""
    item = first_item(manifest, images)
    check_draws(root, manifest, item)
    for teacher in teachers:
        teacher.network.to(device, memory_format=memory_format_of(device))
    part = part_of(manifest.get("batch_statistics"))
    if manifest.get("batch_statistics"):
        use_batch_statistics(teachers)
    weights = manifest.get("teacher_weights") or [1.0]
    try:
        labellers = prepare_teachers(teachers, weights, item, spec, None, manifest["precision"], device, part)
    except UserError as error:
        raise UserError(f"{root}: its teacher labels in {manifest['precision']}, which is not to be had "
                        f"here: {error}") from None
    set_tf32(precision)
    return Recipe(labellers, spec, dtype_of(manifest["logits"]), precision)
