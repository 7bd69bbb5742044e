"""Run a training stage in float64, so that one process and several can be compared to rounding.

python -m tests.fp64 validate.train <its flags>, or squeeze.squeeze. With --device cuda all processes share
the first GPU, over gloo."""
import contextlib
import importlib
import sys
from functools import partial
from unittest import mock

import torch
from torch import nn

from sre2l.data import augment
from sre2l.data.augment import apply_mix
from sre2l.nets import precision
from sre2l.run import processes
from sre2l.run.start import run_script
from validate import losses


def show_batch64(pixels, mix, mean, std, _):
    """sre2l.data.augment.show_batch in float64."""
    norm = torch.tensor((mean, std), dtype=torch.float64, device=pixels.device).view(2, 3, 1, 1)
    return apply_mix((pixels.double() / 255 - norm[0]) / norm[1], mix)


def share_one_gpu():
    """Put two processes on one GPU, which NCCL refuses."""
    precision.pick_device = lambda name: torch.device("cuda", 0)
    start = processes.start
    processes.start = lambda device: start(torch.device("cpu"))


@contextlib.contextmanager
def recorded_statistics():
    """-> a list of mean and unbiased variance of each input that a BatchNorm layer meets in training."""
    met = []

    def look(module, inputs):
        if isinstance(module, nn.BatchNorm2d) and module.training:
            pixels = inputs[0].detach()
            met.append((pixels.mean((0, 2, 3)), pixels.var((0, 2, 3))))

    handle = nn.modules.module.register_module_forward_pre_hook(look)
    yield met
    handle.remove()


@contextlib.contextmanager
def in_float64(stage):
    """Let a stage train in float64. It evaluates nothing, since the evaluation's images are float32."""
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(augment, "show_batch", show_batch64), \
                mock.patch.object(losses, "show_batch", show_batch64), \
                mock.patch.object(stage, "evaluate", lambda *_, **__: (0.0, 0.0)), \
                mock.patch("validate.results.write_page", lambda *_: "no report: a test"):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


if __name__ == "__main__":
    stage, flags = importlib.import_module(sys.argv[1]), sys.argv[2:]
    if "cuda" in flags:
        share_one_gpu()
    with in_float64(stage):
        run_script(stage.main, partial(stage.get_args, flags))
