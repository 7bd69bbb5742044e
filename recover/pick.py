"""Pick: real images, by chance or by how easy a teacher finds them, as a folder of images like recover's.

Run: python -m recover.pick --dataset digits --ipc-end 10      (or sh pick.sh digits)
Time: one forward pass of the teacher over the real images, times the crops; --score random needs seconds.
Result: runs/<name>/picked/new000/class000_id000.png ... and, beside the folder, its manifest, chosen.json
(source file, box and score of each image) and scores.jsonl (those of all images that were scored).
"""
import contextlib
import json
import time
from pathlib import Path

import numpy as np
import torch

from recover import pictures
from recover.batches import image_names, index_ranges
from recover.picks import (
    GROWING,
    PICKS,
    SPREADS,
    central_box,
    check_enough,
    cut,
    group_rows,
    mosaic,
    pick_random,
    pick_scored,
)
from recover.scores import SCORES, append_scores, finish_scores, plan_chunks, read_scores, score_classes
from sre2l.data.flags import add_stage_flags, chosen_classes, data_spec
from sre2l.data.image_folder import encode, fingerprint
from sre2l.data.real_images import read_real, shown_at
from sre2l.kernels.norms import statistics_layers
from sre2l.nets import statistics
from sre2l.nets.models import build_for
from sre2l.nets.precision import memory_format_of, start_device
from sre2l.nets.teacher import check_teachers, described_or_planned, find_teachers
from sre2l.run import processes, signals
from sre2l.run.ahead import in_order
from sre2l.run.errors import UserError
from sre2l.run.files import write_bytes
from sre2l.run.flags import Parser, number
from sre2l.run.log import eta
from sre2l.run.output import OutputFolder
from sre2l.run.paths import run_folder
from sre2l.run.start import run_script

NUM_WRITERS = 4  # threads: each file waits for the disk
FREE = ("source",)  # the folder of real images may have moved


# -- what is written

def describe_cell(images, label, cell):
    """A Cell for chosen.json: the image's folder and file, or its number in its class, box and score."""
    source = images.items[cell.row]
    if isinstance(source, str):
        source = "/".join(Path(source).parts[-2:])
    else:
        source = int(np.count_nonzero(images.labels[:cell.row] == label))
    box = cell.box or central_box(*images.shapes([cell.row])[0].tolist())
    return {"source": source, "box": box, "score": cell.score}


def write_chosen(folder, images, chosen, names):
    """Write chosen.json, a line for each picked image: what it was made from."""
    lines = [f"{json.dumps(name)}: {json.dumps([describe_cell(images, pair[1], c) for c in chosen[pair]])}"
             for pair, name in names.items()]
    write_bytes(folder.path("chosen.json"), ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def write_images(folder, images, chosen, names, size, grid=1):
    """Write the picked images that are not there as they were recorded.

    chosen: {(ipc, class): Cells}; names: {(ipc, class): path in the folder}; size: S, pixels."""
    pairs = {name: pair for pair, name in names.items()}

    def write(name):
        parts = [cut(images.pixels(cell.row), cell.box and [cell.box], size // grid)
                 for cell in chosen[pairs[name]]]
        folder.write({name: encode(mosaic(np.concatenate(parts), size), Path(name).suffix)})

    for _ in in_order(write, folder.missing(list(pairs), NUM_WRITERS), NUM_WRITERS):
        pass


def write_groups(folder, images, scored, args, teacher, spec, device):
    """Write what the teacher's running statistics become on each group of a ranking, unless it is there."""
    ipc = args.ipc_end
    path = folder.path("groups.pth")
    with contextlib.suppress(UserError):
        if len(statistics.load(path, teacher, "group").mean[0]) == ipc:
            return
    shown = shown_at(images, spec.size, spec.size)
    found = statistics.group_statistics(teacher.network, shown, group_rows(scored, ipc), spec.mean, spec.std,
                                        device, seed=args.seed)
    statistics.save(path, found, teacher.sha256, "group")


# -- the run

def check_args(args, spec):
    """What one flag alone does not tell -> the list of classes."""
    classes = chosen_classes(args, spec)
    wanted = args.ipc_end * args.grid ** 2
    if args.most is not None and args.most < wanted and args.score != "random":
        raise UserError(f"--most {args.most}: {wanted} images of a class are picked; score as many or more")
    if args.group_statistics and (args.score == "random" or args.pick not in SPREADS):
        raise UserError(f"--group-statistics: image g of a class belongs to group g with --pick "
                        f"{', '.join(SPREADS)} alone, and with a --score other than random")
    return classes


def check_statistics(args, networks):
    """Raise UserError for networks whose running statistics the flags want to use and cannot.

    networks: (name, network) of each teacher, also of one that is still to be trained."""
    if args.group_statistics and len(networks) > 1:
        raise UserError("--group-statistics: the statistics are one teacher's; pick with one, or without it")
    if not args.group_statistics and args.score != "gps":
        return
    flag, other = (("--group-statistics", "leave it away") if args.group_statistics else
                   ("--score gps", "choose --score confidence"))
    for name, network in networks:
        if not statistics_layers(network):
            raise UserError(f"{flag}: {name} has no BatchNorm layer with running statistics; pick without "
                            f"this teacher, or {other}")


def networks_of(teachers):
    return [(f"{teacher.arch} ({teacher.source})", teacher.network) for teacher in teachers]


def settings_of(args, spec, classes, teachers, images=None):
    """What a picked image depends on. The number of images of a class is among it where another one
    would change those that are there.

    --score random takes whole images, so that --pick, --crops and --most say nothing there."""
    is_random = args.score == "random"
    cut_by_ipc = args.grid > 1 or (not is_random and args.pick not in GROWING)
    described = described_or_planned(args, teachers)
    scoring = {} if is_random else {"pick": args.pick, "crops": args.crops, "most": args.most,
                                    "teacher": described[0], "further_teachers": described[1:] or None}
    found = {"real": fingerprint(images), "source": images.root} if images else {}
    return {"dataset": args.dataset, "score": args.score, **scoring, "grid": args.grid, "seed": args.seed,
            "ipc": args.ipc_end if cut_by_ipc else None, "size": spec.size, "classes": classes,
            "lossless": not args.jpeg, **found}


def dry_run(args, spec, classes, folder):
    """--dry-run: print the settings, how many images and how many bytes."""
    teachers = []
    if args.score != "random":
        teachers, spec = find_teachers(args, spec)
        archs = () if teachers or not args.arch else args.arch.split(",")
        planned = [(arch, build_for(spec, arch, None)[0]) for arch in archs]
        check_statistics(args, networks_of(teachers) or planned)
    num_images = args.ipc_end * len(classes)
    image_bytes = spec.size ** 2 // 3 + 620 if args.jpeg else 2 * spec.size ** 2 + 100
    folder.dry_run(settings_of(args, spec, classes, teachers), images=num_images,
                   bytes=num_images * image_bytes, group_statistics=args.group_statistics)


def score_own(args, folder, log, images, classes, teachers, spec, device):
    """Score the classes of this process -> {class: Cells of all its images, in drawn order}.

    A class that an earlier run has scored is read. A signal ends the run after the batch under way."""
    scored = read_scores(folder, images, classes, args)
    todo = [label for label in classes if label not in scored]
    done = 0
    started = logged = time.monotonic()
    stream = score_classes(images, plan_chunks(images, todo, args), args, teachers, spec, device)
    with contextlib.closing(stream), signals.finishing_steps():
        for label, cells in stream:
            append_scores(folder, label, cells)
            scored[label] = cells
            done += 1
            mean = sum(cell.score for cell in cells) / len(cells)
            log.metrics(**{"class": label, "images": len(cells), "score": mean})
            if time.monotonic() - logged > args.print_sec or done == len(todo):
                logged = time.monotonic()
                log.line(f"class {label}: {len(cells)} images scored, {mean:.4f} in the mean; {done} of "
                         f"{len(todo)} classes, {eta(done, len(todo), started)}")
        if done < len(todo):
            log.line(f"stopped after {done} of {len(todo)} classes")
            signals.leave()
    return scored


def choose(args, images, classes, scored):
    """The Cells of each picked image of these classes -> {(ipc, class): [Cell, ...]}."""
    cells = args.grid ** 2
    if args.score == "random":
        return pick_random(images, classes, args.ipc_end, args.seed, cells)
    return pick_scored({label: scored[label] for label in classes}, args.pick, args.ipc_end, cells)


def main(args):
    # Plan: which classes, how many images of each, and where they go.
    spec = data_spec(args)
    classes = check_args(args, spec)
    folder = OutputFolder(run_folder(args) / args.exp_name, "images", args.overwrite, free=FREE)
    if args.dry_run:
        return dry_run(args, spec, classes, folder)

    # Prepare: what a flag can get wrong is refused here, before anything is written or deleted.
    device, _ = start_device(args.device, "fp32", args.deterministic, training=False)
    torch.backends.cudnn.benchmark = False  # batches are of many sizes, and a class has the same scores again
    teachers = []
    if args.score != "random":
        teachers, spec = find_teachers(args, spec)
    check_statistics(args, networks_of(teachers))
    for teacher in teachers:
        teacher.network.to(device, memory_format=memory_format_of(device))
    check_teachers(teachers, spec, args, device)
    names_of_classes = teachers[0].class_names if teachers else spec.class_names
    images = read_real(spec, args.val_dir, "train", classes, names_of_classes, order=args.class_order)
    check_enough(images, classes, args.ipc_end, args.grid ** 2)

    # Begin: each process has every world-th class.
    own_classes = classes[processes.rank()::processes.world_size()]
    pairs = [(ipc, label) for ipc in range(args.ipc_end) for label in classes]
    names = image_names(pairs, spec.num_classes, not args.jpeg)
    own = {pair: name for pair, name in names.items() if pair[1] in own_classes}
    folder.begin(settings_of(args, spec, classes, teachers, images), index_ranges(own, spec.num_classes))
    log = folder.open_log(args, device)
    log.line(f"{len(pairs)} images of {len(classes)} classes, {args.score}, from {len(images)} of "
             f"{images.root} -> {folder.root}")

    # Score the own classes, pick of each, and write what is missing. Without a teacher nothing is scored.
    scored = score_own(args, folder, log, images, own_classes, teachers, spec, device) if teachers else {}
    chosen = choose(args, images, own_classes, scored)
    write_images(folder, images, chosen, own, spec.size, args.grid)
    log.metrics(images=len(own))

    # Finish: of several processes the last one finds the set complete. It alone computes groups.
    if folder.finish(list(names.values())):
        if teachers:
            scored = finish_scores(folder, images, classes, args)
        write_chosen(folder, images, choose(args, images, classes, scored), names)
        if args.group_statistics:
            write_groups(folder, images, scored, args, teachers[0], spec, device)
        pictures.contact_sheet(folder.root, folder.path("png"))
        log.line(f"done: {len(pairs)} images in {folder.root}, contact sheet {folder.path('png')}",
                 from_any=True)


def make_parser():
    parser = Parser(__doc__)
    add_stage_flags(parser, "pick", teacher=True)
    add = parser.add_argument
    # How images are ranked, and which ranks are taken.
    add("--score", choices=("random", *SCORES), default="confidence",
        help="random: whole images by chance, without a teacher; confidence: its cross-entropy; gps: how far "
             "an image's moments are from its running statistics")
    add("--pick", choices=tuple(PICKS), default="medium",
        help="medium: from the middle of the ranking alternately to both ends; spread: the middle, the front "
             "or the back of each of as many equal groups as images")
    add("--crops", type=number(int, 0), default=5,
        help="square crops of each image, of which the easiest counts; 0 = the whole image")
    add("--grid", type=number(int, 1, 8), default=1, help="images side by side in a picked one, each way")
    add("--most", type=number(int, 1), metavar="N",
        help="images of a class that are scored, drawn by chance (default: all)")
    add("--group-statistics", action="store_true",
        help="with --pick spread: write the teacher's statistics of each group, for recover's group targets")
    add("--seed", type=number(int, 0), default=0, help="of what is drawn: images and crops")

    # Which images, and where they go.
    add("--ipc-end", "--ipc", type=number(int, 1, 1000), default=50, help="images per class")
    add("--exp-name", default="picked",
        help="name of the image folder in runs/<name>; images: these are the set, without recover")
    add("--jpeg", action="store_true",
        help="write JPEG at quality 75, as recover does; PNG keeps the pixels of small images")

    # The run.
    add("--print-sec", type=number(float, 0), default=30.0, help="seconds between log lines")
    add("-j", "--workers", type=number(int, 0), default=4, help="threads that decode and crop, 0 = none")
    return parser


def get_args(argv=None):
    return make_parser().parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
