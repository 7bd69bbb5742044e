"""The teacher as relabel runs it: its logits with BatchNorm folded, the default precision, the fallback."""
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.proxy import TraceError

from relabel import teacher_form
from sre2l.kernels.cpu.convs import host_kernels
from sre2l.kernels.cpu.host import host_network
from sre2l.kernels.folded import Folded, fold
from sre2l.kernels.fuse import fuse
from sre2l.kernels.norms import Norm, statistics_layers
from tests.helpers import refused, run_main
from tests.nets import calibrated
from tests.oddnets import PATTERNS, SIZE, odd_network
from tests.parity import network_of
from tests.test_relabel_precision import flags, manifest  # noqa: F401 (flags is a fixture)

GPU = pytest.mark.gpu
PARTS = {"resnet18": (17, 3), "mobilenet_v2": (0, 52), "googlenet": (57, 0), "densenet121": (59, 62),
         "small": (1, 2)}  # folded, Norms left

UNTRACEABLE = ("decides", "class of its own")
MISUNDERSTOOD = ("changed under another name", "changed without a name", "sum under another name")


def conv_relu(x, weight, bias, *geometry):
    """What cuDNN computes, for a CPU."""
    return F.relu(F.conv2d(x, weight, bias, *geometry))


def conv_add_relu(x, weight, other, alpha, bias, *geometry):
    assert alpha == 1
    return F.relu(F.conv2d(x, weight, bias, *geometry) + other)


@pytest.fixture
def cudnn(monkeypatch):
    """cuDNN's two operations on a CPU."""
    monkeypatch.setattr(torch, "cudnn_convolution_relu", conv_relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", conv_add_relu)


def folded(network, size, on_gpu=False):
    layers = dict.fromkeys(statistics_layers(network), (0.0, 0.0))
    traced, _ = fuse(network, layers, size, on_gpu=on_gpu, forward_only=True)
    fold(traced, torch.float64)
    return traced


def count(network, kind):
    return sum(isinstance(module, kind) for module in network.modules())


def network_and_images(what):
    """-> (one of PARTS or a pattern in fp64, three images that it takes)."""
    network = network_of(what, 32) if what in PARTS else odd_network(what)
    size = 32 if what in PARTS else SIZE
    g = torch.Generator().manual_seed(2)
    return network, torch.randn(3, 3, size, size, dtype=torch.float64, generator=g)


@pytest.mark.parametrize("what", (*PARTS, "residual", "residual in place", "layer twice", "shortcut",
                                  "two norms", "hardtanh", "pool, two ways"))
def test_a_folded_network_computes_what_the_network_computes(what, cudnn):
    """Also where something does not fold."""
    network, images = network_and_images(what)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    traced = folded(network, images.shape[2])
    with torch.inference_mode():
        wanted = network(images)
        found = traced(images)
    assert (found - wanted).norm() <= 1e-12 * wanted.norm()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    if what in PARTS:
        assert (count(traced, Folded), count(traced, Norm)) == PARTS[what]
        assert not count(traced, nn.modules.batchnorm._BatchNorm)


@pytest.mark.parametrize("what", (*PARTS, *PATTERNS))
def test_the_form_for_a_cpu_computes_what_the_network_computes(what):
    """Whatever else reads a convolution's result; where torch.fx gets it wrong, the comparison shows it."""
    if host_kernels(torch.float32)[0] is None:
        pytest.skip(host_kernels(torch.float32)[1])
    network, images = network_and_images(what)
    with torch.inference_mode():
        wanted = network(images)
        if what in UNTRACEABLE:
            with pytest.raises((RuntimeError, TraceError)):
                host_network(network.float(), images.shape[2])
            return
        rounding = (network.float()(images.float()).double() - wanted).norm()  # torch's own in fp32
        form = host_network(network, images.shape[2])
        found = [form(images.float()).double() for _ in range(2)]
    if what in MISUNDERSTOOD:
        assert teacher_form.distance(found[0], wanted)["kl_t20"] > 1000 * teacher_form.SAME_KL
        return
    assert torch.equal(*found) and (found[0] - wanted).norm() <= 2e-5 * wanted.norm() + 2 * rounding
    written_over = sum(isinstance(module, Norm) and module.facts.in_place for module in form.modules())
    assert written_over == {"resnet18": 20, "mobilenet_v2": 52}.get(what, written_over)


class NamedAlike(nn.Module):
    """BatchNorm over the image, which is an argument of the name of a convolution."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3)

    def forward(self, conv):
        return self.conv(self.norm(conv)).mean((2, 3))


def test_a_norm_never_writes_over_the_image():
    network = calibrated(NamedAlike(), SIZE, 2).float()
    if host_kernels(torch.float32)[0] is None:
        pytest.skip(host_kernels(torch.float32)[1])
    images = torch.randn(2, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    with torch.inference_mode():
        host_network(network, SIZE)(images)
    assert torch.equal(images, before)


def test_a_form_that_fails_or_is_far_off_gives_way(flags, tmp_path, monkeypatch):  # noqa: F811
    """The default on a GPU is the fastest form that is close enough; here both are forms of a CPU's."""
    forms, made = teacher_form.forms_of, []

    def cannot():
        made.append("cannot")
        raise RuntimeError("no such kernel")

    def far(network):
        made.append("far")
        other = forms(network, 32, "bf16")["as it is"]()
        list(other.parameters())[-1].data[0] += 5  # the bias of the first class
        return other

    def three_forms(network, size, precision):
        plain = forms(network, size, precision)["as it is"]
        return {"cannot": cannot, "far": lambda: far(network), "as it is": plain}

    monkeypatch.setattr(teacher_form, "forms_of", three_forms)
    run_main(*flags, "--precision", "bf16")
    found = manifest(tmp_path / "run" / "labels")["half_against_fp32"]
    assert made == ["cannot", "far"]
    assert (found["form"], found["failed"]) == ("as it is", "cannot: RuntimeError: no such kernel")
    log = (tmp_path / "run" / "labels.log.txt").read_text()
    assert "at T = 20; not cannot: RuntimeError: no such kernel" in log


@pytest.mark.parametrize("deterministic, statistics, names", ((False, True, ["BatchNorm folded", "as it is"]),
                                                              (True, True, ["as it is"]),
                                                              (False, False, ["as it is"])))
def test_under_deterministic_and_with_batch_statistics_nothing_is_folded(deterministic, statistics, names,
                                                                         monkeypatch):
    """cuDNN's fused kernels may not repeat; statistics of each batch are in no weights."""
    layers = [nn.BatchNorm2d(3, track_running_stats=statistics)]
    parameter = SimpleNamespace(is_cuda=True)
    network = SimpleNamespace(parameters=lambda: iter([parameter]), modules=lambda: layers)
    monkeypatch.setattr(teacher_form, "why_no_triton", lambda: None)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    assert list(teacher_form.forms_of(network, 32, "fp16")) == names


def test_a_folder_goes_on_in_the_precision_it_was_begun_in(flags, tmp_path, monkeypatch):  # noqa: F811
    """Where that is too far off, as on another GPU, no flag is blamed that nobody gave."""
    run_main(*flags, "--precision", "bf16")
    with monkeypatch.context() as patch:
        patch.setattr(teacher_form, "HALF_KL", 1e-30)
        message = refused(*flags, "--epochs", 3)
    assert "these labels were begun in it elsewhere" in message and "--precision" not in message
    run_main(*flags, "--epochs", 3)
    assert manifest(tmp_path / "run" / "labels")["precision"] == "bf16"
    assert len(list((tmp_path / "run" / "labels").glob("epoch_*/*.tar"))) == 9


@GPU
@pytest.mark.parametrize("requested, form", ((None, "BatchNorm folded"), ("fp16", "BatchNorm folded"),
                                             ("tf32", None)))
def test_on_the_gpu_the_folded_teacher_in_fp16_is_the_default(flags, tmp_path, requested, form):  # noqa: F811
    on_gpu = [flag if flag != "cpu" else "cuda" for flag in flags]
    run_main(*on_gpu, *(("--precision", requested) if requested else ()))
    found = manifest(tmp_path / "run" / "labels")
    assert found["precision"] == (requested or "fp16")
    assert (found["half_against_fp32"] or {"form": None})["form"] == form


@GPU
@pytest.mark.parametrize("arch", ("resnet18", "resnet50", "mobilenet_v2", "googlenet", "densenet121"))
def test_on_the_gpu_a_folded_network_computes_what_the_network_computes(arch):
    network = network_of(arch, 64).float().cuda().to(memory_format=torch.channels_last)
    images = torch.randn(8, 3, 64, 64, device="cuda").contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        wanted = network(images)
        makers = teacher_form.forms_of(network, 64, "fp16")
        forms = {name: make()(images.half()).float() for name, make in makers.items()}
    error = {name: ((found - wanted).norm() / wanted.norm()).item() for name, found in forms.items()}
    assert error["BatchNorm folded"] < max(0.01, 2 * error["as it is"])
