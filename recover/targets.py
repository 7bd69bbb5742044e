"""What the statistics of a batch are to match: --bn-target running, class:W or group."""
import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from sre2l.kernels.norms import statistics_layers
from sre2l.nets import statistics
from sre2l.nets.statistics import Statistics
from sre2l.run.errors import UserError
from sre2l.run.files import hash_file, sidecar
from sre2l.run.flags import number


@dataclass(frozen=True)
class BnTarget:
    """A target other than the running statistics, for which an engine has None.

    class:W (EDC): R_l = (1 - W) (|mean - running_mean|_2 + |var - running_var|_2)
                         + W (|mean - M|_2 + |var - V|_2)
    with M, V: the means over the batch's images of what is recorded for their classes.
    group (PSM): of the group of real images with the batch's ipc index; they normalise and are matched.

    found: of each BatchNorm layer (K, C_l), K classes or groups."""
    weight: float     # W
    normalises: bool  # in place of the running statistics, and then they alone are matched
    found: Statistics

    def of(self, group, layer, like):
        """What each batch of a BatchGroup is to match at a layer, given by its index -> [mean, var], (G, C_l)
        each. like: a tensor of the type and on the device that they are to have."""
        rows = [[batch.pairs[0][0]] if self.normalises else [label for _, label in batch.pairs]
                for batch in group.batches]
        return [torch.stack([values[layer][own].double().mean(0).to(like) for own in rows])
                for values in (self.found.mean, self.found.var)]


def bn_target(text):
    """An argparse type: 'running', 'group', or 'class:W' with W from 0 to 1."""
    kind, colon, weight = text.partition(":")
    if kind == "class" and colon:
        return f"class:{number(float, 0, 1)(weight):g}"
    if text not in ("running", "group"):
        raise argparse.ArgumentTypeError(f"{text!r}: running, class:W with W from 0 to 1, or group")
    return text


def check_groups(batches, num_groups):
    """Raise UserError for ImageBatches without one group of real images each."""
    for batch in batches:
        indices = {ipc for ipc, _ in batch.pairs}
        if len(indices) > 1:
            raise UserError("--bn-target group: a batch would hold images of several ipc indices, each "
                            "a group of its own; choose --batch-order ipc and a --batch-size of at most the "
                            "number of classes")
        if max(indices) >= num_groups:
            raise UserError(f"--bn-target group: there are statistics of {num_groups} groups, and image "
                            f"{max(indices)} of a class would need one more; lower --ipc-end, or pick more")


def load_targets(kind, init, teachers, batches):
    """The targets of --bn-target -> (a BnTarget or None for each teacher, the hashes of their files).

    kind: as bn_target gives it; init: 'noise', or the folder of picked images beside which the groups' file
    lies. Raises UserError where a file is missing, or is not of this teacher or these batches."""
    if kind == "running":
        return [None] * len(teachers), []
    by_group = kind == "group"
    targets = []
    hashes = []
    for teacher in teachers:
        if not statistics_layers(teacher.network):  # of several; it gives the cross-entropy alone
            targets.append(None)
            continue
        if by_group:
            path = sidecar(init, "groups.pth")
        elif Path(teacher.source).exists():
            path = statistics.class_statistics_path(teacher.source)
        else:
            raise UserError(f"--bn-target {kind}: {teacher.source} has no file beside which class "
                            f"statistics could lie; give a teacher that squeeze has trained with "
                            f"--class-statistics")
        found = statistics.load(path, teacher, "group" if by_group else "class")
        if by_group:
            check_groups(batches, len(found.mean[0]))
        weight = 1.0 if by_group else float(kind.partition(":")[2])
        targets.append(BnTarget(weight, by_group, found))
        hashes.append(hash_file(path))
    return targets, hashes
