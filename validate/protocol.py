"""The protocol of a student, by which its accuracy is to be judged: its flags, its description, and the
optimiser and schedule that it names."""
import argparse
from fractions import Fraction
from functools import partial

import torch

from sre2l.data.image_folder import fingerprint
from sre2l.nets.functions import recorded_name, source_sha256
from sre2l.nets.training import (
    check_warmup,
    cosine_factor,
    linear_factor,
    lr_factor,
    make_sgd,
    multistep_factor,
    ssrs_factor,
    weight_decay_groups,
)
from sre2l.run.errors import UserError
from sre2l.run.flags import number
from validate.draws import DRAWS, SCHEDULES, check_draws, describe_draws

SLOWED = {"cosine": cosine_factor, "ssrs": ssrs_factor, "linear": linear_factor}  # by --slowdown
MILESTONE_FACTOR = 0.5  # of EDC


def parts(text):
    """'0.8,0.9' or '2/3,5/6' -> [0.8, 0.9], each above 0 and below 1, ascending."""
    try:
        values = [float(Fraction(part)) for part in text.split(",")]
    except (ValueError, ZeroDivisionError):
        values = []
    if not values or values != sorted(values) or not 0 < values[0] <= values[-1] < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: parts of the epochs, ascending, like 0.8,0.9 or 2/3,5/6")
    return values


def add_protocol_flags(add):
    """Add the flags of the loss and the step by a parser's add_argument. Their defaults are the published
    protocol of ImageNet."""
    add("--epochs", type=number(int, 1), default=300, help="not more than the labels have")
    add("--gradient-accumulation-steps", type=number(int, 1), default=2,
        help="micro-batches of a batch; BatchNorm sees one at a time")

    # The loss.
    add("--loss", choices=("kl", "mse"), default="kl",
        help="KL at temperature T, or squared difference of raw logits, mean over images and classes")
    add("-T", "--temperature", type=number(float, above=0), default=20.0, help="of kl")
    add("--kl-t2", action="store_true", help="multiply kl by T^2")
    add("--class-weight", type=number(float, 0), default=0.0, metavar="W",
        help="add W x cross entropy on each image's own class, whatever is mixed into it")

    add("--temperature-schedule", choices=SCHEDULES, default="constant",
        help="T falls to 0.7 of itself every tenth of the epochs, or along a cosine to 2, as LPQLD's")
    add("--label-draw", choices=DRAWS, default="order",
        help="pool: any stored batch at each step, as LPLD; phases: soft, hard, soft, as HALD. Both do with "
             "fewer epochs of labels than of training")
    add("--hard-epochs", type=number(int, 1), metavar="N", help="of phases, in the middle (default: half)")

    # The optimiser.
    add("--sgd", action="store_true", help="SGD instead of AdamW")
    add("-lr", "--learning-rate", type=number(float, above=0), default=0.2, help="of SGD")
    add("--momentum", type=number(float, 0, 1), default=0.9, help="of SGD")
    add("--weight-decay", type=number(float, 0), default=1e-4, help="of SGD")
    add("--adamw-lr", type=number(float, above=0), default=1e-3)
    add("--adamw-weight-decay", type=number(float, 0), default=0.01)
    add("--decay-all", action="store_true",
        help="weight decay on all parameters, not on weight matrices alone")

    # The schedule.
    add("--lr-schedule", choices=(*SLOWED, "multistep"), default="cosine",
        help="ssrs: cosine, and after five sixths of the epochs a line to 0; multistep: by --milestones")
    add("--slowdown", type=number(float, 1), default=1.0, metavar="Z",
        help="run the first 1/Z of the schedule: 2 ends a cosine at half the rate (eta or zeta in papers)")
    add("--milestones", type=parts, metavar="P,P",
        help="parts of the epochs after which multistep lowers the rate, like 0.8,0.9,0.95 or 2/3,5/6")
    add("--milestone-factor", type=number(float, above=0, high=1), default=MILESTONE_FACTOR,
        help="what the rate is multiplied by at a milestone")
    add("--warmup-epochs", type=number(int, 0), default=0,
        help="epochs of linear warm-up from 0.01 of the rate, before the schedule")
    add("--ema", type=number(float, 0, 0.9999), default=0.0, metavar="D",
        help="measure the average of the weights, D x average + (1 - D) x weights after each step; 0 = off")


def check_protocol(args):
    """Raise UserError where flags of the protocol contradict each other."""
    check_warmup(args)
    check_draws(args)
    if args.lr_schedule != "multistep":
        if args.milestone_factor != MILESTONE_FACTOR and not args.protocol:
            raise UserError(f"--milestone-factor would do nothing with --lr-schedule {args.lr_schedule}; "
                            f"leave it away, or type --lr-schedule multistep --milestones 0.8,0.9,0.95")
        if args.milestones and not args.protocol:  # those of a protocol may be left over
            raise UserError(f"--milestones would do nothing with --lr-schedule {args.lr_schedule}; leave "
                            f"them away, or type --lr-schedule multistep")
    elif not args.milestones:
        raise UserError("--lr-schedule multistep: say after which parts of the epochs the rate falls, like "
                        "--milestones 0.8,0.9,0.95")
    elif args.slowdown != 1:
        raise UserError(f"--lr-schedule multistep falls at its --milestones, and --slowdown "
                        f"{args.slowdown:g} would do nothing; type --slowdown 1")


def describe_optimizer(args):
    if args.sgd:
        return {"name": "SGD", "lr": args.learning_rate, "momentum": args.momentum,
                "weight_decay": args.weight_decay}
    return {"name": "AdamW", "lr": args.adamw_lr, "weight_decay": args.adamw_weight_decay}


def describe_loss(args):
    if args.hard_labels:
        return "cross entropy on mixed classes"
    loss = "KL times T^2" if args.kl_t2 else "KL"
    if args.loss == "mse":
        loss = "MSE of raw logits"
    return loss + (f" + {args.class_weight:g} x cross entropy on the own class" if args.class_weight else "")


def describe_temperature(args):
    """T, None where the loss has none."""
    return None if args.hard_labels or args.loss == "mse" else args.temperature


def describe_schedule(args):
    if args.lr_schedule == "multistep":
        milestones = ", ".join(map(str, args.milestones))
        return f"multistep per epoch, times {args.milestone_factor:g} after {milestones} of the epochs"
    slowed = "" if args.slowdown == 1 else f", slowed by {args.slowdown:g}"
    return f"{args.lr_schedule} per epoch{slowed}"


def make_settings(args, spec, stem=None, labels=None, val=None, precision=None):
    """The protocol: what a student's accuracy depends on. Seeds, device, workers and the number of processes
    are not in it.

    stem, labels, val, precision: as they turned out; None in a plan.

    NOTE: a checkpoint knows its run by a hash of these. Leave a new setting out where it has its default."""
    flags = ("dataset", "model", "epochs", "warmup_epochs", "gradient_accumulation_steps", "decay_all",
             "hard_labels", "eval_every")
    digest = source_sha256(args.model)
    return {
        **{key: getattr(args, key) for key in flags},
        "model": recorded_name(args.model),
        **({"model_sha256": digest} if digest else {}),
        "optimizer": describe_optimizer(args),
        "schedule": describe_schedule(args),
        "loss": describe_loss(args),
        "temperature": describe_temperature(args),
        **describe_draws(args),
        **({"ema": args.ema} if args.ema else {}),
        "size": spec.size,
        "num_classes": spec.num_classes,
        "stem": stem or args.stem or spec.stem,
        "mean": spec.mean,
        "std": spec.std,
        "eval_resize": spec.eval_resize,
        "labels": labels,
        "val": val and fingerprint(val),
        "precision": precision or args.precision,
    }


def make_optimizer(network, args, device):
    """SGD or AdamW over the network's groups, with weight decay on those that the protocol decays."""
    if args.sgd:
        groups = weight_decay_groups(network, args.weight_decay, args.decay_all)
        return make_sgd(groups, args.learning_rate, args.momentum, args.weight_decay, device)
    groups = weight_decay_groups(network, args.adamw_weight_decay, args.decay_all)
    return torch.optim.AdamW(groups, args.adamw_lr, fused=True)


def make_schedule(args):
    """-> how the rate falls, a function of the epochs since the warm-up and of their number."""
    if args.lr_schedule == "multistep":
        return partial(multistep_factor, milestones=args.milestones, factor=args.milestone_factor)
    return partial(SLOWED[args.lr_schedule], slowdown=args.slowdown)


def learning_rate(args, epoch):
    """The rate in an epoch: the warm-up, then as the schedule falls."""
    base = args.learning_rate if args.sgd else args.adamw_lr
    return base * lr_factor(epoch, args.epochs, args.warmup_epochs, make_schedule(args))
