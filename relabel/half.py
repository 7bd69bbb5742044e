"""The teacher in the precision that labels are made in: the fastest form of it whose logits are close enough to fp32's."""
import copy
from functools import partial

import torch

from sre2l.data.augment import show_batch
from sre2l.kernels.compiled import why_no_triton
from sre2l.run.processes import largest
from sre2l.run.errors import first_line
from sre2l.kernels.folded import fold_network
from sre2l.kernels.cpu.host import host_network
from sre2l.kernels.norms import statistics_layers
from sre2l.nets.precision import dtype_of, memory_format_of, pick_precision, set_tf32
from sre2l.run.errors import UserError

HALF_KL = 1e-5  # a half-precision teacher may differ from fp32 by this much at T = 20, mean KL over a batch
MOST_COMPARED = 64  # images of the first batch, where each has its logits by itself
SAME_KL = 1e-9  # one that is rewritten for fp32, by rounding alone: 1e-16 to 1e-12 is usual


@torch.inference_mode()
def teacher_logits(network, pixels, sheet, spec, precision, most=None):
    """The teacher's raw logits on the mixed images, or the first of them, in its own type: pixels (m, 3, S, S) uint8 -> (m, C), both on its device."""
    images = show_batch(pixels, sheet.mix, spec.mean, spec.std, dtype_of(precision))[:most]
    return network(images.contiguous(memory_format=memory_format_of(pixels.device)))


def forms_of(network, size, precision):
    """{name: function that makes it} of the network's forms in this precision, the fastest first. size: of the images, pixels.

    NOTE: not folded under --deterministic, since torch never asks cuDNN's fused convolutions for kernels that repeat."""
    on_gpu, dtype, forms = next(network.parameters()).is_cuda, dtype_of(precision), {}
    if on_gpu and statistics_layers(network) and not why_no_triton() and not torch.are_deterministic_algorithms_enabled():
        forms["BatchNorm folded"] = partial(fold_network, network, size, dtype)
    if not on_gpu and precision != "fp16":
        forms["Winograd's convolutions"] = lambda: host_network(network, size).to(dtype)
    return {**forms, "as it is": lambda: copy.deepcopy(network).to(dtype)}


def distance(found, exact):
    """Logits of two networks, (m, C) float64 -> their largest difference and KL(found, exact) at T = 20, mean over the rows."""
    p, q = ((logits / 20).log_softmax(1) for logits in (found, exact))
    return {"largest_difference": (found - exact).abs().max().item(), "kl_t20": (p.exp() * (p - q)).sum(1).mean().item()}


def measured_form(network, item, spec, precision):
    """-> (the fastest form of the network whose logits on images of one batch are close enough to fp32's, or None, the distance of the last one tried).

    item: (Batch, crops, LabelBatch) of that batch. Every process comes to the same result."""
    _, pixels, sheet = item
    pixels, measured, failed = pixels.to(next(network.parameters()).device), None, None
    set_tf32("fp32")
    most = MOST_COMPARED if statistics_layers(network) else None  # a batch that gives the statistics itself is another one when cut
    exact = teacher_logits(network, pixels, sheet, spec, "fp32", most).double()
    for name, make in forms_of(network, spec.size, precision).items():
        try:
            form = make()
            measured = {**distance(teacher_logits(form, pixels, sheet, spec, precision, most).double(), exact), "form": name, "failed": failed}
        except Exception as error:  # torch.fx, cuDNN or the C compiler cannot: anything
            if name == "as it is":
                raise
            measured, failed = None, f"{name}: {first_line(error)}"
        if not largest(not (measured and measured["kl_t20"] < (SAME_KL if precision == "fp32" else HALF_KL))):  # also where it is not a number
            return form, measured
    return None, measured


def use_batch_statistics(teacher):
    """Let every BatchNorm take the statistics of the batch that it sees, as in train mode, and keep none of them; the rest stays in eval mode.

    Raises UserError for a teacher without BatchNorm."""
    layers = statistics_layers(teacher.network)
    if not layers:
        raise UserError(f"--batch-statistics: {teacher.arch} has no BatchNorm layer with running statistics; leave it out")
    for layer in layers:
        layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None


def prepare_teacher(network, item, spec, asked, begun, device):
    """The teacher as it labels: in --precision, else in the one that the folder was begun in, else on a GPU in fp16 if it is close enough there, else
    as in other stages.

    item: as measured_form has it; asked, begun: names or None. -> (network, precision, the distance from fp32 as torch computes it, or None). Raises
    UserError where the precision cannot be had, or a half precision that is not left to choose is too far off."""
    precision = pick_precision(asked or begun, device)
    wanted = asked or begun or ("fp16" if device.type == "cuda" else None)
    if wanted in ("fp16", "bf16"):
        form, found = measured_form(network, item, spec, wanted)
        if form is not None:
            return form, wanted, found
        if asked or begun:
            instead = (f"use --precision {pick_precision(None, device)}" if asked
                       else "these labels were begun in it elsewhere; start them afresh with --overwrite")
            raise UserError(f"{'--precision' if asked else 'precision'} {wanted}: on the first batch the teacher's logits differ by up to "
                            f"{found['largest_difference']:.2g} from fp32, KL {found['kl_t20']:.1e} at T = 20; labels that close as {HALF_KL:.0e} "
                            f"are asked for: {instead}")
    set_tf32(precision)
    if device.type == "cpu":
        form, found = measured_form(network, item, spec, precision)
        return network if form is None else form, precision, found  # None: logits that are not finite, which are refused where they are stored
    return network, precision, None
