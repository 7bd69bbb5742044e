"""Training stages in every precision, and on a GPU (skipped without one): same losses, no waiting for the GPU within a step."""
import json
import re
from functools import partial

import numpy as np
import pytest
import torch

from sre2l.nets import training
from sre2l.data.augment import draw_crops, draw_mix
from sre2l.data.loader import Batch
from sre2l.data.image_folder import Images
from sre2l.data.label_files import LabelBatch
from sre2l.nets.parallel import RunningStatistics
from sre2l.run.seeds import unit_rng
from sre2l.nets.training import autocast, evaluate, keep_on_device, make_scaler, make_sgd
from squeeze import squeeze
from tests.helpers import SMALL, refused, run_main
from tests.nets import SmallNet
from tests.test_continue import files_of
from tests.test_processes import run
from tests.worlds import labelled_images
from validate import train
from validate.losses import backward_in_micro_batches, distillation_loss
from validate.shares import share_of

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """-> (root, flags of validate for a set in it)."""
    root = tmp_path_factory.mktemp("precision")
    return root, (*labelled_images(root, "mixup"), "--model", SMALL, "--stem", "torchvision", "-T", 1)


@pytest.mark.parametrize("device, precision", [("cpu", "bf16"), *(pytest.param("cuda", name, marks=GPU) for name in ("tf32", "bf16", "fp16"))])
def test_half_precision_trains_like_fp32_with_float32_weights(device, precision, labelled):
    """The first epoch's cross entropy within 3 % (fp16 10 %: its loss scaler may skip the first steps), AdamW; the protocol names the precision;
    another one does not continue the run."""
    root, flags = labelled
    losses = []
    for name in ("fp32", precision):
        folder = root / f"{device}_{precision}_{name}"
        run_main(train, *flags, "--hard-labels", "--device", device, "--precision", name, "--output-dir", folder, "--save-every-sec", 0)
        checkpoint = torch.load(folder / "seed0" / "checkpoint.pth")
        assert {value.dtype for value in checkpoint["model"].values()} == {torch.float32, torch.int64}
        assert json.loads((folder / "results.json").read_text())["protocol"]["precision"] == name
        losses.append(checkpoint["history"][0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.1 if precision == "fp16" else 0.03)
    message = refused(train, *flags, "--hard-labels", "--device", device, "--precision", "fp32", "--output-dir", folder)
    assert f"precision: there '{precision}', here 'fp32'" in message


def test_fp16_training_needs_a_gpu(labelled):
    _, flags = labelled
    assert "fp16" in refused(train, *flags, "--device", "cpu", "--precision", "fp16")
    assert "tf32" in refused(squeeze, "--dataset", "digits", "--device", "cpu", "--precision", "tf32")


@pytest.mark.parametrize("device", DEVICES)
def test_a_teacher_trains_in_bf16(device, labelled):
    root, _ = labelled
    flags = ("--dataset", "cifar10", "--real-data", root / "real", "--arch", SMALL, "--epochs", 1, "-b", 10, "-j", 0, "--device", device)
    first = []
    for name in ("fp32", "bf16"):
        run_main(squeeze, *flags, "--precision", name, "--name", root / f"teacher_{device}_{name}")
        first.append(json.loads(open(root / f"teacher_{device}_{name}" / "teacher" / "metrics.jsonl").readline())["loss"])
    assert first[1] == pytest.approx(first[0], rel=0.05)


@GPU
@pytest.mark.parametrize("precision", ("tf32", "fp16", "bf16"))
@pytest.mark.parametrize("optimizer", ("--sgd", "--decay-all"))
def test_a_step_of_the_student_never_waits_for_the_gpu(precision, optimizer, labelled):
    """torch raises an error at every synchronising call."""
    _, flags = labelled
    args = train.get_args([str(flag) for flag in (*flags, optimizer)])
    spec, device, rows = train.data_spec(args), torch.device("cuda"), np.arange(12)
    network = SmallNet(head_norm=True).float().to(device, memory_format=torch.channels_last).train()
    sheet = LabelBatch(draw_crops([(32, 32)] * 12, "padded", None, 4, True, unit_rng(0)), draw_mix("cutmix", 1.0, 12, 32, unit_rng(1)),
                  torch.randn(12, 5).half().pin_memory())
    pixels = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8).to(device)
    step, scaler, statistics = train.make_optimizer(network, args, device), make_scaler(precision, device), RunningStatistics(network)
    losses = []
    for repeat in range(6):  # fp16's scaler skips the first
        torch.cuda.set_sync_debug_mode("error" if repeat else "default")  # the first step may set things up
        try:
            share = share_of(12, sheet.mix, 4, 0, 1)
            mixed, targets = train.mixed_and_targets(args, spec, None, pixels, sheet, share, precision)
            before = partial(train.start_micro_batch, statistics, 0, Batch(0, repeat, rows))
            step.zero_grad()
            losses.append(backward_in_micro_batches(network, partial(distillation_loss, temperature=1), mixed, targets, share, scaler.scale, before,
                                                    partial(autocast, precision, device)))
            scaler.step(step)
            scaler.update()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(losses).isfinite().all() and losses[-1] < losses[0]


@pytest.mark.parametrize("skipped", (0, 1, 3))
def test_sgd_begins_with_no_momentum_also_where_its_first_steps_are_skipped(skipped):
    """As fp16's scaler skips them. torch's fused SGD has it on a CPU too."""
    trained = []
    for fused in (True, False):
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 500))
        step = make_sgd([parameter], 0.1, 0.9, 1e-3, torch.device("cuda" if fused else "cpu"))
        for repeat in range(5):
            parameter.grad = torch.cos(parameter.detach() * 3)
            if fused:  # what a GradScaler does
                step.grad_scale, step.found_inf = torch.tensor(1.0), torch.tensor(float(repeat < skipped))
            if fused or repeat >= skipped:
                step.step()
        trained.append(parameter.detach())
    assert torch.allclose(*trained, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("stage", (squeeze, train))
def test_compile_is_refused_without_a_gpu_before_overwrite_deletes(stage, labelled):
    root, flags = labelled
    if stage is squeeze:
        flags = ("--dataset", "cifar10", "--real-data", root / "real", "--arch", SMALL, "--epochs", 1, "-b", 10, "-j", 0, "--name", root / "refused")
    else:
        flags = (*flags, "--output-dir", root / "refused" / "student")
    run_main(stage, *flags, "--device", "cpu")
    before = files_of(root / "refused")
    assert "--compile needs an NVIDIA GPU" in refused(stage, *flags, "--device", "cpu", "--compile", "--overwrite")
    assert before and files_of(root / "refused") == before


@pytest.fixture
def compiling(monkeypatch, request):
    """-> the modes that torch.compile was asked for. Without a GPU the network is traced as there, and then run as it is."""
    modes, make, on_gpu = [], torch.compile, request.getfixturevalue("device") == "cuda"

    def compiled(network, dynamic, mode):
        modes.append(mode)
        return make(network, dynamic=dynamic, **({"mode": mode} if on_gpu else {"backend": "eager"}))
    if not on_gpu:
        monkeypatch.setattr(training, "why_not_compile", lambda device: None)
    monkeypatch.setattr(torch, "compile", compiled)
    return modes


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("steps", (1, 2))
def test_compiled_a_student_trains_as_it_does_without(device, steps, labelled, compiling):
    """Two seeds, a short last batch, evaluations between; losses of the first epoch within what the order of sums makes."""
    root, flags = labelled
    flags, rows = (*flags, "--model", "resnet18", "--device", device, "--gradient-accumulation-steps", steps, "--seeds", "0,1", "--eval-every", 1), []
    for name, more in (("eager", ()), ("compiled", ("--compile",))):
        folder = root / f"{name}_{steps}_{device}"
        run_main(train, *flags, "--output-dir", folder, *more)
        rows.append([torch.load(folder / f"seed{seed}" / "checkpoint.pth", map_location="cpu")["history"][0]["loss"] for seed in (0, 1)])
    assert rows[1] == pytest.approx(rows[0], rel=1e-5 if device == "cpu" else 0.02)
    assert compiling == ["reduce-overhead" if steps == 1 else "default"] * 2  # CUDA graphs where nothing is accumulated, anew for each seed


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_a_teacher_trains_as_it_does_without(device, labelled, compiling):
    (root, _), losses = labelled, []
    for name, more in (("eager", ()), ("compiled", ("--compile",))):
        run_main(squeeze, "--dataset", "cifar10", "--real-data", root / "real", "--arch", "resnet18", "--stem", "torchvision", "--epochs", 2, "-b", 8, "-j", 0,
                 "--lr", 0.01, "--device", device, "--name", root / f"teacher_{name}_{device}", *more)
        losses.append(json.loads((root / f"teacher_{name}_{device}" / "teacher" / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5 if device == "cpu" else 0.02) and compiling == ["reduce-overhead"]


@GPU
def test_an_evaluation_from_the_gpus_memory_is_that_of_the_cpu():
    rng = np.random.default_rng(0)
    images = Images([rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(37)], rng.integers(0, 5, 37), [], "")
    torch.manual_seed(0)
    network = SmallNet(head_norm=True).float()
    wanted = evaluate(network, images, (0.5,) * 3, (0.2,) * 3, torch.device("cpu"))
    resident = keep_on_device(images, torch.device("cuda"))
    assert resident.pixels.is_cuda and len(resident) == 37
    assert evaluate(network.cuda(), resident, (0.5,) * 3, (0.2,) * 3, torch.device("cuda"), 8) == wanted


@GPU
@pytest.mark.parametrize("steps", (2, 4))
def test_two_processes_on_a_gpu_train_the_student_of_one_in_fp64(steps, labelled):
    """As on the CPU (test_processes.py), with the GPU's fused optimiser and NHWC; over gloo, since NCCL wants a GPU for each process."""
    root, flags = labelled
    flags = (*flags, "--device", "cuda", "--model", "mobilenet_v3_small", "--gradient-accumulation-steps", steps, "--sgd", "--learning-rate", 0.01)
    models = []
    for processes in (1, 2):
        done = run("tests.fp64", "validate.train", *flags, "--output-dir", root / f"gpu64_{steps}_{processes}", processes=processes)
        assert done.returncode == 0, done.stderr
        models.append(torch.load(root / f"gpu64_{steps}_{processes}" / "seed0" / "checkpoint.pth")["model"])
    for key, value in models[0].items():
        assert (models[1][key] - value).abs().max() <= 1e-9 * max(1, value.abs().max()), key


@GPU
def test_two_processes_on_a_gpu_train_the_teacher_of_one_in_fp64(labelled):
    """SyncBatchNorm: statistics over the whole batch, also where the last one is short."""
    root, _ = labelled
    flags = ("--dataset", "cifar10", "--real-data", root / "real", "--arch", "resnet18", "--stem", "torchvision", "--epochs", 2, "-b", 8, "-j", 0,
             "--lr", 0.01, "--device", "cuda")  # a network without dropout, whose masks differ between processes
    models = []
    for processes in (1, 2):
        done = run("tests.fp64", "squeeze.squeeze", *flags, "--name", root / f"sync_{processes}", processes=processes)
        assert done.returncode == 0 and not re.search("BatchNorm sees what one process has", done.stdout), done.stderr
        models.append(torch.load(root / f"sync_{processes}" / "teacher" / "teacher.pth")["model"])
    for key, value in models[0].items():
        assert (models[1][key] - value).abs().max() <= 1e-9 * max(1, value.abs().max()), key
