"""A student under training, and the checkpoint from which its training continues."""
from dataclasses import dataclass, field

import torch
from torch import nn

from sre2l.nets.checkpoints import TEACHER_FORMAT, check_same_weights, continue_from
from sre2l.nets.functions import describe_arch
from sre2l.nets.models import build_for
from sre2l.nets.precision import memory_format_of
from sre2l.nets.training import make_scaler
from sre2l.run.files import save_torch
from sre2l.run.processes import rank
from validate.protocol import make_optimizer


@dataclass
class Student:
    """facts: what its checkpoint says besides the weights. history: {epoch, loss, ...} of each epoch done."""
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    facts: dict
    history: list = field(default_factory=list)


def load_student(args, spec, path, seed, identity, device, precision):
    """A student with fresh weights, which depend on the seed alone, or as the checkpoint at `path` left it.

    identity: the hash of its settings and seed, by which it knows its checkpoint."""
    torch.manual_seed(seed)
    network, stem = build_for(spec, args.model, args.stem)
    check_same_weights(network, args.model)
    network.to(device, memory_format=memory_format_of(device))
    facts = {"format": TEACHER_FORMAT, **describe_arch(args.model), "stem": stem,
             "num_classes": spec.num_classes, "mean": spec.mean, "std": spec.std, "size": spec.size,
             "dataset": spec.name, "seed": seed, "identity": identity}
    student = Student(network, make_optimizer(network, args, device), make_scaler(precision, device), facts)
    checkpoint = continue_from(path, identity, network, student.optimizer, student.scaler)
    student.history = checkpoint.get("history", [])
    return student


def save_student(student, path, is_last):
    """Let process 0 write what training continues from. A finished student needs no optimiser."""
    if rank() > 0:
        return
    checkpoint = {**student.facts, **student.history[-1], "history": student.history}
    checkpoint["model"] = student.network.state_dict()
    if not is_last:
        checkpoint["optimizer"] = student.optimizer.state_dict()
        checkpoint["scaler"] = student.scaler.state_dict()
    save_torch(path, checkpoint)
