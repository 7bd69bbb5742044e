"""A student under training, and the checkpoint from which its training continues."""
import contextlib
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
    """facts: what its checkpoint says besides the weights; history: {epoch, loss, ...} of each epoch done;
    average: --ema's average of each parameter, empty without."""
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    facts: dict
    history: list = field(default_factory=list)
    average: list = field(default_factory=list)

    @torch.no_grad()
    def update_average(self, decay):
        """After each step: average <- decay x average + (1 - decay) x parameter."""
        for average, parameter in zip(self.average, self.network.parameters()):
            average.lerp_(parameter, 1 - decay)

    @contextlib.contextmanager
    def averaged(self):
        """Within this, the network has the averaged parameters, where there are some. Its BatchNorm
        statistics are the trained network's, as in EDC."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    def exchange(self):
        for i, parameter in enumerate(self.network.parameters() if self.average else ()):
            parameter.data, self.average[i] = self.average[i], parameter.data


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
    if args.ema:
        # A checkpoint's model is the averaged one, which was measured. Training goes on from another.
        student.average = [parameter.detach().clone() for parameter in network.parameters()]
        for parameter, trained in zip(network.parameters(), checkpoint.get("trained", ())):
            parameter.data.copy_(trained)
    return student


def save_student(student, path, is_last):
    """Let process 0 write what training continues from. A finished student needs no optimiser.

    model: the network that is measured, with --ema the averaged one; trained: the other one's parameters."""
    if rank() > 0:
        return
    checkpoint = {**student.facts, **student.history[-1], "history": student.history}
    with student.averaged():
        checkpoint["model"] = student.network.state_dict()
    if not is_last:
        if student.average:
            checkpoint["trained"] = [parameter.detach() for parameter in student.network.parameters()]
        checkpoint["optimizer"] = student.optimizer.state_dict()
        checkpoint["scaler"] = student.scaler.state_dict()
    save_torch(path, checkpoint)
