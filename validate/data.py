"""What a student learns from and is measured on: images, their stored labels, real images."""
from dataclasses import dataclass
from functools import partial

from relabel.recipe import Recipe, find_recorded_teachers, prepare_recipe
from sre2l.check.manifest import manifest_of
from sre2l.check.verify import read_checked, verify_images, verify_labels
from sre2l.data.codecs import NONE
from sre2l.data.datasets import Dataset
from sre2l.data.derived import derived_of, draw_label_batch
from sre2l.data.flags import override
from sre2l.data.image_folder import Images
from sre2l.data.label_files import LabelFolder, read_label_batch
from sre2l.data.loader import BatchDataset, load_batches
from sre2l.data.pixel_store import keep_decoded
from sre2l.data.real_images import OwnImages, ShownImages, read_val
from sre2l.run.hashes import read_hashes
from validate.checks import check_labels, check_there, describe_labels
from validate.draws import choose_batches, fresh_settings


@dataclass(frozen=True)
class StudentData:
    """Images, labels and real images that belong together."""
    spec: Dataset  # the data set's row, with the labels' size and normalisation
    images: Images  # the synthetic ones, decoded
    labels: LabelFolder  # what the label folder itself tells
    facts: dict  # what the protocol says of images and labels
    val: ShownImages | OwnImages
    notes: list  # lines for the log
    recipe: Recipe | None = None  # of labels that are not stored

    @property
    def batches_per_epoch(self):
        return -(-self.labels.num_images // self.labels.batch_size)


def find_data(args, spec, device, precision="fp32"):
    """Read and check images and labels, and read the validation set -> StudentData. precision: the student's.

    Raises UserError where something is missing or damaged, or does not belong together."""
    check_there(args.train_dir, args.fkd_path)
    images = read_checked(verify_images(args.train_dir, spec.num_classes, args.classes))
    epochs = args.epochs if args.label_draw == "order" else None  # a pool is all that is there
    labels = read_checked(verify_labels(args.fkd_path, epochs))
    labels, manifest, notes = check_labels(args, spec, images, labels)
    teachers = None
    if labels.codec == NONE and not args.hard_labels:
        teachers = find_recorded_teachers(args.fkd_path, manifest, spec, args.label_teacher, args.label_arch)
    facts = describe_labels(args, labels, manifest, images)
    if args.label_draw != "order":  # a pool is another one when it has grown
        facts["pool_epochs"] = labels.epochs
    class_names = None
    if manifest:
        mean, std = tuple(manifest["mean"]), tuple(manifest["std"])
        spec = override(spec, args, mean=mean, std=std, size=manifest["input_size"])
        class_names = manifest["teacher_classes"]

    val = read_val(spec, args.val_dir, facts["classes"], class_names, order=args.class_order)
    images, note = keep_decoded(images, device)
    recipe = None
    if teachers:
        recipe = prepare_recipe(args.fkd_path, manifest, *teachers, images, device, precision)
    return StudentData(spec, images, labels, facts, val, [*notes, note], recipe)


def stored_label_batch(root, num_classes, hashes, batch, sizes):
    """What relabel stored for a batch -> LabelBatch. hashes: of all label files, {name: sha256}, if known."""
    return read_label_batch(root, batch.epoch, batch.index, len(sizes), num_classes, hashes)


def load_stored_batches(args, data, first_epoch, device, seed=0):
    """Yield (Batch, crops (m, 3, S, S) uint8 on the device, LabelBatch), from an epoch on.

    What is not stored is drawn again, and the teacher's logits are computed beside the student. seed: of what
    --label-draw draws."""
    manifest = manifest_of(args.fkd_path)
    hashes = read_hashes(args.fkd_path) if manifest else None
    for batches, is_fresh in choose_batches(args, data.labels, seed, first_epoch):
        if is_fresh:
            label_batch_of = partial(draw_label_batch, fresh_settings(manifest, seed))
        elif data.labels.codec == NONE:
            label_batch_of = partial(draw_label_batch, manifest)
        else:
            label_batch_of = partial(stored_label_batch, args.fkd_path, data.spec.num_classes, hashes)
        dataset = BatchDataset(data.images, data.spec.size, label_batch_of, derived_of(manifest))
        stream = load_batches(dataset, batches, args.workers, device)
        yield from data.recipe.completed(stream) if data.recipe and not is_fresh else stream
