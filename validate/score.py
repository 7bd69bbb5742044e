"""LRS and ARS of DD-Ranking: what distilled images are worth apart from the labels and the augmentation.

Run: python -m validate.score --dataset digits      (or sh score.sh digits, after relabel.sh and train.sh)
Time: what is missing is trained: up to five more students a seed, as long as the run's own, and two relabels.
Result: a table, and runs/<name>/score.json. What it trains lies in random_real/ and score/ of the run.
"""
import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from relabel import relabel
from sre2l.check.manifest import manifest_of
from sre2l.data.codecs import NONE
from sre2l.data.flags import add_run_flags
from sre2l.nets.functions import recorded_name
from sre2l.run.device import pick_device
from sre2l.run.errors import UserError
from sre2l.run.files import read_json, sidecar, write_json
from sre2l.run.flags import Parser, number, number_list
from sre2l.run.output import print_plan, recorded
from sre2l.run.paths import run_folder, student_name
from sre2l.run.processes import barrier, rank, start
from sre2l.run.start import run_script
from validate import random_real, train
from validate.protocol import describe_optimizer
from validate.random_real import add_repeat_flags, saved_args
from validate.results import is_of_earlier_images, mean_and_spread, teacher_top1

WEIGHT = 0.5  # of IOR against HLR, and of augmented against plain training
# Whole images: no crop, no flip, no mix, nothing else.
PLAIN = {"crop": "none", "no_flip": True, "mix_type": "none", "augment": "none", "patch_shuffle": 1}
OWN = ("labels", "loss", "temperature", "hard_labels")  # what of the protocol the arms differ in
SHARED = ("codec", "logits", "batch_size", "mix", "crop", "batch_statistics")  # of both kinds' labels


@dataclass(frozen=True)
class Arm:
    """A student that goes into the scores, with the images and labels that it learns from."""
    text: str
    folder: Path  # its results
    images: Path
    labels: Path
    is_hard: bool = False


def find_arms(run, model, own):
    """-> {name: Arm}: distilled (syn) and random real images (rnd) by the run's own labels and augmentation
    (any) and by labels of the whole images (plain); and distilled ones by their classes.

    own: the arguments of the run's own student."""
    student = student_name(model)
    images, labels = Path(own.train_dir), Path(own.fkd_path)
    random = run / "random_real"
    score = run / "score"
    plain, random_plain = score / "labels", score / "random_labels"
    return {
        "syn_any": Arm("distilled images, the run's labels", run / student, images, labels),
        "rnd_any": Arm("random real images, the same", random / student, random / "images",
                       random / "labels"),
        "syn_plain": Arm("distilled images, labels of whole images", score / student, images, plain),
        "rnd_plain": Arm("random real images, the same", score / f"{student}_random", random / "images",
                         random_plain),
        "syn_hard": Arm("distilled images, hard labels, whole images", score / f"{student}_hard", images,
                        plain, is_hard=True)}


def read_results(arm):
    """results.json of an arm; None where it is not there yet."""
    path = arm.folder / "results.json"
    return read_json(path) if path.exists() else None


def missing_seeds(arm, seeds):
    """Those of the seeds that the arm has no accuracy of."""
    there = (read_results(arm) or {"seeds": {}})["seeds"]
    return [seed for seed in seeds if str(seed) not in there]


# -- what is missing is made by the stages themselves

def changed(args, **changes):
    """The same arguments of a stage, but for some changes."""
    return argparse.Namespace(**{**vars(args), **changes})


def make_missing(args, arms, missing, own):
    """Train the students that `missing` {name: seeds} tells of, after their images and labels are there.

    Of several processes all come here, with the same `missing`; none goes on before all have ended a step."""
    to_relabel = saved_args(relabel, sidecar(own.fkd_path, "args.json"), args.arch, dry_run=False)
    moved = {"val_dir": args.real_data} if args.real_data else {}
    if to_relabel.val_dir:
        to_relabel = changed(to_relabel, **moved)
    if missing["syn_any"]:
        train_arm(arms["syn_any"], own, args.seeds, moved)
    if missing["rnd_any"] or not arms["rnd_any"].images.exists():
        same = {key: getattr(args, key) for key in ("dataset", "name", "model", "arch", "real_data", "seeds")}
        random_real.main(changed(random_real.get_args([]), **same))
        barrier()

    plain = [arms[name] for name in ("syn_plain", "rnd_plain", "syn_hard") if missing[name]]
    for labels, images in {arm.labels: arm.images for arm in plain}.items():
        relabel.main(changed(to_relabel, **PLAIN, overwrite=args.overwrite, data=str(images),
                             fkd_path=str(labels)))
        barrier()
    for arm in plain:
        train_arm(arm, own, args.seeds, {**moved, "overwrite": args.overwrite, "mix_type": None})


def train_arm(arm, own, seeds, changes):
    train.main(changed(own, **changes, train_dir=str(arm.images), fkd_path=str(arm.labels),
                       output_dir=str(arm.folder), hard_labels=arm.is_hard, seeds=seeds))
    barrier()


# -- the scores

def rescaled(difference):
    """A difference of accuracies from -1 to 1 -> from 0 to 1: (e^x - e^-1) / (e - e^-1)."""
    return (math.exp(difference) - math.exp(-1)) / (math.e - math.exp(-1))


def scores_of(accuracies):
    """LRS and ARS of one seed. accuracies: {name of an arm, or real_hard: fraction}.

    HLR, what is lost without soft labels, counts against IOR, what is won over random real images."""
    a = accuracies
    hlr = a["real_hard"] - a["syn_hard"]
    ior = a["syn_any"] - a["rnd_any"]
    plain = a["syn_plain"] - a["rnd_plain"]
    return {"LRS": rescaled(WEIGHT * ior - (1 - WEIGHT) * hlr),
            "ARS": rescaled(WEIGHT * ior + (1 - WEIGHT) * plain)}


def with_spread(values):
    """{seed: value} -> {mean, std over the seeds, seeds}."""
    return {**mean_and_spread(values.values(), 6), "seeds": values}


def read_arms(arms):
    """-> {name: results.json}. Raises UserError unless all have one protocol and are of today's images."""
    found = {name: read_results(arm) for name, arm in arms.items()}
    reference = found["syn_any"]["protocol"]
    for name, results in found.items():
        folder = arms[name].folder
        differing = [key for key in sorted({*reference, *results["protocol"]} - {*OWN})
                     if reference.get(key) != results["protocol"].get(key)]
        if name == "rnd_any":  # which may have been made when the run had other labels
            differing += [f"{key} of the labels" for key in SHARED
                          if reference["labels"].get(key) != results["protocol"]["labels"].get(key)]
        if differing:
            raise UserError(f"{folder}: was trained by another protocol than {arms['syn_any'].folder} "
                            f"({', '.join(differing)}), and the two do not compare; make it again, with "
                            f"--overwrite")
        if is_of_earlier_images(results["protocol"], arms[name].labels):
            raise UserError(f"{folder}: was trained on other images than the labels in {arms[name].labels} "
                            f"belong to now; make it again, with --overwrite")
    return found


def collect(found, real_hard, seeds):
    """What score.json says: every accuracy that goes in, and both scores. real_hard: (percent, its origin).

    The scores count the last epoch. Those of the best epochs, which are chosen on the test images as in the
    published package, stand apart."""
    value, origin = real_hard

    def accuracies(key):
        return {name: {seed: round(results["seeds"][str(seed)][key] / 100, 6) for seed in seeds}
                for name, results in found.items()}

    def scores(key):
        arms = accuracies(key)
        rows = {seed: scores_of({"real_hard": value / 100, **{name: arm[seed] for name, arm in arms.items()}})
                for seed in seeds}
        return {kind: with_spread({seed: round(row[kind], 6) for seed, row in rows.items()})
                for kind in ("LRS", "ARS")}

    return {**scores("top1"), "best_epoch": scores("best_top1"),
            "accuracies": {name: with_spread(arm) for name, arm in accuracies("top1").items()},
            "real_hard": {"top1": round(value / 100, 6), "from": origin}, "weight": WEIGHT, "seeds": seeds,
            "protocol": {key: part for key, part in found["syn_any"]["protocol"].items() if key not in OWN}}


def find_real_hard(args, labels):
    """-> (top-1 in percent of a network that was trained on all real images, where that is from).

    labels: the folder of the run's labels, whose manifest knows their teacher."""
    if args.real_hard is not None:
        return args.real_hard, "--real-hard"
    manifest = recorded(sidecar(labels, "manifest.json")) or {}
    top1, origin = teacher_top1(manifest)
    if top1 is None:
        raise UserError(f"{labels}: nothing tells the top-1 of the labels' teacher, with which hard labels "
                        f"are compared; give it in percent with --real-hard")
    archs = [teacher["arch"] for teacher in manifest.get("teachers") or [manifest["teacher"]]]
    if archs != [recorded_name(args.model)]:
        raise UserError(f"{labels}: were made by {', '.join(archs)}, and hard labels are compared with the "
                        f"student's network, {args.model}, trained on all real images; give the top-1 of "
                        f"that in percent with --real-hard")
    return top1, f"the teacher {archs[0]}, {origin}"


def describe(values):
    """'0.269 +- 0.004'; without a spread for one seed."""
    spread = "" if values["std"] is None else f" +- {values['std']:.3f}"
    return f"{values['mean']:.3f}{spread}"


def table(name, arms, values):
    """Every accuracy that goes in, and both scores, as lines for a terminal."""
    seeds = len(values["seeds"])
    lines = [f"{name}: accuracies of the last epoch as fractions, mean of {seeds} seed{'s' * (seeds > 1)}, "
             f"rate {values['protocol']['optimizer']['lr']:g}", ""]
    lines += [f"  {key:<10}{arm.text:<46}{describe(values['accuracies'][key])}" for key, arm in arms.items()]
    real = values["real_hard"]
    best = values["best_epoch"]
    lines.append(f"  {'real_hard':<10}{'all real images, hard labels':<46}{real['top1']:.3f}  {real['from']}")
    return "\n".join([
        *lines, "",
        f"  LRS {describe(values['LRS'])}   ARS {describe(values['ARS'])}   from 0 to 1, no difference: .269",
        f"  by the best epochs, chosen on the test images: LRS {best['LRS']['mean']:.3f}   "
        f"ARS {best['ARS']['mean']:.3f}"])


def main(args):
    # Plan: which students are there, and which have to be trained.
    run = run_folder(args)
    own = saved_args(train, run / student_name(args.model) / "args.json", args.model, dry_run=False,
                     overwrite=False)
    if (manifest_of(own.fkd_path) or {}).get("codec") == NONE:  # the teacher runs beside the student
        own.label_arch = args.arch
    arms = find_arms(run, args.model, own)
    real_hard = find_real_hard(args, own.fkd_path)
    if not args.dry_run:
        start(pick_device(own.device))
        barrier()  # all processes look before one of them trains
    missing = {name: missing_seeds(arm, args.seeds) for name, arm in arms.items()}
    if args.overwrite:
        missing.update({name: args.seeds for name, arm in arms.items() if arm.folder.parent == run / "score"})
    if args.dry_run:
        makes = {str(arms[name].folder): seeds for name, seeds in missing.items() if seeds}
        settings = {"dataset": args.dataset, "model": args.model, "seeds": args.seeds,
                    "optimizer": describe_optimizer(own), "real_hard": real_hard}
        return print_plan(settings, trains=makes, epochs=own.epochs * sum(map(len, makes.values())),
                          output=str(run / "score.json"))
    barrier()

    # Make what is missing, then score.
    if any(missing.values()):
        make_missing(args, arms, missing, own)
    values = collect(read_arms(arms), real_hard, args.seeds)
    if rank() == 0:
        write_json(run / "score.json", values)
        print(f"\n{table(args.name or args.dataset, arms, values)}\n\nwritten to {run / 'score.json'}")


def get_args(argv=None):
    parser = Parser(__doc__)
    add_run_flags(parser)
    add = parser.add_argument
    add_repeat_flags(add)
    add("--seeds", type=number_list, default=[0, 1, 2], metavar="0-4",
        help="students of each kind; missing ones are trained (default: 0-2)")
    add("--real-hard", type=number(float, 0, 100), metavar="PERCENT",
        help="top-1 of the same network trained on all real images (default: that of the labels' "
             "teacher, where it is that network)")
    add("--overwrite", action="store_true",
        help="delete what an earlier run left in score/, and train it anew")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
