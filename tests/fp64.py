"""Run a training stage in float64, so that one process and several can be compared to rounding.

python -m tests.fp64 validate.train <its flags>, or squeeze.squeeze. With --device cuda all processes share the first GPU, over gloo."""
import importlib
import sys
from functools import partial

import torch

from sre2l.nets import training
from sre2l.data.augment import apply_mix
from sre2l.run.processes import start
from sre2l.run.start import run_script


def show_batch64(pixels, mix, mean, std, _):
    """sre2l.data.augment.show_batch in float64."""
    mean, std = (torch.tensor(value, device=pixels.device).view(3, 1, 1) for value in (mean, std))
    return apply_mix((pixels.double() / 255 - mean) / std, mix)


def share_one_gpu():
    """Two processes on one GPU, which NCCL refuses."""
    training.pick_device = lambda name: torch.device("cuda", 0)
    training.start = lambda device: start(torch.device("cpu"))


if __name__ == "__main__":
    stage, flags = importlib.import_module(sys.argv[1]), sys.argv[2:]
    torch.set_default_dtype(torch.float64)
    stage.show_batch, stage.evaluate = show_batch64, lambda *_, **__: (0.0, 0.0)  # the evaluation's images are float32
    if "cuda" in flags:
        share_one_gpu()
    run_script(stage.main, partial(stage.get_args, flags))
