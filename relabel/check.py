"""Check: do a folder of images and one of labels hold what they should, and do they belong together? Reads,
never writes.

Run: python -m relabel.check --dataset digits      (or sh check.sh digits)
Time: digits, 100 images and 120 label files, about 4 s; nearly all of it is Python and torch starting.
Result: a line for each check; exit code 1 with the first fault named.
"""
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from relabel.recipe import (
    add_teacher_flags,
    check_teacher_flags,
    find_recorded_teachers,
    verify_recipe,
)
from sre2l.check.contents import verify_label_files, verify_pixels
from sre2l.check.verify import Finding, verify_images, verify_labels, verify_pair
from sre2l.data.codecs import NONE
from sre2l.data.flags import add_run_flags, find_row
from sre2l.run.errors import UserError
from sre2l.run.files import sidecar
from sre2l.run.flags import Parser, check_folders, number, number_list
from sre2l.run.hashes import AGAIN
from sre2l.run.output import check_dataset, print_plan, recorded
from sre2l.run.paths import run_folder
from sre2l.run.start import run_script


def verify(data, fkd_path, num_classes, num_pixels, classes=None, order_seed=42, deep=True, threads=0,
           find_teachers=None):
    """Yield the Findings of a folder of images and one of labels, either of which may not be there yet.

    num_pixels: the input size, order_seed: the order of the images, both for labels without a manifest;
    find_teachers: manifest -> the teachers of labels of which nothing is stored, None: they are not looked
    for."""
    images = info = is_whole = None
    if is_there(data):
        images, settings, hashes = yield from verify_images(data, num_classes, classes)
        if images and deep:
            is_whole = yield from verify_pixels(images, settings, hashes, threads)
    else:
        yield Finding(data, "no images there yet, so not checked")

    if is_there(fkd_path):
        info, settings, hashes = yield from verify_labels(fkd_path)
    else:
        yield Finding(fkd_path, "no labels there yet, so not checked")
    if not info:
        return

    pair = Finding(fkd_path, "not compared with images")
    if images:
        pair = verify_pair(images, fkd_path, info, settings, deep and is_whole)
    yield pair
    if deep:
        fitting = None if pair.faults else images
        if info.codec == NONE:
            yield verify_recipe(fkd_path, settings, fitting, find_teachers)
            return
        yield from verify_label_files(fkd_path, info, settings, hashes, fitting, num_pixels, order_seed,
                                      threads)


def is_there(root):
    """Is there such a folder of images or labels? Raises UserError where only its records are left."""
    if Path(root).is_dir():
        return True
    for left in (sidecar(root, "manifest.json"), sidecar(root, "sha256")):
        if left.exists():
            raise UserError(f"{root}: this folder is missing, though {left.name} stands beside it; "
                            f"{AGAIN}")
    return False


def limits(data, fkd_path):
    """What no check finds in folders that carry no hashes, a sentence for each."""
    has_manifest = sidecar(fkd_path, "manifest.json").exists()
    if Path(data).is_dir() and not sidecar(data, "sha256").exists() and not has_manifest:
        yield ("images without hashes: a JPEG has no checksum, so a changed bit that still decodes cannot be "
               "found, nor two images that were exchanged, nor an image replaced by another of that size")
    if Path(fkd_path).is_dir() and not has_manifest:
        yield ("labels without a manifest: each file has checksums of its own, but only the agreement tells "
               "whether it is the right one. Not found are labels for other images of these classes, another "
               "teacher's or normalisation's, exchanged files of few rows, and missing last epochs")


def folder_bytes(root):
    return sum(path.stat().st_size for path in Path(root).rglob("*") if path.is_file())


def main(args):
    check_folders(args.data, args.fkd_path)
    # The defaults are those of the other stages, so that a run's name is enough.
    spec = find_row(args)
    data = args.data or str(run_folder(args) / "images")
    fkd_path = args.fkd_path or str(run_folder(args) / "labels")
    num_classes = args.num_classes or spec.num_classes
    if args.dry_run:
        plan = {"dataset": spec.name, "num_classes": num_classes, "classes": args.classes,
                "fkd_seed": args.fkd_seed, "quick": args.quick}
        sizes = None if args.quick else {root: folder_bytes(root) for root in (data, fkd_path)}
        return print_plan(plan, bytes_to_read=sizes)
    if not (is_there(data) or is_there(fkd_path)):
        raise UserError(f"{data}, {fkd_path}: neither images nor labels there yet; "
                        f"run recover.sh first, or give folders with --data and --fkd-path")

    # A fault does not end the report, which goes on as far as it can.
    faults = []
    try:
        for root in (data, fkd_path):
            check_dataset(root, spec.name)
        check_teacher_flags(fkd_path, args, recorded(sidecar(fkd_path, "manifest.json"), "codec"))
        spec = replace(spec, num_classes=num_classes)
        find_teachers = partial(find_recorded_teachers, fkd_path, spec=spec, files=args.label_teacher,
                                archs=args.label_arch)
        findings = verify(data, fkd_path, num_classes, spec.size, args.classes, args.fkd_seed, not args.quick,
                          args.workers, find_teachers)
        for finding in findings:
            print(finding, *(f"note   {text}" for text in finding.notes), sep="\n", flush=True)
            faults += finding.faults
    except (UserError, OSError) as error:  # OSError: removed while it was read
        faults.append(str(error))
    for limit in limits(data, fkd_path):
        print(f"note   {limit}")

    if faults:
        print(f"{len(faults)} fault{'s, the first' * (len(faults) > 1)}: {faults[0]}", file=sys.stderr)
        sys.exit(1)
    unread = " in names, counts, sizes and hash files; contents were not read (--quick)"
    print("no fault found" + unread * args.quick)


def make_parser():
    parser = Parser(__doc__)
    add_run_flags(parser)
    add = parser.add_argument
    add("--data", type=os.path.abspath, metavar="DIR", help="folder of images (default: runs/<name>/images)")
    add("--fkd-path", type=os.path.abspath, metavar="DIR",
        help="their label files (default: runs/<name>/labels)")
    add("--num-classes", type=number(int, 2), help="outputs of the teacher (default: the data set's)")
    add("--classes", type=number_list, metavar="0-9,17",
        help="the classes of the set (default: what recover recorded, else all)")
    add("--fkd-seed", "--fkd_seed", type=number(int, 0), default=42,
        help="order of the images, for labels without a manifest")
    add_teacher_flags(add)
    add("--quick", action="store_true",
        help="names, counts, sizes, manifests and hash files alone; validate does as much before it starts")
    add("-j", "--workers", type=number(int, 0), default=4, help="threads that read, 0 = none")
    return parser


def get_args(argv=None):
    return make_parser().parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
