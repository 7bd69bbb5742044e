"""--bn-target: what the statistics are to match, written out in fp64, in both engines; what is refused."""
import copy
import json
from types import SimpleNamespace

import pytest
import torch

from recover.engines import make_fast_engine
from recover.objective import PlainEngine, Weights
from recover.targets import load_targets
from recover.views import WHOLE_IMAGE
from sre2l.data.datasets import DATASETS
from sre2l.kernels.norms import statistics_layers
from sre2l.nets import statistics
from sre2l.nets.statistics import Statistics, class_statistics_path
from sre2l.nets.teacher import load_teacher
from sre2l.run.errors import UserError
from sre2l.run.files import hash_file
from tests.helpers import SMALL, bare_checkpoint, refused, run_main, synthetic_folder
from tests.nets import Formula, build
from tests.parity import ALL, KINDS, check_target_parity, draw_case, group_of, network_of, target_of
from tests.test_continue import files_of
from tests.worlds import recover_flags

WEIGHTS = Weights(0.7, 3.0, 0.0, 0.0)
CLASSES = [[4, 0, 0, 2], [1, 1, 2, 3], [0, 1, 2, 3]]  # of each batch; the first and the second repeat one


class TargetFormula(Formula):
    """Formula whose norms are measured from other statistics: {layer: (mean, var)}, with a share."""

    def __init__(self, network, wanted, share, normalises):
        super().__init__(network)
        self.wanted, self.share = wanted, share
        for name, (mean, var) in wanted.items() if normalises else ():
            self.weights = {**self.weights, f"{name}.running_mean": mean, f"{name}.running_var": var}

    def norm(self, name, x):
        y = super().norm(name, x)
        m = x.transpose(0, 1).flatten(1).mean(1)
        v = x.transpose(0, 1).flatten(1).var(1, unbiased=False)
        mean, var = self.wanted[name]
        near = ((m - mean) ** 2).sum().sqrt() + ((v - var) ** 2).sum().sqrt()
        self.norms[name] = (1 - self.share) * self.norms[name] + self.share * near
        return y


def formula_of(kind, network, found, labels, ipc):
    """The network as formulas, for a batch of these classes and this ipc index."""
    share, normalises = KINDS[kind]
    rows = [ipc] if normalises else labels
    names = [name for name, layer in network.named_modules() if layer in statistics_layers(network)]
    wanted = {name: [sum(values[row] for row in rows) / len(rows) for values in pair]
              for name, *pair in zip(names, found.mean, found.var)}
    return TargetFormula(network, wanted, share, normalises)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ("head", "resnet18"))
def test_the_plain_engine_equals_the_formula(arch, kind):
    """Three batches with classes and groups of their own, each as if alone."""
    network, _ = build(arch)
    target = target_of(kind, network)
    images = draw_case(20, 3, 4)[0]
    targets = torch.tensor(CLASSES)
    engine = PlainEngine(copy.deepcopy(network), WEIGHTS, target=target)
    engine.take_up(group_of(targets, first_ipc=1))
    terms, gradient = engine.loss_and_gradient(images, targets, [WHOLE_IMAGE] * 3)
    for i in range(3):
        formula = formula_of(kind, network, target.found, CLASSES[i], 1 + i)
        x = images[i].clone().requires_grad_()
        logits = formula.resnet18(x) if arch == "resnet18" else formula.small(x)
        ce = (logits.exp().sum(1).log() - logits[range(4), CLASSES[i]]).mean()
        bn = sum((3.0 if name == "bn1" else 1) * norm for name, norm in formula.norms.items())
        wanted, = torch.autograd.grad(ce + 0.7 * bn, x)
        assert terms.ce[i].item() == pytest.approx(ce.item(), rel=1e-12)
        assert terms.bn[i].item() == pytest.approx(bn.item(), rel=1e-12)
        assert (gradient[i] - wanted).norm() / wanted.norm() < 1e-10


@pytest.mark.parametrize("kind", ("class:0.3", "group"))
@pytest.mark.parametrize("arch, size", (("small", 20), ("resnet18", 32)))
def test_the_fast_engine_equals_the_plain_one(arch, size, kind):
    """One engine for three batches at a time, for three others, then for one alone."""
    network = network_of(arch, size)
    target = target_of(kind, network)
    check_target_parity(network, size, target, ((3, 2), (3, 2), (1, 2)))


@pytest.mark.parametrize("kind", ("class:0.3", "group"))
def test_the_next_batches_are_taken_up_at_the_same_addresses(kind):
    """A captured CUDA graph reads them there."""
    def tensors(engine):
        facts = [norm.facts for norm in engine.norms]
        targets = [target for one in facts for target in one.targets]
        return [*(value for one in facts for value in (one.mean, one.scale, one.shift)),
                *(value for target in targets for value in (target.mean, target.var))]

    network = network_of("small", 20)
    before = copy.deepcopy(network.state_dict())
    engine = make_fast_engine(network, ALL, 20, target=target_of(kind, network))
    engine.take_up(group_of(CLASSES))
    first = tensors(engine)
    values = [tensor.clone() for tensor in first]
    engine.take_up(group_of(CLASSES[::-1], first_ipc=2))
    assert [tensor.data_ptr() for tensor in first] == [tensor.data_ptr() for tensor in tensors(engine)]
    assert not all(torch.equal(a, b) for a, b in zip(values, first))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("kind", ("class:0.3", "group"))
@pytest.mark.parametrize("precision", ("fp32", "bf16"))
def test_the_compiled_passes_take_statistics_of_each_batch(kind, precision):
    """Three batches at a time in single and half precision, near the plain engine in fp64."""
    network = network_of("small", 32)
    target = target_of(kind, network)
    images, targets, views = draw_case(32, 3, 8)
    group = group_of(targets)
    plain = PlainEngine(copy.deepcopy(network), ALL, target=target)
    fast = make_fast_engine(copy.deepcopy(network).float(), ALL, 32, precision, target=target)
    for engine in (plain, fast):
        engine.take_up(group)
    terms, gradient = plain.loss_and_gradient(images, targets, views)
    found, close = fast.loss_and_gradient(images.float(), targets, views)
    exact = precision == "fp32"
    torch.testing.assert_close(found.bn.double(), terms.bn, rtol=1e-5 if exact else 1e-2, atol=0)
    for a, b in zip(gradient, close.double()):
        assert torch.cosine_similarity(a.flatten(), b.flatten(), 0) > (1 - 1e-6 if exact else 0.99)


# -- a run

@pytest.fixture
def root(tmp_path):
    bare_checkpoint(tmp_path / "teacher.pth")
    return tmp_path


def save_statistics(root, path, kind, number=10, sha256=None):
    """Statistics of the teacher's in a file, as squeeze or pick writes them -> the Teacher."""
    teacher = load_teacher(DATASETS["cifar10"], root / "teacher.pth", SMALL)
    g = torch.Generator().manual_seed(0)
    shapes = [(number, layer.num_features) for layer in statistics_layers(teacher.network)]
    drawn = [torch.rand(shape, generator=g) for shape in shapes]
    statistics.save(path, Statistics(drawn, [1 + value for value in drawn]), sha256 or teacher.sha256, kind)
    return teacher


def settings(root, name="new"):
    return json.loads((root / name / "images.manifest.json").read_text())["settings"]


def test_a_run_records_its_target_and_the_file_that_it_is_from(root):
    path = class_statistics_path(root / "teacher.pth")
    save_statistics(root, path, "class")
    run_main(*recover_flags(root, "--bn-target", "class:0.50"))
    assert settings(root)["bn_target"] == "class:0.5"
    assert settings(root)["bn_target_sha256"] == [hash_file(path)]
    message = refused(*recover_flags(root, "--bn-target", "class:1"))
    assert "bn_target: there 'class:0.5', here 'class:1'" in message
    assert "bn_target: there 'class:0.5', here None" in refused(*recover_flags(root))
    run_main(*recover_flags(root, name="default"))
    assert not {"bn_target", "bn_target_sha256", "teachers"} & settings(root, "default").keys()


def test_what_does_not_fit_is_refused(root):
    path = class_statistics_path(root / "teacher.pth")
    flags = recover_flags(root, "--bn-target", "class:0.5")
    assert f"{path}: there are no class statistics" in refused(*flags)
    save_statistics(root, path, "class", sha256="0" * 64)
    assert "these are statistics of another teacher" in refused(*flags)
    of_others = SimpleNamespace(network=network_of("small", 20), source="torchvision IMAGENET1K_V1")
    with pytest.raises(UserError, match="torchvision IMAGENET1K_V1 has no file beside which class"):
        load_targets("class:0.5", "noise", [of_others], [])
    for text in ("class", "class:2", "class:", "groups", "group:1"):
        assert refused(*recover_flags(root, "--bn-target", text)) == ""
    assert "beside a folder of picked real images" in refused(*recover_flags(root, "--bn-target", "group"))
    assert not (root / "new").exists()


def test_groups_are_those_of_the_folder_that_it_starts_from(root):
    """No image is that of the running statistics. Each image of a class needs a group in the file."""
    picked = synthetic_folder(root / "picked", ipc=3, suffix=".png")
    flags = ("--bn-target", "group", "--init", picked)
    assert "picked.groups.pth: there are no group statistics" in refused(*recover_flags(root, *flags))
    save_statistics(root, root / "picked.groups.pth", "group", number=2)
    found = {}
    for name, more in (("groups", flags), ("running", flags[2:])):
        run_main(*recover_flags(root, *more, "--ipc-end", 2, "--lossless", name=name))
        found[name] = files_of(root / name / "images")
    assert found["groups"].keys() == found["running"].keys() and len(found["groups"]) == 20
    assert not set(found["groups"].values()) & set(found["running"].values())

    message = refused(*recover_flags(root, *flags, "--ipc-end", 3))
    assert "there are statistics of 2 groups, and image 2 of a class would need one more" in message
    message = refused(*recover_flags(root, *flags, "--ipc-end", 2, "--classes", "0-4"))
    assert "a batch would hold images of several ipc indices" in message
