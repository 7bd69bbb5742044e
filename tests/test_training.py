"""Losses, accumulation, schedules, weight decay and evaluation against formulas written out here."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torchvision import transforms

from squeeze import squeeze
from sre2l.data.augment import apply_mix
from sre2l.data.image_folder import Images
from sre2l.data.loader import micro_batches
from sre2l.data.real_images import show
from sre2l.nets.evaluation import evaluate
from sre2l.nets.training import lr_factor, set_lr, weight_decay_groups
from sre2l.run.errors import UserError
from tests.fp64 import show_batch64
from tests.helpers import SMALL, run_main
from tests.nets import SmallNet, like_trained
from tests.worlds import labelled_images
from validate import losses, student, train
from validate.data import find_data, load_stored_batches
from validate.losses import distillation_loss, soft_targets
from validate.protocol import make_optimizer

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def softmax(x):
    return x.exp() / x.exp().sum(1, keepdim=True)


def soft_loss(outputs, logits, temperature, scale=1):
    """KL(softmax(teacher/T), softmax(student/T)): summed over the classes, mean over the rows."""
    p, q = softmax(logits.double() / temperature), softmax(outputs / temperature)
    return scale * (p * (p.log() - q.log())).sum() / len(outputs)


@pytest.mark.parametrize("temperature", (1, 20, 30))
@pytest.mark.parametrize("dtype", (torch.float16, torch.float32))
def test_soft_loss_equals_kl_of_tempered_softmaxes(temperature, dtype):
    """Batch mean, without and with T^2; raw logits in either stored type."""
    logits, outputs = (3 * torch.randn(6, 10)).to(dtype), torch.randn(6, 10, dtype=torch.float64)
    targets = soft_targets(logits, temperature)
    assert (targets - softmax(logits.double() / temperature)).abs().max() < 1e-6
    exact = softmax(logits.double() / temperature)
    for times_t2, scale in ((False, 1), (True, temperature ** 2)):
        loss = distillation_loss(outputs, exact, temperature, times_t2)
        assert loss.item() == pytest.approx(soft_loss(outputs, logits, temperature, scale).item(), rel=1e-10)


def plain_network():
    """Without BatchNorm or dropout, so that micro-batches change nothing."""
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(3 * 32 * 32, 9), nn.Tanh(), nn.Linear(9, 10)
    return nn.Sequential(*layers).double()


def train_on_whole_batches(args):
    """AdamW without weight decay on the loss of all rows of each batch, two epochs -> the network."""
    network, cpu = plain_network(), torch.device("cpu")
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0)
    spec = train.data_spec(args)
    data = find_data(args, spec, cpu)
    mean, std = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (spec.mean, spec.std))
    for batch, pixels, labels in load_stored_batches(args, data, 0, cpu):
        outputs = network(apply_mix((pixels.double() / 255 - mean) / std, labels.mix))
        p, q = soft_targets(labels.logits, 4).double(), softmax(outputs / 4)
        optimizer.param_groups[0]["lr"] = 1e-3 * (1, 0.5)[batch.epoch]
        optimizer.zero_grad()
        ((p * (p.log() - q.log())).sum() / len(pixels)).backward()
        optimizer.step()
    return network


def test_micro_batches_give_the_gradient_and_step_of_the_whole_batch(tmp_path, monkeypatch):
    """Batches of 16, 16 and 8 images in 1, 2, 4 or 8 micro-batches: the weights after six steps, fp64."""
    flags = (*labelled_images(tmp_path, "cutmix"), "--device", "cpu", "--model", SMALL, "-T", 4,
             "--adamw-weight-decay", 0)
    monkeypatch.setattr(student, "build_for", lambda *_: (plain_network(), "torchvision"))
    monkeypatch.setattr(losses, "show_batch", show_batch64)
    monkeypatch.setattr(train, "evaluate", lambda *_, **__: (0.0, 0.0))
    wanted = None
    for steps in (1, 2, 4, 8):
        folder = tmp_path / str(steps)
        run_main(train, *flags, "--gradient-accumulation-steps", steps, "--output-dir", folder)
        if wanted is None:
            args = train.get_args([str(flag) for flag in (*flags, "--output-dir", folder)])
            train.choose_folders(args, tmp_path / "run")
            wanted = train_on_whole_batches(args).state_dict()
        found = torch.load(folder / "seed0" / "checkpoint.pth")["model"]
        assert all((found[key] - value).abs().max() < 1e-10 for key, value in wanted.items())


def test_micro_batches_cover_every_row_once_and_leave_no_single_row():
    for rows in range(1, 60):
        for size in range(1, 70):
            parts = [list(range(rows)[part]) for part in micro_batches(rows, size)]
            assert sum(parts, []) == list(range(rows))
            assert all(len(part) <= size + 1 for part in parts)
            if rows > 1 and size > 1:
                assert min(map(len, parts)) > 1


@pytest.mark.parametrize("epochs, warmup", ((1, 0), (7, 0), (300, 0), (6, 5), (50, 5), (100, 5)))
def test_learning_rates_equal_torchs_schedulers(epochs, warmup):
    """CosineAnnealingLR, after LinearLR(0.01, 5) as Tiny-ImageNet's recipe has it; set_lr sets all groups."""
    def optimizer():
        return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(2)], lr=0.2)
    theirs, ours = optimizer(), optimizer()
    schedule = CosineAnnealingLR(theirs, epochs - warmup)
    if warmup:
        schedule = SequentialLR(theirs, [LinearLR(theirs, 0.01, total_iters=5), schedule], [5])
    for epoch in range(epochs):
        set_lr(ours, 0.2 * lr_factor(epoch, epochs, warmup))
        rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in (ours, theirs)]
        assert rates[0] == pytest.approx(rates[1], rel=1e-6, abs=1e-9)
        theirs.step()
        schedule.step()


def decayed_names(network, decay_all):
    """The names of the parameters that decay by 0.01; every parameter must stand in one group."""
    groups = weight_decay_groups(network, 0.01, decay_all)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert sorted(names[id(p)] for group in groups for p in group["params"]) == sorted(names.values())
    assert {group["weight_decay"] for group in groups} <= {0.0, 0.01}
    return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}


def test_weight_decay_is_on_weights_of_several_dimensions():
    """In a ResNet: convolutions and the head, never BatchNorm or biases; on request everything."""
    network = torchvision.models.resnet18(num_classes=4)
    layers = network.named_modules()
    matrices = {f"{name}.weight" for name, layer in layers if isinstance(layer, (nn.Conv2d, nn.Linear))}
    assert decayed_names(network, False) == matrices and len(matrices) == 21
    assert decayed_names(network, True) == {name for name, _ in network.named_parameters()}


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_students_adamw_is_the_formula(channels_last):
    """In fp64, for weights whose gradients have other strides: depthwise and 1x1 convolutions of images NHWC.
    beta (0.9, 0.999), eps 1e-8; decay 0.01 where there is more than one dimension."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(32, 3))
    args = train.get_args(["--dataset", "digits", "--adamw-lr", "0.1", "--adamw-weight-decay", "0.01"])
    optimizer = make_optimizer(network, args, torch.device("cpu"))
    parameters = list(network.parameters())
    x = [parameter.detach().double() for parameter in parameters]
    m = [torch.zeros_like(value) for value in x]
    v = [torch.zeros_like(value) for value in x]
    for step in range(1, 4):
        images = torch.randn(5, 4, 4, 4)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        network(images).square().sum().backward()
        optimizer.step()
        for i, parameter in enumerate(parameters):
            g = parameter.grad.double()
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g * g
            decay = 0.01 if parameter.ndim > 1 else 0.0
            x[i] = (1 - 0.1 * decay) * x[i] - 0.1 * (m[i] / (1 - 0.9 ** step)) / (
                (v[i] / (1 - 0.999 ** step)).sqrt() + 1e-8)
            torch.testing.assert_close(parameter.detach().double(), x[i], rtol=1e-5, atol=1e-6)


def test_weight_decay_needs_weight_in_the_name():
    """Attention's in_proj_weight decays, a matrix of another name does not."""
    network = nn.Module()
    network.attention, network.positions = nn.MultiheadAttention(4, 2), nn.Parameter(torch.zeros(3, 4))
    assert decayed_names(network, False) == {"attention.in_proj_weight", "attention.out_proj.weight"}


@pytest.mark.parametrize("num_classes, batch_size", ((5, 256), (10, 7), (3, 4)))
def test_top1_and_top5_equal_a_direct_count(num_classes, batch_size):
    """A linear network's scores counted image by image; fewer than five classes too."""
    torch.manual_seed(num_classes)
    rng = np.random.default_rng(num_classes)
    items = [rng.integers(0, 256, (6, 6, 3), dtype=np.uint8) for _ in range(30)]
    labels = rng.integers(0, num_classes, 30)
    network = nn.Sequential(nn.Flatten(), nn.Linear(108, num_classes))
    weight, bias = (p.detach().double().numpy() for p in network[1].parameters())
    ranks = []
    for pixels, label in zip(items, labels):
        x = ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1).ravel()
        scores = weight @ x + bias
        ranks.append((scores > scores[label]).sum())
    found = evaluate(network, Images(items, labels, [], ""), MEAN, STD, torch.device("cpu"), batch_size)
    wanted = [100 * np.mean(np.array(ranks) < best) for best in (1, 5)]
    assert found == pytest.approx(wanted, abs=1e-3) and 0 < found[0] < 100


@pytest.mark.parametrize("training", (True, False))
def test_evaluation_runs_in_eval_mode_and_restores_the_mode(training):
    network = like_trained(SmallNet(head_norm=True), 0).float().train(training)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modes = []
    network.bn1.register_forward_hook(lambda layer, *_: modes.append(layer.training))
    images = Images([np.zeros((8, 8, 3), np.uint8)] * 5, np.zeros(5, np.int64), [], "")
    evaluate(network, images, MEAN, STD, torch.device("cpu"), 2)
    assert modes == [False] * 3
    assert all(module.training == training for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


SIZES = ((256, 256), (300, 401), (401, 300), (257, 255), (255, 512), (100, 37), (31, 90), (641, 333),
         (256, 700))


@pytest.mark.parametrize("height, width", SIZES)
def test_evaluation_shows_resize_256_and_the_centre_224(height, width):
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    wanted = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(Image.fromarray(image))
    assert np.array_equal(show(image, 224, 256), np.asarray(wanted))


def test_several_networks_are_trained_one_after_the_other_each_as_if_alone(tmp_path):
    """--arch a,b: the first in teacher/, the second in teacher_b/, with the weights of a run of its own."""
    flags = ("--dataset", "digits", "--epochs", 1, "--device", "cpu", "--workers", 0)
    run_main(squeeze, *flags, "--arch", "convnet1-w8,convnet2-w8", "--name", tmp_path / "both")
    run_main(squeeze, *flags, "--arch", "convnet2-w8", "--name", tmp_path / "alone")
    second = (tmp_path / "both" / "teacher_convnet2-w8" / "teacher.pth").read_bytes()
    assert second == (tmp_path / "alone" / "teacher" / "teacher.pth").read_bytes()
    assert torch.load(tmp_path / "both" / "teacher" / "teacher.pth")["arch"] == "convnet1-w8"


def test_a_second_network_that_cannot_be_built_is_refused_before_the_first_trains(tmp_path):
    with pytest.raises(UserError, match="convnet9 halves images of 32 pixels 9 times"):
        run_main(squeeze, "--dataset", "digits", "--arch", "convnet1-w8,convnet9", "--name", tmp_path / "run")
    assert not (tmp_path / "run").exists()
