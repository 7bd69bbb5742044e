"""The protocol of a student, by which its accuracy is to be judged, and the optimiser that it names."""
import torch

from sre2l.data.image_folder import fingerprint
from sre2l.nets.functions import recorded_name, source_sha256
from sre2l.nets.training import make_sgd, weight_decay_groups


def describe_optimizer(args):
    if args.sgd:
        return {"name": "SGD", "lr": args.learning_rate, "momentum": args.momentum,
                "weight_decay": args.weight_decay}
    return {"name": "AdamW", "lr": args.adamw_lr, "weight_decay": args.adamw_weight_decay}


def describe_loss(args):
    if args.hard_labels:
        return "cross entropy on mixed classes"
    return "KL times T^2" if args.kl_t2 else "KL"


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
        "schedule": "cosine per epoch",
        "loss": describe_loss(args),
        "temperature": None if args.hard_labels else args.temperature,
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
    return torch.optim.AdamW(groups, args.adamw_lr, fused=device.type == "cuda")
