"""The form in which the teacher labels: its precision, and how it is rewritten to be fast.

A form is taken only where its logits on the first batch are close to fp32's, as torch computes them.
"""
import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from sre2l.data.augment import show_batch
from sre2l.data.loader import micro_batches
from sre2l.kernels.compiled import why_no_triton
from sre2l.kernels.cpu.host import host_network
from sre2l.kernels.folded import fold_network
from sre2l.kernels.norms import statistics_layers
from sre2l.nets.precision import HALF, dtype_of, memory_format_of, pick_precision, set_tf32
from sre2l.run.errors import UserError, first_line

# The largest KL from fp32 at T = 20, mean over a batch.
HALF_KL = 1e-5       # of a half precision
SAME_KL = 1e-9       # of a network rewritten for fp32, by rounding alone: 1e-16 to 1e-12 is usual
MOST_COMPARED = 64   # images of the first batch, where the logits of each are its own
AS_IT_IS = "as it is"


@torch.inference_mode()
def teacher_logits(network, pixels, label_batch, spec, precision, part=None, most=None):
    """The teacher's logits on the mixed images, (m, C) in its type. pixels (m, 3, S, S) uint8 on its device.

    label_batch: holds the mix; part: of how many images a forward pass is, None = all; most: label the first
    images alone, after the mix."""
    images = show_batch(pixels, label_batch.mix, spec.mean, spec.std, dtype_of(precision))[:most]
    images = images.contiguous(memory_format=memory_format_of(pixels.device))
    if part is None:
        return network(images)
    return torch.cat([network(images[rows]) for rows in micro_batches(len(images), part)])


@dataclass(frozen=True)
class Labeller:
    """One teacher as it labels. form: its distance from fp32, as in prepare_teacher; share: of the mean;
    part: as in teacher_logits."""
    network: nn.Module
    precision: str
    form: dict | None = None
    share: float = 1.0
    part: int | None = None

    def logits(self, pixels, label_batch, spec):
        set_tf32(self.precision)
        return teacher_logits(self.network, pixels, label_batch, spec, self.precision, self.part)


@torch.inference_mode()
def mean_logits(labellers, pixels, label_batch, spec):
    """The raw logits of one teacher in its type, of several their weighted mean in float32: (m, C)."""
    found = [labeller.logits(pixels, label_batch, spec) for labeller in labellers]
    if len(found) == 1:
        return found[0]
    return sum(labeller.share * logits.float() for labeller, logits in zip(labellers, found))


def forms_of(network, size, precision):
    """The forms of a network in this precision, the fastest first: {name: function that makes it}.

    size: of the images, pixels. NOTE: nothing is folded under --deterministic, since torch never asks cuDNN's
    fused convolutions for kernels that repeat."""
    dtype = dtype_of(precision)
    is_on_gpu = next(network.parameters()).is_cuda
    forms = {}
    if is_on_gpu and statistics_layers(network) and not why_no_triton():
        if not torch.are_deterministic_algorithms_enabled():
            forms["BatchNorm folded"] = partial(fold_network, network, size, dtype)
    if not is_on_gpu and precision != "fp16":
        forms["Winograd's convolutions"] = lambda: host_network(network, size).to(dtype)
    forms[AS_IT_IS] = lambda: copy.deepcopy(network).to(dtype)
    return forms


def distance(found, exact):
    """Logits of two networks, (m, C) float64 -> their largest difference and KL(found, exact) at T = 20."""
    p, q = ((logits / 20).log_softmax(1) for logits in (found, exact))
    kl = (p.exp() * (p - q)).sum(1).mean()
    return {"largest_difference": (found - exact).abs().max().item(), "kl_t20": kl.item()}


def find_form(network, item, spec, precision, part=None):
    """The fastest form of the network whose logits on one batch are close enough to fp32's.

    item: (Batch, crops, LabelBatch) of that batch; part: as in teacher_logits -> (the form or None, the
    distance of the last tried)."""
    _, pixels, label_batch = item
    pixels = pixels.to(next(network.parameters()).device)
    limit = SAME_KL if precision == "fp32" else HALF_KL
    # No running statistics: `use_batch_statistics` took them away, and a batch that is cut has others.
    most = MOST_COMPARED if statistics_layers(network) else None
    set_tf32("fp32")
    exact = teacher_logits(network, pixels, label_batch, spec, "fp32", part, most).double()

    measured = failed = None
    for name, make_form in forms_of(network, spec.size, precision).items():
        try:
            form = make_form()
            logits = teacher_logits(form, pixels, label_batch, spec, precision, part, most).double()
        except Exception as error:  # of torch.fx, cuDNN or the C compiler: it can be anything
            if name == AS_IT_IS:
                raise
            failed = f"{name}: {first_line(error)}"
            continue
        measured = {**distance(logits, exact), "form": name, "failed": failed}
        if measured["kl_t20"] < limit:  # a NaN is not
            return form, measured
    return None, measured


def describe_forms(teachers, labellers):
    """Yield a line for the log of each teacher: how far from fp32 it is as it labels, where that is known."""
    for teacher, labeller in zip(teachers, labellers):
        form = labeller.form
        if form:
            name = f"{teacher.arch}: " if len(teachers) > 1 else ""
            failed = f"; not {form['failed']}" if form["failed"] else ""
            yield (f"{name}{labeller.precision}, {form['form']}, against fp32 on the first batch: logits "
                   f"differ by up to {form['largest_difference']:.2g}, KL {form['kl_t20']:.1e} at T = 20"
                   f"{failed}")


def part_of(batch_statistics):
    """How many images BatchNorm sees at a time by this setting; None for the whole batch."""
    return None if isinstance(batch_statistics, bool | None) else batch_statistics


def use_batch_statistics(teachers):
    """Let each BatchNorm normalise by the images that it sees, as in train mode; the rest stays in eval mode.

    -> lines for the log that name the teachers without BatchNorm. Raises UserError where none has it."""
    without = [teacher for teacher in teachers if not statistics_layers(teacher.network)]
    names = ", ".join(teacher.arch for teacher in without)
    if len(without) == len(teachers):
        has = "has" if len(teachers) == 1 else "have"
        raise UserError(f"--batch-statistics: {names} {has} no BatchNorm layer with running statistics; "
                        "leave it out")
    for teacher in teachers:
        for layer in statistics_layers(teacher.network):
            layer.track_running_stats = False
            layer.running_mean = None
            layer.running_var = None
    return [f"--batch-statistics: no BatchNorm in {names}, which labels in eval mode"] if without else []


def prepare_teacher(network, item, spec, requested, recorded, device, part=None):
    """The teacher as it labels -> (network, precision, its distance from fp32, or None where not measured).

    requested: --precision, or None; recorded: the precision of the labels that are there, or None. Where both
    are None, a GPU takes fp16 if that is close enough, and else the precision of the other stages counts.
    item, part: as in find_form. Raises UserError for a precision that the device lacks, and for a half
    precision that was requested or recorded and is too far off."""
    precision = pick_precision(requested or recorded, device)
    candidate = requested or recorded or ("fp16" if device.type == "cuda" else None)
    if candidate in ("fp16", "bf16"):
        form, found = find_form(network, item, spec, candidate, part)
        if form is not None:
            return form, candidate, found
        if requested or recorded:
            flag = "--precision" if requested else "precision"
            instead = "these labels were begun in it elsewhere; start them afresh with --overwrite"
            if requested:
                instead = f"use --precision {pick_precision(None, device)}"
            raise UserError(f"{flag} {candidate}: on the first batch the teacher's logits differ by up to "
                            f"{found['largest_difference']:.2g} from fp32, KL {found['kl_t20']:.1e} at "
                            f"T = 20, where {HALF_KL:.0e} is allowed; {instead}")

    set_tf32(precision)
    if device.type == "cuda":
        return network, precision, None
    form, found = find_form(network, item, spec, precision, part)
    if form is None:  # its logits are not finite, and are refused where they are stored
        form = network
    return form, precision, found


def prepare_teachers(teachers, weights, item, spec, requested, recorded, device, part=None):
    """Each teacher in the form that prepare_teacher finds for it -> [Labeller, ...].

    weights: one for each; recorded: as describe_precisions has it, None where no labels are there. The rest:
    as in prepare_teacher."""
    before = (recorded or "").split(",")
    if len(before) != len(teachers):
        before = before[:1] * len(teachers)
    labellers = []
    for teacher, weight, precision in zip(teachers, weights, before):
        found = prepare_teacher(teacher.network, item, spec, requested, precision or None, device, part)
        labellers.append(Labeller(*found, weight / sum(weights), part))
    return labellers


def describe_precisions(labellers):
    """The precisions in a word, or where they differ one for each teacher between commas."""
    precisions = [labeller.precision for labeller in labellers]
    return precisions[0] if len(set(precisions)) == 1 else ",".join(precisions)


def describe_teachers(teachers, weights, labellers, top1):
    """What a manifest says of the teachers. Of several, `teacher` is the first. top1: its own."""
    forms = [labeller.form if labeller.precision in HALF else None for labeller in labellers]
    found = {"teacher": teachers[0].describe(), "teacher_classes": teachers[0].class_names,
             "measured_top1": top1, "precision": describe_precisions(labellers),
             "half_against_fp32": forms[0]}
    if len(teachers) > 1:
        found |= {"teachers": [teacher.describe() for teacher in teachers], "teacher_weights": weights,
                  "half_against_fp32": forms if any(forms) else None}
    return found
