"""The protocol of a student: its settings, its optimiser, and how it continues."""
import torch

from sre2l.data.image_folder import fingerprint
from sre2l.nets.models import read_own
from sre2l.nets.training import make_sgd, weight_decay_groups


def make_settings(args, spec, stem=None, labels=None, val=None, precision=None):
    """The protocol: what a student's accuracy depends on; stem, labels, val and precision as they turned out, None in a plan. Seeds,
    device, workers and the number of processes are not among it."""
    optimizer = ({"name": "SGD", "lr": args.learning_rate, "momentum": args.momentum, "weight_decay": args.weight_decay} if args.sgd
                 else {"name": "AdamW", "lr": args.adamw_lr, "weight_decay": args.adamw_weight_decay})
    keys = ("dataset", "model", "epochs", "warmup_epochs", "gradient_accumulation_steps", "decay_all", "hard_labels", "eval_every")
    loss = "cross entropy on mixed classes" if args.hard_labels else "KL times T^2" if args.kl_t2 else "KL"
    return {**{key: getattr(args, key) for key in keys}, "optimizer": optimizer, "schedule": "cosine per epoch", "loss": loss,
            "temperature": None if args.hard_labels else args.temperature, "size": spec.size, "num_classes": spec.num_classes,
            "stem": stem or args.stem or spec.stem, "mean": spec.mean, "std": spec.std, "eval_resize": spec.resize, "labels": labels,
            "val": val and fingerprint(val), "precision": precision or args.precision}


def make_optimizer(network, args, device):
    if args.sgd:
        return make_sgd(weight_decay_groups(network, args.weight_decay, args.decay_all), args.learning_rate, args.momentum, args.weight_decay, device)
    groups = weight_decay_groups(network, args.adamw_weight_decay, args.decay_all)
    return torch.optim.AdamW(groups, args.adamw_lr, fused=device.type == "cuda")


def restore(path, identity, network, optimizer, scaler):
    """Continue from a checkpoint if there is one -> (epochs done, batches done of the next, the sum of their losses, history of metrics)."""
    if not path.exists():
        return 0, 0, torch.zeros(()), []
    state = read_own(path, identity)
    network.load_state_dict(state["model"])
    if "optimizer" in state:  # a finished run keeps none
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
    return state["epoch"], state.get("batches", 0), state.get("loss_sum", torch.zeros(())), state["history"]
