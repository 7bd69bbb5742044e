"""Convert: the labels of a folder in another codec or layout, in a folder of their own. No teacher runs.

Run: python -m relabel.convert --dataset digits --codec uint8      (or sh convert.sh digits --codec uint8)
Time: that of reading and writing the files; 100 MB take a second or two.
Result: runs/<name>/labels_uint8 with its records, and a sentence on what is lost. Where relabel with the same
--codec would write the same bytes, it can go on with the folder.
"""
import os
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from relabel import plan
from relabel.relabel import DEFAULTS
from sre2l.check import manifest
from sre2l.check.verify import read_checked, verify_labels
from sre2l.data.codecs import NONE, check_classes, codec_name, codec_of, is_sparse
from sre2l.data.flags import add_run_flags
from sre2l.data.label_files import encode_file, file_of, read_label_batch
from sre2l.data.loader import Batches
from sre2l.run.ahead import in_order
from sre2l.run.errors import UserError
from sre2l.run.files import sidecar, write_bytes
from sre2l.run.flags import Parser, check_folders, number
from sre2l.run.hashes import read_hashes
from sre2l.run.layout import scan
from sre2l.run.log import in_bytes
from sre2l.run.output import OutputFolder, print_plan
from sre2l.run.paths import run_folder
from sre2l.run.start import run_script

T = 20  # at which targets are compared, that of the published protocol


class Loss(NamedTuple):
    """What a change of the logits costs. total: over the rows of the L1 distance of softmax(. / T); largest:
    of a row; moved: rows of another top-1."""
    rows: int = 0
    total: float = 0.0
    largest: float = 0.0
    moved: int = 0

    def plus(self, other):
        return Loss(self.rows + other.rows, self.total + other.total, max(self.largest, other.largest),
                    self.moved + other.moved)

    def __str__(self):
        if not self.total:
            return "nothing is lost"
        return (f"lost, in softmax(logits / {T}): an L1 distance of {self.total / self.rows:.2g} on average "
                f"and {self.largest:.2g} at most; {self.moved} of {self.rows} rows have another top-1")


def compare(before, after):
    """Two tensors of logits (m, C) of the same rows -> Loss."""
    one, other = ((logits.double() / T).softmax(1) for logits in (before, after))
    distance = (one - other).abs().sum(1)
    moved = before.float().argmax(1) != after.float().argmax(1)
    return Loss(len(before), distance.sum().item(), distance.max().item(), int(moved.sum()))


def check_possible(root, there, wanted):
    """Raise UserError where labels in the codec `there` do not hold what `wanted` needs."""
    if there == NONE:
        raise UserError(f"{root}: nothing is stored here; relabel.sh with --codec {wanted} makes these "
                        f"labels")
    if wanted == NONE:
        raise UserError(f"{root}: a recipe needs its teacher and its images once: the command that made "
                        f"these labels, with --codec none and another --fkd-path, writes it in seconds")
    if is_sparse(there) and (not is_sparse(wanted) or codec_of(wanted).k > codec_of(there).k):
        raise UserError(f"{root}: these labels hold the logits of {there} alone, which cannot become "
                        f"{wanted}; relabel the images")


def check_target(source, target, has_records):
    """Raise UserError where an output folder holds what would be lost: the labels themselves, or others that
    are recorded."""
    if target.exists() and target.samefile(source):
        raise UserError(f"{target}: are the labels that are to be converted; choose another --output-dir")
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{target}: is within the labels that are to be converted, and would be taken for a "
                        f"part of them; choose another --output-dir")
    if not has_records and sidecar(target, "manifest.json").exists():
        raise UserError(f"{target}: holds labels with a manifest, and those of {source} have none; choose "
                        f"another --output-dir")


def converted_settings(settings, there, wanted, packed):
    """The manifest of the new folder. decoded_from: where relabel would have written other bytes."""
    settings = {key: value for key, value in settings.items() if key not in ("codec", "layout")}
    settings |= plan.stored_form(wanted, packed)
    if there != wanted and (there == "uint8" or (there, wanted) == ("fp16", "fp32")):
        settings["decoded_from"] = there
    return settings


def convert_file(root, hashes, codec, is_packed, batches):
    """Read the labels of one new file -> (its name, its bytes, Loss). batches: those that are in it."""
    before = [read_label_batch(root, batch.epoch, batch.index, hashes=hashes) for batch in batches]
    form = codec_of(codec)
    lost = Loss()
    after = []
    for label_batch in before:
        logits = label_batch.logits
        # As relabel, which rounds to the type of its labels before a codec has them.
        rounded = logits.float() if codec == "fp32" else logits.half()
        if not torch.isfinite(rounded[torch.isfinite(logits)]).all():
            raise UserError(f"{root}: epoch {batches[0].epoch}: logits beyond what {codec} holds; use fp32")
        after.append(label_batch._replace(logits=rounded))
        lost = lost.plus(compare(logits, form.decode(form.encode(rounded), logits.shape[1])))
    data = encode_file(batches[0].epoch, after, codec, is_packed)
    return file_of(batches[0], is_packed), data, lost


def begin_unrecorded(root, planned):
    """Make a folder of labels without a manifest, as the published ones; it stays one when it is converted.
    Raises UserError for a folder with anything else in it."""
    sizes, _, stray = scan(root, "labels") if root.is_dir() else ({}, [], [])
    other = [*stray, *(sizes.keys() - planned.keys())]
    if other:
        raise UserError(f"{root}/{other[0]}: none of these labels; choose another --output-dir")
    root.mkdir(parents=True, exist_ok=True)


def main(args):
    # Plan: see what is there, and refuse what it cannot become.
    check_folders(args.fkd_path)
    source = Path(args.fkd_path or run_folder(args) / "labels")
    check_folders(source)
    info = read_checked(verify_labels(source))
    settings = manifest.manifest_of(source)
    hashes = read_hashes(source) if settings else None
    codec = args.codec or info.codec
    check_possible(source, info.codec, codec)
    check_classes(codec, info.num_classes)
    new = converted_settings(settings or {}, info.codec, codec, args.packed)
    is_packed = manifest.is_packed_set(new)
    target = Path(args.output_dir or f"{source}_{codec.replace(':', '')}"
                  + "_packed" * (is_packed and codec in plan.EXACT))
    if (codec, is_packed) == (info.codec, info.is_packed):
        raise UserError(f"{source}: is in {codec} and of this layout; say another with --codec or --packed")
    check_target(source, target, has_records=bool(settings))

    planned = plan.plan_files(Batches(info.num_images, info.batch_size, 0, info.epochs), new)
    num_bytes = plan.num_label_bytes(info.num_images, {**vars(info), **new, "codec": codec})
    if args.dry_run:
        return print_plan({"codec": codec, "layout": "packed" if is_packed else "released"},
                          output=str(target), files=len(planned), bytes=num_bytes, bytes_there=info.num_bytes)

    # Begin: a folder with records gets new ones, a published one gets none.
    todo = list(planned)
    if settings:
        folder = OutputFolder(target, "labels", args.overwrite, DEFAULTS, manifest.FREE)
        folder.begin(new)
        todo = folder.missing(todo, args.workers)
    else:
        begin_unrecorded(target, planned)
    plan.check_room(target, round(num_bytes * len(todo) / len(planned)), "--output-dir")

    # Loop: threads read and encode, this one writes.
    convert = partial(convert_file, source, hashes, codec, is_packed)
    lost = Loss()
    with closing(in_order(convert, (planned[name] for name in todo), args.workers)) as files:
        for name, data, part in tqdm(files, "convert", total=len(todo), disable=None, leave=False):
            if settings:
                folder.write({name: data})
            else:
                write_bytes(target / name, data, target)
            lost = lost.plus(part)
    if settings:
        folder.finish(planned)
    size = sum((target / name).stat().st_size for name in planned)
    print(f"done: {source}, {info.codec}, {in_bytes(info.num_bytes)} -> {target}, {codec}, "
          f"{in_bytes(size)}; {lost if todo else 'all of it was there already'}")


def make_parser():
    parser = Parser(__doc__)
    add_run_flags(parser)
    add = parser.add_argument
    add("--fkd-path", type=os.path.abspath, metavar="DIR", help="the labels (default: runs/<name>/labels)")
    add("--output-dir", type=os.path.abspath, metavar="DIR",
        help="where the new ones go (default: beside them, labels_<codec>, of fp16 labels_fp16_packed)")
    add("--codec", type=codec_name, metavar="CODEC",
        help="fp16, fp32, uint8 or topk:K (default: that of the labels)")
    add("--packed", action="store_true", help="a file for each epoch; uint8 and topk always are")
    add("--overwrite", action="store_true", help="delete what an earlier run left in the output folder")
    add("-j", "--workers", type=number(int, 0), default=2, help="threads that read and encode, 0 = none")
    return parser


def get_args(argv=None):
    return make_parser().parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
