"""The device and the precision that a network computes in: what is possible, and how to ask for it."""
import contextlib
import os

import torch

from sre2l.kernels.compiled import why_no_triton
from sre2l.run.device import pick_device
from sre2l.run.errors import UserError

PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}  # the types of 16 bits, by their precision
AMPERE = (8, 0)  # compute capability of the first GPUs with TF32 and bf16


def is_ampere(device):
    """Is the device an NVIDIA GPU from Ampere on?"""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= AMPERE


def pick_precision(name, device, training=False):
    """--precision, by default tf32 where a GPU has it, else fp32. Raises UserError where it cannot run."""
    if name is None:
        return "tf32" if is_ampere(device) else "fp32"
    if name == "tf32" and not is_ampere(device):
        raise UserError(f"--precision tf32 needs an NVIDIA GPU from Ampere on, the device is {device}; use "
                        "fp32")
    if name == "fp16" and training and device.type != "cuda":
        raise UserError(f"--precision fp16 trains on a GPU only, the device is {device}; use fp32 or bf16")
    if name == "bf16" and device.type == "cuda" and not is_ampere(device):
        gpu = torch.cuda.get_device_name(device)
        raise UserError(f"--precision bf16 needs a GPU from Ampere on, the device is {gpu}; use fp16")
    return name


def set_tf32(name):
    """Let float32 convolutions and matrix products use TF32, which rounds to about 1e-3, or not."""
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"


def dtype_of(name):
    """The type of a network's tensors: float32 for fp32 and tf32."""
    return HALF.get(name, torch.float32)


def memory_format_of(device):
    """NHWC on GPUs, whose tensor cores want it; on a CPU it gains nothing."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def set_deterministic(wanted):
    """--deterministic: the same bits in every run, or an error where an operation cannot promise them."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(wanted)


def why_not_compile(device):
    """Why --compile cannot be; None where it can."""
    return why_no_triton() if device.type == "cuda" else f"the device is {device}"


def start_device(name, precision, deterministic, training=True, compiled=False):
    """Set up what --device, --precision and --deterministic ask for -> (device, precision).

    Raises UserError for what this machine cannot do. With `compiled` that includes --compile, which is
    refused here because --overwrite deletes later."""
    set_deterministic(deterministic)
    device = pick_device(name)
    why = why_not_compile(device) if compiled else None
    if why:
        raise UserError(f"--compile needs an NVIDIA GPU and Triton: {why}; leave it away")
    precision = pick_precision(precision, device, training)
    set_tf32(precision)
    # cuDNN's search pays off: all batches have one shape, but for the last of an epoch.
    torch.backends.cudnn.benchmark = device.type == "cuda" and not deterministic
    return device, precision


def autocast(precision, device):
    """The context of a network in this precision. Weights stay float32; losses belong outside."""
    if dtype_of(precision) == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype_of(precision))
