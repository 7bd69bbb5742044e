"""Training in every precision: the same losses; on a GPU no waiting within a step."""
import json
import re

import numpy as np
import pytest
import torch

from squeeze import squeeze
from sre2l.data import augment
from sre2l.data.image_folder import Images
from sre2l.nets.evaluation import evaluate, keep_on_device
from sre2l.nets.training import make_sgd
from tests.helpers import SMALL, refused, run_main
from tests.nets import SmallNet
from tests.test_continue import files_of
from tests.test_processes import run
from tests.worlds import labelled_images
from validate import losses, train

GPU = pytest.mark.gpu
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
CASES = [("cpu", "bf16"), *(pytest.param("cuda", name, marks=GPU) for name in ("tf32", "bf16", "fp16"))]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """-> (root, flags of validate for a set in it)."""
    root = tmp_path_factory.mktemp("precision")
    return root, (*labelled_images(root, "mixup"), "--model", SMALL, "--stem", "torchvision", "-T", 1)


@pytest.fixture(scope="module")
def teacher_flags(labelled):
    """Flags of squeeze for one epoch on the same real images."""
    root, _ = labelled
    flags = ("--dataset", "cifar10", "--real-data", root / "real", "--arch", SMALL, "--epochs", 1)
    return (*flags, "-b", 10, "-j", 0)


@pytest.fixture
def flags_of(labelled, teacher_flags):
    """-> flags_of(stage, folder): those with which it writes folder/teacher or folder/student."""
    def make(stage, folder):
        if stage is squeeze:
            return (*teacher_flags, "--name", folder)
        return (*labelled[1], "--output-dir", folder / "student")
    return make


def losses_of(folder):
    """The loss of each epoch in a folder's metrics."""
    return [json.loads(line)["loss"] for line in open(folder / "metrics.jsonl")]


@pytest.mark.parametrize("device, precision", CASES)
def test_half_precision_trains_like_fp32_with_float32_weights(device, precision, labelled):
    """The first epoch's cross entropy within 3 % (fp16 10 %: its loss scaler may skip the first steps),
    AdamW; the protocol names the precision; another one does not continue the run."""
    root, flags = labelled
    flags = (*flags, "--hard-labels", "--device", device)
    losses = []
    for name in ("fp32", precision):
        folder = root / f"{device}_{precision}_{name}"
        run_main(train, *flags, "--precision", name, "--output-dir", folder)
        checkpoint = torch.load(folder / "seed0" / "checkpoint.pth")
        assert {value.dtype for value in checkpoint["model"].values()} == {torch.float32, torch.int64}
        assert json.loads((folder / "results.json").read_text())["protocol"]["precision"] == name
        losses.append(losses_of(folder)[0])
    assert losses[1] == pytest.approx(losses[0], rel=0.1 if precision == "fp16" else 0.03)
    message = refused(train, *flags, "--precision", "fp32", "--output-dir", folder)
    assert f"precision: there '{precision}', here 'fp32'" in message


def test_fp16_training_needs_a_gpu(labelled):
    _, flags = labelled
    assert "fp16" in refused(train, *flags, "--device", "cpu", "--precision", "fp16")
    assert "tf32" in refused(squeeze, "--dataset", "digits", "--device", "cpu", "--precision", "tf32")


@pytest.mark.parametrize("device", DEVICES)
def test_a_teacher_trains_in_bf16(device, labelled, teacher_flags):
    root, _ = labelled
    first = []
    for name in ("fp32", "bf16"):
        folder = root / f"teacher_{device}_{name}"
        run_main(squeeze, *teacher_flags, "--device", device, "--precision", name, "--name", folder)
        first.append(losses_of(folder / "teacher")[0])
    assert first[1] == pytest.approx(first[0], rel=0.05)


@GPU
@pytest.mark.parametrize("stage", (squeeze, train))
@pytest.mark.parametrize("precision", ("tf32", "fp16", "bf16"))
def test_a_step_never_waits_for_the_gpu(stage, precision, flags_of, monkeypatch, tmp_path):
    """torch raises at every synchronising call of a step, but for the first step of each batch size."""
    sizes, modes = set(), []
    shows = losses if stage is train else augment
    show, update = shows.show_batch, torch.amp.GradScaler.update

    def show_batch(pixels, *rest):
        torch.cuda.set_sync_debug_mode("error" if len(pixels) in sizes else "default")
        sizes.add(len(pixels))
        return show(pixels, *rest)

    def after_step(scaler):
        update(scaler)
        modes.append(torch.cuda.get_sync_debug_mode())
        torch.cuda.set_sync_debug_mode("default")
    monkeypatch.setattr(shows, "show_batch", show_batch)
    monkeypatch.setattr(torch.amp.GradScaler, "update", after_step)
    flags = (*flags_of(stage, tmp_path), "--device", "cuda", "--epochs", 2, "--precision", precision)
    try:
        run_main(stage, *flags)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(modes) >= 6 and max(modes) == 2  # error


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
def test_compile_is_refused_without_a_gpu_before_overwrite_deletes(stage, flags_of, tmp_path):
    flags = (*flags_of(stage, tmp_path), "--device", "cpu")
    run_main(stage, *flags)
    before = files_of(tmp_path)
    message = refused(stage, *flags, "--compile", "--overwrite")
    assert "--compile needs an NVIDIA GPU" in message
    assert before and files_of(tmp_path) == before


@pytest.fixture
def compiling(monkeypatch, request):
    """-> the modes that torch.compile was asked for. Without a GPU the traced network runs as it is."""
    modes, make, on_gpu = [], torch.compile, request.getfixturevalue("device") == "cuda"

    def compiled(network, dynamic, mode):
        modes.append(mode)
        return make(network, dynamic=dynamic, **({"mode": mode} if on_gpu else {"backend": "eager"}))
    if not on_gpu:
        monkeypatch.setattr("sre2l.nets.precision.why_not_compile", lambda device: None)
    monkeypatch.setattr(torch, "compile", compiled)
    return modes


# What follows compares numbers, so it must not amplify rounding: fp32 (TF32 rounds to 1e-3), SGD with a
# small rate (the first steps of Adam are signs), and a stem that leaves BatchNorm more than one pixel.
EXACT = ("--precision", "fp32", "--stem", "conv3x3-s2")


@pytest.mark.parametrize("stage, steps, device", (
    (train, 2, "cpu"), (squeeze, 1, "cpu"),
    *(pytest.param(*case, "cuda", marks=GPU) for case in ((train, 1), (train, 2), (squeeze, 1)))))
def test_compiled_a_network_trains_as_it_does_without(device, stage, steps, flags_of, compiling, tmp_path):
    """A short last batch, an evaluation between two epochs; of students two seeds: the losses of both."""
    more = ("--arch", "resnet18", "--epochs", 2, "-b", 8, "--lr", 0.01)
    if stage is train:
        more = ("--model", "resnet18", "--seeds", "0,1", "--eval-every", 1, "--sgd", "--learning-rate", 0.01,
                "--gradient-accumulation-steps", steps)
    losses = []
    for name, compiled in (("eager", ()), ("compiled", ("--compile",))):
        flags = flags_of(stage, tmp_path / name)
        run_main(stage, *flags, *EXACT, "--device", device, *more, *compiled)
        losses.append(losses_of(tmp_path / name / ("teacher" if stage is squeeze else "student")))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5 if device == "cpu" else 0.01)
    # CUDA graphs where nothing is accumulated, anew for each seed.
    assert compiling == ["reduce-overhead" if steps == 1 else "default"] * (2 if stage is train else 1)


@GPU
def test_an_evaluation_from_the_gpus_memory_is_that_of_the_cpu():
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(37)]
    images = Images(pixels, rng.integers(0, 5, 37), [], "")
    torch.manual_seed(0)
    network = SmallNet(head_norm=True).float()
    norm = ((0.5,) * 3, (0.2,) * 3)
    wanted = evaluate(network, images, *norm, torch.device("cpu"))
    resident = keep_on_device(images, torch.device("cuda"))
    assert resident.pixels.is_cuda and len(resident) == 37
    assert evaluate(network.cuda(), resident, *norm, torch.device("cuda"), 8) == wanted


def check_parameters_equal(one, two):
    """To the rounding of float64 on a GPU. Running statistics are not compared."""
    for key, value in one.items():
        if "running" not in key and "tracked" not in key:
            assert (two[key] - value).abs().max() <= 1e-9 * max(1, value.abs().max()), key


@GPU
@pytest.mark.parametrize("steps", (2, 4))
def test_two_processes_on_a_gpu_train_the_student_of_one_in_fp64(steps, labelled):
    """With the GPU's fused optimiser and NHWC; over gloo, since NCCL wants a GPU for each process."""
    root, flags = labelled
    flags = (*flags, "--device", "cuda", "--model", "mobilenet_v3_small", "--sgd", "--learning-rate", 0.01,
             "--gradient-accumulation-steps", steps)
    models = []
    for processes in (1, 2):
        folder = root / f"gpu64_{steps}_{processes}"
        done = run("tests.fp64", "validate.train", *flags, "--output-dir", folder, processes=processes)
        assert done.returncode == 0, done.stderr
        models.append(torch.load(folder / "seed0" / "checkpoint.pth")["model"])
    check_parameters_equal(*models)


@GPU
def test_two_processes_on_a_gpu_train_the_teacher_of_one_in_fp64(labelled, teacher_flags):
    """SyncBatchNorm: statistics over the whole batch, also where the last one is short. The network has no
    dropout, whose masks differ between processes."""
    root, _ = labelled
    flags = (*teacher_flags, "--device", "cuda", "--arch", "resnet18", "--stem", "torchvision", "--epochs", 2,
             "-b", 8, "--lr", 0.01)
    models = []
    for processes in (1, 2):
        folder = root / f"sync_{processes}"
        done = run("tests.fp64", "squeeze.squeeze", *flags, "--name", folder, processes=processes)
        assert done.returncode == 0, done.stderr
        assert not re.search("BatchNorm sees what one process has", done.stdout)
        models.append(torch.load(folder / "teacher" / "teacher.pth")["model"])
    check_parameters_equal(*models)
    for key, value in models[0].items():
        assert (models[1][key] - value).abs().max() <= 1e-9 * max(1, value.abs().max()), key
