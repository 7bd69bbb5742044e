"""The precision that a network computes in: what is possible on a device, and how to ask for it."""
import torch

from sre2l.run.errors import UserError

PRECISIONS = ("fp32", "tf32", "fp16", "bf16")


def has_tf32(device):
    """TF32 matrix products need an NVIDIA GPU from Ampere on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def pick_precision(name, device, training=False):
    """--precision -> its name, by default tf32 on a GPU that has it and fp32 elsewhere; raises UserError where it cannot run."""
    if name is None:
        return "tf32" if has_tf32(device) else "fp32"
    if name == "tf32" and not has_tf32(device):
        raise UserError(f"--precision tf32 needs an NVIDIA GPU from Ampere on, the device is {device}; use fp32")
    if name == "fp16" and training and device.type != "cuda":
        raise UserError(f"--precision fp16 trains on a GPU only, the device is {device}; use fp32 or bf16")
    if name == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise UserError(f"--precision bf16 needs a GPU from Ampere on, the device is {torch.cuda.get_device_name(device)}; use fp16")
    return name


def set_tf32(name):
    """Let float32 convolutions and matrix products use TF32 (about 1e-3 relative), or not; the half precisions do not care."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name == "tf32"


def dtype_of(name):
    """The type of a network's tensors: float32 for fp32 and tf32."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(name, torch.float32)


def memory_format_of(device):
    """NHWC on GPUs, whose tensor cores want it; on CPU it gains nothing."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format
