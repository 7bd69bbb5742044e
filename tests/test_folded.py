"""The teacher as relabel runs it on a GPU: BatchNorm folded into convolutions gives the network's own logits; default and fallback of the precision."""
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.proxy import TraceError

from relabel import half
from sre2l.kernels.cpu.convs import host_kernels
from sre2l.kernels.folded import Folded, fold
from sre2l.kernels.fuse import fuse
from sre2l.kernels.cpu.host import host_network
from sre2l.kernels.norms import Norm
from tests.helpers import refused, run_main
from tests.nets import calibrated
from tests.oddnets import PATTERNS, SIZE, OddNet
from tests.parity import network_of
from tests.test_relabel_precision import flags, manifest  # noqa: F401 (flags is a fixture)

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
PARTS = {"resnet18": (17, 3), "mobilenet_v2": (0, 52), "googlenet": (57, 0), "densenet121": (59, 62), "small": (1, 2)}  # folded, Norms left

UNTRACEABLE, MISUNDERSTOOD = ("decides", "class of its own"), ("changed under another name", "changed without a name", "sum under another name")


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
    layers = {module: (0.0, 0.0) for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    traced, _ = fuse(network, layers, size, on_gpu=on_gpu, forward_only=True)
    fold(traced, torch.float64)
    return traced


def count(network, kind):
    return sum(isinstance(module, kind) for module in network.modules())


@pytest.mark.parametrize("arch", PARTS)
def test_a_folded_network_computes_what_the_network_computes(arch, cudnn):
    network = network_of(arch, 32)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    traced, images = folded(network, 32), torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        wanted, found = network(images), traced(images)
    assert (found - wanted).norm() <= 1e-12 * wanted.norm()
    assert (count(traced, Folded), count(traced, Norm)) == PARTS[arch] and not count(traced, nn.modules.batchnorm._BatchNorm)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("pattern", ("residual", "residual in place", "layer twice", "shortcut", "two norms", "hardtanh", "pool, two ways"))
def test_what_does_not_fold_stays_right(pattern, cudnn):
    torch.manual_seed(1)
    network = calibrated(OddNet(PATTERNS[pattern]), SIZE, 2)
    images = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    with torch.inference_mode():
        wanted = network(images)
        assert (folded(network, SIZE)(images) - wanted).norm() <= 1e-12 * wanted.norm()


@pytest.mark.parametrize("what", (*PARTS, *PATTERNS))
def test_the_form_for_a_cpu_computes_what_the_network_computes(what):
    """Whatever else reads a convolution's result, before or after the norm that writes over it; what torch.fx gets wrong, half.py's comparison shows."""
    if host_kernels(torch.float32)[0] is None:
        pytest.skip(host_kernels(torch.float32)[1])
    torch.manual_seed(1)
    network = network_of(what, 32) if what in PARTS else calibrated(OddNet(PATTERNS[what]), SIZE, 2)
    images = torch.randn(2, 3, *(32 if what in PARTS else SIZE,) * 2, dtype=torch.float64)
    with torch.inference_mode():
        wanted = network(images)
        if what in UNTRACEABLE:
            with pytest.raises((RuntimeError, TraceError)):
                host_network(network.float(), images.shape[2])
            return
        form = host_network(network.float(), images.shape[2])
        found = [form(images.float()).double() for _ in range(2)]
    if what in MISUNDERSTOOD:
        assert half.distance(found[0], wanted)["kl_t20"] > 1000 * half.SAME_KL
        return
    assert torch.equal(*found) and (found[0] - wanted).norm() <= 2e-5 * wanted.norm()
    written_over = sum(isinstance(module, Norm) and module.in_place for module in form.modules())
    assert what not in ("resnet18", "mobilenet_v2") or written_over == {"resnet18": 20, "mobilenet_v2": 52}[what]


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


def test_a_form_that_cannot_be_made_or_is_too_far_off_gives_way_to_the_next(flags, tmp_path, monkeypatch):  # noqa: F811
    """On a GPU the default is fp16 in its fastest form that is close enough; here both are forms of a CPU's."""
    forms, made = half.forms_of, []

    def cannot():
        made.append("cannot")
        raise RuntimeError("no such kernel")

    def far(network):
        made.append("far")
        other = forms(network, 32, "bf16")["as it is"]()
        list(other.parameters())[-1].data[0] += 5  # the bias of the first class
        return other

    monkeypatch.setattr(half, "forms_of", lambda network, size, precision: {"cannot": cannot, "far": lambda: far(network),
                                                                           "as it is": forms(network, size, precision)["as it is"]})
    run_main(*flags, "--precision", "bf16")
    found = manifest(tmp_path / "run" / "labels")["half_against_fp32"]
    assert made == ["cannot", "far"] and (found["form"], found["failed"]) == ("as it is", "cannot: RuntimeError: no such kernel")
    assert "at T = 20; not cannot: RuntimeError: no such kernel" in (tmp_path / "run" / "labels.log.txt").read_text()


@pytest.mark.parametrize("deterministic, statistics, names", ((False, True, ["BatchNorm folded", "as it is"]), (True, True, ["as it is"]),
                                                              (False, False, ["as it is"])))
def test_under_deterministic_and_with_batch_statistics_nothing_is_folded(deterministic, statistics, names, monkeypatch):
    """torch's fused convolutions take cuDNN's kernels whether they repeat or not; statistics of each batch are in no weights."""
    layers = [nn.BatchNorm2d(3, track_running_stats=statistics)]
    network = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(is_cuda=True)]), modules=lambda: layers)
    monkeypatch.setattr(half, "why_no_triton", lambda: None)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    assert list(half.forms_of(network, 32, "fp16")) == names


def test_a_folder_goes_on_in_the_precision_it_was_begun_in(flags, tmp_path, monkeypatch):  # noqa: F811
    """Where that is too far off, as on another GPU, no flag is blamed that nobody gave."""
    run_main(*flags, "--precision", "bf16")
    with monkeypatch.context() as patch:
        patch.setattr(half, "HALF_KL", 1e-30)
        message = refused(*flags, "--epochs", 3)
    assert "these labels were begun in it elsewhere" in message and "--precision" not in message
    run_main(*flags, "--epochs", 3)
    assert manifest(tmp_path / "run" / "labels")["precision"] == "bf16"
    assert len(list((tmp_path / "run" / "labels").glob("epoch_*/*.tar"))) == 9


@GPU
@pytest.mark.parametrize("asked, form", ((None, "BatchNorm folded"), ("fp16", "BatchNorm folded"), ("tf32", None)))
def test_on_the_gpu_the_folded_teacher_in_fp16_is_the_default(flags, tmp_path, asked, form):  # noqa: F811
    on_gpu = [flag if flag != "cpu" else "cuda" for flag in flags]
    run_main(*on_gpu, *(("--precision", asked) if asked else ()))
    found = manifest(tmp_path / "run" / "labels")
    assert found["precision"] == (asked or "fp16") and (found["half_against_fp32"] or {"form": None})["form"] == form


@GPU
@pytest.mark.parametrize("arch", ("resnet18", "resnet50", "mobilenet_v2", "googlenet", "densenet121"))
def test_on_the_gpu_a_folded_network_computes_what_the_network_computes(arch):
    network = network_of(arch, 64).float().cuda().to(memory_format=torch.channels_last)
    images = torch.randn(8, 3, 64, 64, device="cuda").contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        wanted = network(images)
        forms = {name: make()(images.half()).float() for name, make in half.forms_of(network, 64, "fp16").items()}
    error = {name: ((found - wanted).norm() / wanted.norm()).item() for name, found in forms.items()}
    assert error["BatchNorm folded"] < max(0.01, 2 * error["as it is"])
