"""Networks of the user's own, the small ones of the field, and networks without BatchNorm."""
import json
import math
import os
import sys

import pytest
import torch

from recover import recover
from recover.engines import Matched, make_engine
from recover.objective import Weights
from relabel import relabel
from report import estimate
from squeeze import squeeze
from sre2l.data.datasets import DATASETS
from sre2l.nets.functions import call_function, load_file, source_sha256
from sre2l.nets.models import build_for, build_network, check_shapes
from sre2l.nets.teacher import load_teacher
from sre2l.run.errors import UserError
from sre2l.run.paths import student_name
from tests.helpers import SMALL, bare_checkpoint, noise_folder, refused, run_main
from tests.nets import calibrated
from tests.parity import check_parity
from tests.test_processes import run
from tests.worlds import NAMES, common, squeeze_flags, train_flags
from validate import random_real, score, train

NET = """
import pathlib
from torch import nn
from layers import block  # a file beside this one

pathlib.Path(__file__).with_name("was_run").touch()


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.block = block(8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.block(x).mean((2, 3)))
"""
LAYERS = """
from torch import nn


def block(width):
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
"""
TWO = """
from torch import nn


class Net(nn.Linear):
    def __init__(self, num_classes):
        super().__init__(32, num_classes)

    def forward(self, x):
        return x, x
"""
VIT = """
from torchvision.models import VisionTransformer


def vit(num_classes):
    return VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32,
                             num_classes=num_classes)
"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Real images of noise and nets.py with a file beside it, in the folder where the user stands."""
    noise_folder(tmp_path / "real" / "train", NAMES, 3)
    noise_folder(tmp_path / "real" / "val", NAMES, 2, seed=1)
    (tmp_path / "nets.py").write_text(NET)
    (tmp_path / "layers.py").write_text(LAYERS)
    (tmp_path / "vit.py").write_text(VIT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_images_and_labels(world, arch):
    """Squeeze, recover, relabel, each an epoch or an iteration."""
    run_main(*squeeze_flags(world, "--arch", arch))
    run_main(recover, *common(world), "--arch", arch, "--iteration", 2, "--ipc-end", 2, "--batch-size", 20,
             "--allow-chance")
    run_main(relabel, *common(world), "--arch", arch, "--epochs", 1, "-b", 10, "-j", 0, "--allow-chance")


def test_a_class_in_a_file_goes_through_all_stages_and_the_control(world, monkeypatch):
    make_images_and_labels(world, "nets.py:Net")
    log = (world / "run" / "images.log.txt").read_text()
    assert "fast engine" in log
    flags = [*train_flags(world)[1:], "--model", "nets.py:Net"]
    run_main(train, *flags)
    results = json.loads((world / "run" / "student_nets-Net" / "results.json").read_text())
    assert results["protocol"]["model"] == results["protocol"]["labels"]["teacher"]["arch"] == "nets.py:Net"

    # The files have moved: the same network by another path. The control runs what is typed, not what the
    # records name.
    (world / "code").mkdir()
    for name in ("nets.py", "layers.py"):
        (world / name).rename(world / "code" / name)
    flags[-1] = "code/nets.py:Net"
    run_main(train, *flags)
    control = (random_real, *common(world)[:4], "--real-data", world / "real", "--model", "code/nets.py:Net")
    scores = (score, *common(world)[:4], *control[-2:], "--seeds", 0, "--real-hard", 50)
    for command in (control, scores):
        assert "names nets.py:Net, code that runs only where you name it yourself" in refused(*command)
        assert "nets.py:Net, --arch or --model says other.py" in refused(*command, "--arch", "other.py:Net")
    run_main(*control, "--arch", "code/nets.py:Net")
    assert (world / "run" / "random_real" / "student_nets-Net" / "results.json").exists()

    # An edited file is another network, and so is one whose neighbour has been edited.
    edits = {"nets.py": NET.replace("mean((2, 3))", "amax((2, 3))"), "layers.py": LAYERS + "# edited\n"}
    for name, text in edits.items():
        before = (world / "code" / name).read_text()
        (world / "code" / name).write_text(text)
        assert "model_sha256: there" in refused(train, *flags)
        assert "arch_sha256: there" in refused(*squeeze_flags(world, "--arch", "code/nets.py:Net"))
        teacher = world / "run" / "teacher" / "teacher.pth"
        student = world / "run" / "student_nets-Net" / "seed0" / "checkpoint.pth"
        for command in ((recover, "--dry-run", "--arch"), (relabel, "--allow-chance", "--arch"),
                        (train, "--evaluate", teacher, "--val-dir", "real", "--model"),
                        (train, "--evaluate", student, "--val-dir", "real", "--model")):
            found = refused(command[0], *common(world), *command[1:], "code/nets.py:Net")
            assert "nets.py:Net, or a file beside it, has been edited since" in found
        (world / "code" / name).write_text(before)


def test_the_top1_of_an_edited_network_is_measured_again(world, capsys):
    """Of a teacher from before its checkpoint said what its code was."""
    run_main(*squeeze_flags(world, "--arch", "nets.py:Net"))
    path = world / "run" / "teacher" / "teacher.pth"
    teacher = torch.load(path)
    assert len(teacher.pop("arch_sha256")) == 64
    torch.save(teacher, path)
    flags = (*common(world), "--arch", "nets.py:Net", "--val-dir", world / "real", "--allow-chance",
             "--iteration", 1, "--ipc-end", 1, "--overwrite")
    for text in (NET, NET.replace("mean((2, 3))", "amax((2, 3))")):
        (world / "nets.py").write_text(text)
        run_main(recover, *flags)
        assert ("as squeeze measured" in capsys.readouterr().out) == (text == NET)


def test_files_beside_two_networks_may_have_one_name(tmp_path, monkeypatch):
    """Also while the networks are made anew in turn; an import within the function finds its own, too."""
    names = {}
    for folder, width in (("a", 5), ("b", 9)):
        (tmp_path / folder / "blocks").mkdir(parents=True)
        (tmp_path / folder / "blocks" / "sizes.py").write_text(f"WIDTH = {width}\n")
        (tmp_path / folder / "deep.py").write_text(f"DEPTH = {width + 1}\n")
        (tmp_path / folder / "n.py").write_text(
            "from torch import nn\nfrom blocks.sizes import WIDTH\ndef f(num_classes):\n"
            "    from deep import DEPTH\n    return nn.Sequential(nn.Linear(DEPTH, WIDTH))\n")
        names[f"{tmp_path}/{folder}/n.py:f"] = width
    digests = set()
    for name, width in [*names.items()] * 2:
        network = call_function(name, 10)[0]
        assert (network.in_features, network.out_features) == (width + 1, width)
        digests.add(source_sha256(name))
    assert len(digests) == 2
    (tmp_path / "b" / "blocks" / "sizes.py").write_text("WIDTH = 9  # edited\n")
    assert source_sha256(name) not in digests
    assert str(tmp_path / "a") not in sys.path[:1]  # our own modules come first again


def test_an_edit_is_seen_whatever_the_clock_says(tmp_path, monkeypatch):
    """Python's compiled files are known by a file's time and size."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for width in (3, 7):
        (tmp_path / "n.py").write_text(f"from torch.nn import Linear\n\ndef f(num_classes): "
                                       f"return Linear({width}, 2)")
        os.utime(tmp_path / "n.py", (1e9, 1e9))
        assert call_function(f"{tmp_path}/n.py:f", 10).in_features == width


RUDE = """
import os, torch
from torch import nn
print("hello")
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
os.chdir("/")


def f(num_classes):
    print("here")
    torch.set_default_dtype(torch.float64)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes)).float()
"""


def test_what_the_users_code_prints_and_changes_is_not_ours(world, capsys):
    (world / "rude.py").write_text(RUDE)
    run_main(*train_flags(world, "--dry-run", "--model", "rude.py:f"))
    printed = capsys.readouterr()
    assert json.loads(printed.out)["settings"]["model"] == "rude.py:f"
    assert printed.err.count("hello") == 1 and "here" in printed.err
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
    assert os.getcwd() == str(world)


DRAWN = """
import random
import numpy as np
import torch
from torch import nn


def f(num_classes):
    network = nn.Linear(3, 2)
    network.weight = nn.Parameter(torch.tensor(np.random.rand(2, 3)).float() + random.random())
    return network


def by_process(num_classes):
    import os
    network = nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))
    nn.init.constant_(network[1].bias, os.getpid())
    return network
"""


def test_weights_that_numpy_and_python_draw_depend_on_the_seed_alone(world):
    (world / "drawn.py").write_text(DRAWN)
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(call_function(f"{world}/drawn.py:f", 10).weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    flags = squeeze_flags(world, "--arch", "drawn.py:by_process")[1:]
    ended = run("squeeze.squeeze", *flags, processes=2)
    assert "its weights are others in each process" in ended.stderr and ended.returncode
    assert not (world / "run").exists()


def test_no_checkpoint_runs_code(world):
    run_main(*squeeze_flags(world, "--arch", "nets.py:Net"))
    marker = world / "was_run"
    marker.unlink()
    load_file.cache_clear()  # so that a second load would run it
    path = world / "run" / "teacher" / "teacher.pth"
    for stage, *flags in ((recover,), (relabel, "--data", world / "real" / "val"), (recover, "--dry-run")):
        message = refused(stage, *common(world), *flags)
        assert "its network is nets.py:Net" in message and "type --arch PATH/nets.py:Net" in message
    assert "type --arch" in refused(train, *common(world), "--evaluate", path, "--val-dir", world / "real")
    assert not marker.exists()
    (world / "other.py").write_text(NET)
    message = refused(recover, *common(world), "--arch", "other.py:Net")
    assert "the checkpoint says nets.py:Net, --arch or --model says other.py:Net" in message
    assert not marker.exists()
    run_main(train, *common(world), "--evaluate", path, "--val-dir", world / "real", "--model", "nets.py:Net")
    assert marker.exists()


TWO_IN_TRAINING = "(x, x) if self.training else super().forward(x[:, 0, 0])"
LINEAR = """from torch import nn
def f(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))"""
FAULTS = {
    "no file": ("none.py:Net", "", "none.py: cannot be read (No such file"),
    "no function": ("a.py:Nett", "class Net: pass", "a.py has no function Nett; did you mean Net?"),
    "no such module": ("none_such.nets:Net", "", "there is no module none_such; install it"),
    "no such module in a package": ("torchvision.none:f", "", "there is no module torchvision.none"),
    "a module that a file needs": ("a.py:f", "import none_such", "needs the module none_such, which is not"),
    "no import": ("a.py:f", "x = 1 / 0", "cannot be imported (ZeroDivisionError: division by zero, in a.py "
                                         "line 1)"),
    "no syntax": ("a.py:f", "x = 1\ndef f(:", "invalid syntax (a.py, line 2), in a.py line 2)"),
    "an end": ("a.py:f", "import sys\nsys.exit(0)", "cannot be imported (SystemExit: 0, in a.py line 2)"),
    "an end of the call": ("a.py:f", "def f(num_classes): exit()", "num_classes=10 (SystemExit: None, in"),
    "no name of a module": ("a.py:f", "raise ModuleNotFoundError('x')", "(ModuleNotFoundError: x, in a.py"),
    "a module of a like name": ("layers_of:f", "", "needs the module lay, which is not installed"),
    "a number": ("a.py:f", "f = 3", "f is a int, no function"),
    "no num_classes": ("a.py:f", "def f(n): pass", "cannot be called with num_classes=10 alone"),
    "more arguments": ("a.py:f", "def f(num_classes, depth): pass",
                       "(missing a required argument: 'depth'); write a function of num_classes"),
    "a fault of its own": ("a.py:f", "def f(num_classes):\n    return {}[num_classes]",
                           "fails with num_classes=10 (KeyError: 10, in a.py line 2)"),
    "no network": ("a.py:f", "def f(num_classes): return 3", "returns a int, where a network"),
    "no weights": ("a.py:f", "from torch import nn\ndef f(num_classes): return nn.Flatten()",
                   "returns a network without weights"),
    "other outputs": ("a.py:f", "from torch import nn\ndef f(num_classes): return nn.Conv2d(3, 5, 3)",
                      "makes (1, 5, 30, 30) of an image of 32x32 pixels, where logits (1, 10) are wanted"),
    "two outputs": ("a.py:Net", TWO, "makes a tuple of an image of 32x32 pixels, where logits (1, 10) are"),
    "two outputs in training": ("a.py:Net", TWO.replace("x, x", TWO_IN_TRAINING),
                                "makes a tuple of 2 images of 32x32 pixels in training, where"),
    "outputs of torchvision's own in training": (
        "a.py:f", "import torchvision\ndef f(num_classes): return torchvision.models.googlenet("
        "num_classes=num_classes, init_weights=False)", "makes a GoogLeNetOutputs of 2 images"),
    "frozen": ("a.py:f", f"{LINEAR}.requires_grad_(False)", "cannot be trained (RuntimeError"),
    "the same again": ("a.py:f", LINEAR.replace("def f(num_classes): return", "num_classes = 10\nnet =")
                       + "\ndef f(num_classes): return net", "returns the same network once more"),
    "lazy": ("a.py:f", LINEAR.replace("Linear(3072, ", "LazyLinear("), "its 1.weight is of a lazy layer"),
    "without values": ("a.py:f", f"{LINEAR}.to('meta')", "its 1.weight is on torch's device 'meta'"),
    "inference": ("a.py:f", LINEAR.replace("def", "import torch\n@torch.inference_mode()\ndef"),
                  "its 1.weight is made in torch.inference_mode"),
    "TorchScript": ("a.py:f", f"import torch\n{LINEAR})".replace("nn.Seq", "torch.jit.script(nn.Seq"),
                    "returns a network of TorchScript"),
    "a state of its own": ("a.py:Net", TWO.replace("x, x", "x") + "    def get_extra_state(self): return 3\n",
                           "its _extra_state is a int, and no tensor"),
    "other images": ("a.py:f", "from torch import nn\ndef f(num_classes): return nn.Linear(9, num_classes)",
                     "cannot take images of 32x32 pixels (RuntimeError"),
    "no name": ("a.py", "", "a network of your own is named as PATH.py:function"),
    "nearly a name": ("convnett3", "", "did you mean convnet3"),
    "a module without a function": ("timm.models.resnet10t", "", "network of ours; a network of your own is"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_network_is_one_sentence(fault, world, monkeypatch):
    name, source, message = FAULTS[fault]
    (world / "a.py").write_text(source)
    monkeypatch.syspath_prepend(world)
    (world / "layers_of.py").write_text("import lay")
    for flags in (squeeze_flags(world, "--arch", name), squeeze_flags(world, "--dry-run", "--arch", name),
                  train_flags(world, "--dry-run", "--model", name)):
        found = refused(*flags)
        assert message in found and "\n" not in found, found


def test_flags_that_are_torchvisions_alone_are_refused(world):
    for name in ("nets.py:Net", "resnet18-32"):
        found = refused(*squeeze_flags(world, "--arch", name, "--stem", "conv3x3"))
        assert "has first layers of its own: --stem conv3x3 is for torchvision's" in found
        found = refused(*squeeze_flags(world, "--dry-run", "--arch", name, "--weights", "IMAGENET1K_V1"))
        assert "--weights IMAGENET1K_V1: torchvision has none of" in found
    with pytest.raises(UserError, match="torchvision has no IMAGENET1K_V1 weights for convnet3"):
        load_teacher(DATASETS["imagenet1k"], None, "convnet3")


def test_an_estimate_finds_the_file_and_a_student_without_batchnorm(world, monkeypatch, capsys):
    """The plans of run.sh have a file's name alone."""
    plans = {}
    networks = {squeeze: "--arch", recover: "--arch", relabel: "--arch", train: "--model"}
    for stage, flag in networks.items():
        run_main(stage, "--dataset", "digits", "--name", world / "run", "--dry-run", flag, "nets.py:Net")
        plans[stage.__name__.split(".")[0]] = json.loads(capsys.readouterr().out)
    measured = []

    def measure(*args):
        measured.append(args)
        return estimate.Rates(1, 1, 1)
    measure_rates = estimate.measure_rates
    monkeypatch.setattr(estimate, "measure_rates", measure)
    cpu = torch.device("cpu")
    typed = str(world / "nets.py:Net")
    estimate.estimate(plans, DATASETS["digits"], None, cpu, [typed])
    assert [args[:2] for args in measured] == [(typed, "torchvision")]
    rates = measure_rates("vit.py:vit", "torchvision", DATASETS["digits"], 4, cpu)
    assert rates.train > rates.forward > 0 and math.isnan(rates.recover)


def test_a_students_folder_has_a_safe_name():
    names = {"resnet18": "student_resnet18", "/a/b/nets.py:Net": "student_nets-Net",
             "timm.models:resnet10t": "student_timm.models-resnet10t", "convnet3-w32": "student_convnet3-w32"}
    assert {name: student_name(name) for name in names} == names


@pytest.mark.parametrize("name", ("resnet10t", "mobilenetv3_small_050"))
def test_two_of_timms_networks_are_computed_by_the_fast_engine(name):
    """make_engine takes it only where its loss and gradient are the plain engine's; so does this test."""
    pytest.importorskip("timm")
    network, stem = build_network(f"timm.models:{name}", 5, "conv3x3")
    assert stem == "torchvision"
    network = calibrated(network, 40, 2)
    check_parity(network, 40, 2)
    matched = [Matched(network.float(), Weights(0.1, 10.0, 0, 0))]
    assert make_engine("fast", matched, None, 40, "fp32")[0].name == "fast"


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


# Published numbers of parameters for ten classes, of the code that most papers of the field took.
# torchvision's DenseNet has a BatchNorm of 64 channels more; its MobileNetV2 has no 1x1 convolution in the
# first block, and none in the shortcuts of the groups with stride 1.
SHORTCUTS = sum(i * o + 2 * o for i, o in ((32, 16), (16, 24), (64, 96), (160, 320)))
PUBLISHED = {"resnet18": 11_173_962, "resnet50": 23_520_842, "shufflenet_v2_x0_5": 352_042,
             "mobilenet_v2": 2_296_922 - SHORTCUTS - (32 * 32 + 64),
             "densenet121": 6_956_298 + 128, "wrn16_2": 691_674}


@pytest.mark.parametrize("form", ("-32", "-64"))
@pytest.mark.parametrize("name", PUBLISHED)
def test_small_forms_have_the_published_weights_and_strides(name, form):
    network, stem = build_network(name + form, 10, "conv3x3")
    assert count(network) == PUBLISHED[name] and stem == "torchvision"
    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    sizes = []
    layers[-1].register_forward_hook(lambda layer, inputs, output: sizes.append(output.shape[-1]))
    for size in (32, 64):
        check_shapes(network, name, 10, size)
    last = 8 if name == "wrn16_2" else 4
    assert sizes == ([last, 2 * last] if form == "-32" else [last // 2, last])


@pytest.mark.parametrize("name, size, published", [
    ("convnet3", 32, 320_010), ("convnet3-w32", 32, None), ("convnet1-w32", 32, None),
    ("convnet4", 64, None), ("convnet6", 224, None)])
def test_convnets_have_the_papers_layers(name, size, published):
    """Per block a convolution with bias and a BatchNorm; a linear layer over what the pools leave."""
    network, _ = build_network(name, 10, "torchvision", size=size)
    depth, width = int(name[7]), 32 if name.endswith("-w32") else 128
    channels = [3] + [width] * depth
    wanted = sum(9 * i * o + o + 2 * o for i, o in zip(channels, channels[1:]))
    wanted += 10 * (width * (size // 2 ** depth) ** 2 + 1)
    assert count(network) == wanted and published in (None, wanted)
    check_shapes(network, name, 10, size)
    keys = {f"layers.norm.{depth - 1}.running_var", "layers.conv.0.weight", "classifier.bias"}
    assert keys <= network.state_dict().keys()


def test_a_convnet_is_made_for_the_size_of_its_images(world):
    with pytest.raises(UserError, match="nothing is left of them; take convnet5 or less"):
        build_network("convnet6", 10, "torchvision", size=32)
    run_main(*squeeze_flags(world, "--arch", "convnet2-w32", "--input-size", 24))
    flags = (*common(world), "--iteration", 1, "--jitter", 4, "--ipc-end", 1, "--batch-size", 10,
             "--allow-chance")
    assert "cannot take images of 32x32 pixels" in refused(recover, *flags, "--input-size", 32)
    run_main(recover, *flags)
    manifest = json.loads((world / "run" / "images.manifest.json").read_text())
    assert manifest["settings"]["size"] == 24


@pytest.mark.parametrize("name", ("convnet2-w32", "wrn16_2-32", "mobilenet_v2-64"))
def test_small_networks_are_computed_by_the_fast_engine(name):
    network, _ = build_network(name, 5, "torchvision")
    check_parity(calibrated(network, 32, 2), 32, 2)


def test_a_student_without_batchnorm_trains_and_a_teacher_without_it_only_labels(world):
    make_images_and_labels(world, SMALL)
    run_main(*train_flags(world, "--model", "vit.py:vit", "--gradient-accumulation-steps", 2))
    results = json.loads((world / "run" / "student_vit-vit" / "results.json").read_text())
    assert 0 <= results["top1"]["mean"] <= 100

    # Recover refuses such a teacher, and its plan does so before it is trained.
    for name in ("squeezenet1_1", "vit.py:vit"):
        message = refused(recover, *common(world, "other"), "--dry-run", "--arch", name)
        assert "no BatchNorm layer" in message and "such as resnet18, mobilenet_v2" in message
    teacher = bare_checkpoint(world / "s.pth", "squeezenet1_1")
    run_main(relabel, *common(world), "--fkd-path", world / "labels2", "--teacher", teacher, "--arch",
             "squeezenet1_1", "--epochs", 1, "-b", 10, "-j", 0, "--allow-chance")
    assert (world / "labels2" / "epoch_0" / "batch_1.tar").exists()


def test_torchvisions_transformers_are_built_for_the_size_of_the_images():
    spec = DATASETS["cifar10"]
    for name in ("swin_t", "convnext_tiny", "vit_b_32"):
        network, _ = build_for(spec, name, None)
        check_shapes(network, name, 10, 32)
    with pytest.raises(UserError, match="vit_b_32 cannot take images of 40x40 pixels"):
        build_network("vit_b_32", 10, "torchvision", size=40)
