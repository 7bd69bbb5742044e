"""The form in which the teacher labels: its precision, and how it is rewritten to be fast.

A form is taken only where its logits on the first batch are close to fp32's, as torch computes them.
"""
import copy
from functools import partial

import torch

from sre2l.data.augment import show_batch
from sre2l.kernels.compiled import why_no_triton
from sre2l.kernels.cpu.host import host_network
from sre2l.kernels.folded import fold_network
from sre2l.kernels.norms import statistics_layers
from sre2l.nets.precision import dtype_of, memory_format_of, pick_precision, set_tf32
from sre2l.run.errors import UserError, first_line

# The largest KL from fp32 at T = 20, mean over a batch.
HALF_KL = 1e-5       # of a half precision
SAME_KL = 1e-9       # of a network rewritten for fp32, by rounding alone: 1e-16 to 1e-12 is usual
MOST_COMPARED = 64   # images of the first batch, where the logits of each are its own
AS_IT_IS = "as it is"


@torch.inference_mode()
def teacher_logits(network, pixels, label_batch, spec, precision, most=None):
    """The teacher's logits on the mixed images, (m, C) in its type. pixels (m, 3, S, S) uint8 on its device.

    label_batch: holds the mix; most: label the first images alone, after the mix."""
    images = show_batch(pixels, label_batch.mix, spec.mean, spec.std, dtype_of(precision))[:most]
    return network(images.contiguous(memory_format=memory_format_of(pixels.device)))


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


def find_form(network, item, spec, precision):
    """The fastest form of the network whose logits on one batch are close enough to fp32's.

    item: (Batch, crops, LabelBatch) of that batch -> (the form or None, the distance of the last tried)."""
    _, pixels, label_batch = item
    pixels = pixels.to(next(network.parameters()).device)
    limit = SAME_KL if precision == "fp32" else HALF_KL
    # No running statistics: `use_batch_statistics` took them away, and a batch that is cut has others.
    most = MOST_COMPARED if statistics_layers(network) else None
    set_tf32("fp32")
    exact = teacher_logits(network, pixels, label_batch, spec, "fp32", most).double()

    measured = failed = None
    for name, make_form in forms_of(network, spec.size, precision).items():
        try:
            form = make_form()
            logits = teacher_logits(form, pixels, label_batch, spec, precision, most).double()
        except Exception as error:  # of torch.fx, cuDNN or the C compiler: it can be anything
            if name == AS_IT_IS:
                raise
            failed = f"{name}: {first_line(error)}"
            continue
        measured = {**distance(logits, exact), "form": name, "failed": failed}
        if measured["kl_t20"] < limit:  # a NaN is not
            return form, measured
    return None, measured


def describe_form(precision, form):
    """Yield a line for the log: how far the teacher, as it labels, is from fp32; none where that is unknown.

    form: the distance of find_form, or None."""
    if form:
        failed = f"; not {form['failed']}" if form["failed"] else ""
        yield (f"{precision}, {form['form']}, against fp32 on the first batch: logits differ by up to "
               f"{form['largest_difference']:.2g}, KL {form['kl_t20']:.1e} at T = 20{failed}")


def use_batch_statistics(teacher):
    """Let every BatchNorm normalise by the batch that it sees, as in train mode; the rest stays in eval mode.

    Raises UserError for a teacher without BatchNorm."""
    layers = statistics_layers(teacher.network)
    if not layers:
        raise UserError(f"--batch-statistics: {teacher.arch} has no BatchNorm layer with running statistics; "
                        "leave it out")
    for layer in layers:
        layer.track_running_stats = False
        layer.running_mean = None
        layer.running_var = None


def prepare_teacher(network, item, spec, requested, recorded, device):
    """The teacher as it labels -> (network, precision, its distance from fp32, or None where not measured).

    requested: --precision, or None; recorded: the precision of the labels that are there, or None. Where both
    are None, a GPU takes fp16 if that is close enough, and else the precision of the other stages counts.
    item: as in find_form. Raises UserError for a precision that the device lacks, and for a half precision
    that was requested or recorded and is too far off."""
    precision = pick_precision(requested or recorded, device)
    candidate = requested or recorded or ("fp16" if device.type == "cuda" else None)
    if candidate in ("fp16", "bf16"):
        form, found = find_form(network, item, spec, candidate)
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
    form, found = find_form(network, item, spec, precision)
    if form is None:  # its logits are not finite, and are refused where they are stored
        form = network
    return form, precision, found
