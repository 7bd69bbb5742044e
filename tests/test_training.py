"""Losses, accumulation, schedules, weight decay and evaluation against formulas written out here."""
import math
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from tests.nets import SmallNet, like_trained
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torchvision import transforms

from sre2l.data.augment import Mix
from sre2l.data.image_folder import Images
from sre2l.data.real_images import show
from sre2l.nets.training import evaluate, lr_factor, set_lr, weight_decay_groups
from validate.losses import backward_in_micro_batches, distillation_loss, hard_targets, soft_targets
from validate.shares import micro_batches, share_of

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


def test_hard_loss_is_cross_entropy_to_the_mixed_classes():
    """mean_b -(lam log q[y] + (1 - lam) log q[y of the partner])."""
    labels, partner, outputs = torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0]), torch.randn(3, 4, dtype=torch.float64)
    targets, log_q, lam = hard_targets(labels, Mix(partner, 0.25), 4, 32), softmax(outputs).log(), 0.25
    wanted = -sum(lam * log_q[b, labels[b]] + (1 - lam) * log_q[b, labels[partner[b]]] for b in range(3)) / 3
    assert nn.functional.cross_entropy(outputs, targets.double()).item() == pytest.approx(wanted.item(), rel=1e-12)


def plain_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 5)).double()


@pytest.mark.parametrize("rows", (8, 7, 5, 3))
@pytest.mark.parametrize("steps", (1, 2, 4))
def test_micro_batches_give_the_gradient_and_step_of_the_whole_batch(rows, steps):
    """Batch of 8 in 1, 2 or 4 micro-batches, short last batches too: the loss of all rows, written out, fp64."""
    g = torch.Generator().manual_seed(1)
    x, logits = torch.randn(rows, 3, 2, 2, dtype=torch.float64, generator=g), torch.randn(rows, 5, dtype=torch.float64, generator=g)
    whole, split = plain_network(), plain_network()
    loss = soft_loss(whole(x), logits, 4)
    loss.backward()
    total = backward_in_micro_batches(split, partial(distillation_loss, temperature=4), x, softmax(logits / 4), share_of(rows, Mix(), 8 // steps, 0, 1))
    assert total.item() == pytest.approx(loss.item(), rel=1e-6)
    for network in (whole, split):
        torch.optim.AdamW(network.parameters(), 1e-3).step()
    for a, b in zip(whole.parameters(), split.parameters()):
        assert (a.grad - b.grad).abs().max() < 1e-12 and (a - b).abs().max() < 1e-12


def test_micro_batches_cover_every_row_once_and_leave_no_single_row():
    for rows in range(1, 60):
        for size in range(1, 70):
            parts = [list(range(rows)[part]) for part in micro_batches(rows, size)]
            assert sum(parts, []) == list(range(rows))
            assert all(len(part) <= size + 1 for part in parts)
            if rows > 1 and size > 1:
                assert min(map(len, parts)) > 1


@pytest.mark.parametrize("epochs", (1, 7, 300))
def test_learning_rate_is_a_cosine_over_the_epochs(epochs):
    for epoch in range(epochs):
        assert lr_factor(epoch, epochs) == pytest.approx((1 + math.cos(math.pi * epoch / epochs)) / 2, abs=1e-12)
    assert lr_factor(epochs - 1, epochs) > 0


@pytest.mark.parametrize("epochs", (6, 50, 100))
def test_warm_up_and_cosine_equal_torchs_schedulers(epochs):
    """SequentialLR of LinearLR(0.01, 5) and CosineAnnealingLR, as the published Tiny-ImageNet recipe has it; set_lr sets all groups."""
    theirs, ours = (torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(2)], lr=0.2) for _ in range(2))
    schedule = SequentialLR(theirs, [LinearLR(theirs, 0.01, total_iters=5), CosineAnnealingLR(theirs, epochs - 5)], [5])
    for epoch in range(epochs):
        set_lr(ours, 0.2 * lr_factor(epoch, epochs, 5))
        assert [group["lr"] for group in ours.param_groups] == pytest.approx([group["lr"] for group in theirs.param_groups], rel=1e-6, abs=1e-9)
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
    """In a ResNet: convolutions and the head; never BatchNorm or biases; and on everything where asked for."""
    network = torchvision.models.resnet18(num_classes=4)
    matrices = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    assert decayed_names(network, False) == matrices and len(matrices) == 21
    assert decayed_names(network, True) == {name for name, _ in network.named_parameters()}


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
    items, labels = [rng.integers(0, 256, (6, 6, 3), dtype=np.uint8) for _ in range(30)], rng.integers(0, num_classes, 30)
    network = nn.Sequential(nn.Flatten(), nn.Linear(108, num_classes))
    weight, bias = (p.detach().double().numpy() for p in network[1].parameters())
    ranks = []
    for pixels, label in zip(items, labels):
        x = ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1).ravel()
        scores = weight @ x + bias
        ranks.append((scores > scores[label]).sum())
    found = evaluate(network, Images(items, labels, [], ""), MEAN, STD, torch.device("cpu"), batch_size)
    assert found == pytest.approx((100 * np.mean(np.array(ranks) < 1), 100 * np.mean(np.array(ranks) < 5)), abs=1e-3)
    assert 0 < found[0] < 100


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


@pytest.mark.parametrize("height, width", ((256, 256), (300, 401), (401, 300), (257, 255), (255, 512), (100, 37), (31, 90), (641, 333), (256, 700)))
def test_evaluation_shows_resize_256_and_the_centre_224(height, width):
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    wanted = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(Image.fromarray(image))
    assert np.array_equal(show(image, 224, 256), np.asarray(wanted))
