"""Several teachers in recover: in turn, summed, with an r_bn each; written out in fp64, and as a run."""
import json

import pytest
import torch
from torch import nn

from recover import engines, plan, recover
from recover.engines import Matched, make_engine, make_engines
from recover.objective import TERMS, Weights
from recover.plan import choose_r_bn, recorded_r_bn
from recover.step import Stepper
from recover.targets import BnTarget
from recover.views import WHOLE_IMAGE
from sre2l.data.augment import unit_rng
from tests.helpers import SMALL, bare_checkpoint, refused, run_main
from tests.nets import build
from tests.oddnets import SIZE as ODD_SIZE
from tests.oddnets import odd_network
from tests.parity import draw_case, draw_statistics, group_of, network_of
from tests.test_continue import files_of
from tests.test_interrupts import handlers, interrupted  # noqa: F401 (a fixture)
from tests.test_objective import priors
from tests.worlds import common

SIZE = 20
LOW = torch.tensor([-1.5, -2.0, -1.0]).view(3, 1, 1).double()
HIGH = torch.tensor([2.0, 1.0, 1.5]).view(3, 1, 1).double()
ENGINES = ("plain", "fast")
R_BNS = (0.7, 0.05, 0.2)


def make_teachers(archs, tv_l2=0.0, l2_scale=0.0):
    """-> ([Matched], [a function x -> (logits, {layer: distance})]); each with an r_bn of its own."""
    built = [build(arch) for arch in archs]
    weights = [Weights(r_bn, 3.0, tv_l2, l2_scale) for r_bn in R_BNS[:len(archs)]]
    return [Matched(network, one) for (network, _), one in zip(built, weights)], [f for _, f in built]


def terms_by_formula(forward, x, targets):
    """-> CE and BN of a batch."""
    logits, norms = forward(x)
    ce = (logits.exp().sum(1).log() - logits[range(len(x)), targets.tolist()]).mean()
    return ce, sum((3.0 if name == "bn1" else 1) * norm for name, norm in norms.items())


@pytest.mark.parametrize("name", ENGINES)
def test_teachers_take_turns_from_the_first_on_in_every_batch(name):
    """Seven iterations of Adam by three teachers, twice: the counter begins again with each group."""
    matched, forwards = make_teachers(("head", "conv", "idle"))
    engine, _ = make_engine(name, matched, None, SIZE, "fp32")
    assert (engine.name, engine.period) == (name, 3)
    stepper = Stepper(engine, LOW, HIGH)
    rates = [0.25 - 0.03 * t for t in range(7)]
    for seed in (0, 1):
        images, targets, _ = draw_case(SIZE, 1, 4, seed)
        stepper.start(images, targets, [[WHOLE_IMAGE]] * 7, rates)
        x = images[0].clone().requires_grad_()
        adam = torch.optim.Adam([x], betas=(0.5, 0.9), eps=1e-8)
        for t, rate in enumerate(rates):
            found = stepper.step(t)
            ce, bn = terms_by_formula(forwards[t % 3], x, targets[0])
            x.grad, = torch.autograd.grad(ce + R_BNS[t % 3] * bn, x)
            assert found.ce.item() == pytest.approx(ce.item(), rel=1e-9)
            assert found.bn.item() == pytest.approx(bn.item(), rel=1e-9)
            adam.param_groups[0]["lr"] = rate
            adam.step()
            x.data.clamp_(LOW, HIGH)
        assert (stepper.images[0] - x).abs().max() < 1e-7


@pytest.mark.parametrize("name", ENGINES)
def test_a_sum_is_of_weighted_losses_with_the_priors_once(name):
    """loss = sum_i w_i (CE_i + r_bn_i BN_i) + priors; what is reported are weighted means."""
    matched, forwards = make_teachers(("head", "resnet18"), tv_l2=0.02, l2_scale=0.05)
    shares = [0.5, 2.0]
    engine, _ = make_engine(name, matched, shares, SIZE, "fp32")
    images, targets, _ = draw_case(SIZE, 2, 4)
    terms, gradient = engine.loss_and_gradient(images, targets, [WHOLE_IMAGE] * 2)
    for i in range(2):
        x = images[i].clone().requires_grad_()
        parts = [terms_by_formula(forward, x, targets[i]) for forward in forwards]
        tv, l2 = priors(x)
        loss = sum(w * (ce + r_bn * bn) for w, r_bn, (ce, bn) in zip(shares, R_BNS, parts))
        wanted, = torch.autograd.grad(loss + 0.02 * tv + 0.05 * l2, x)
        assert (gradient[i] - wanted).norm() / wanted.norm() < 1e-10
        found = terms.ce[i] + engine.weights.r_bn * terms.bn[i]
        assert found.item() == pytest.approx(loss.item() / 2.5, rel=1e-12)
        assert (terms.tv[i].item(), terms.l2[i].item()) == pytest.approx((tv.item(), l2.item()), rel=1e-12)


def test_a_teacher_without_batch_norm_gives_the_cross_entropy_alone():
    """Beside one with a target of its classes, in both engines."""
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(324, 5))
    bare = bare.double().eval().requires_grad_(False)
    network, weights = network_of("small", SIZE), Weights(0.1, 10.0, 0.0, 0.0)
    target = BnTarget(0.5, False, draw_statistics(network))
    images, targets, views = draw_case(SIZE, 2, 2)
    x = images[0].clone().requires_grad_()
    ce = nn.functional.cross_entropy(bare(x), targets[0])
    wanted, = torch.autograd.grad(ce, x)
    for name in ENGINES:
        matched = [Matched(network, weights, target), Matched(bare, weights)]
        engine, note = make_engine(name, matched, None, SIZE, "fp32")
        assert engine.name == name, note
        engine.take_up(group_of(targets))
        terms, gradient = engine.at(1).loss_and_gradient(images, targets, [WHOLE_IMAGE] * 2)
        assert terms.ce[0].item() == pytest.approx(ce.item(), rel=1e-12) and not terms.bn.any()
        assert (gradient[0] - wanted).norm() / wanted.norm() < 1e-10
        assert engine.at(2).loss_and_gradient(images, targets, views)[0].bn.all()


def test_where_one_network_cannot_be_rewritten_all_get_the_plain_engine():
    weights = Weights(0.1, 10.0, 0.0, 0.0)
    matched = [Matched(network_of("small", ODD_SIZE), weights), Matched(odd_network("decides"), weights)]
    engine, note = make_engine("fast", matched, None, ODD_SIZE, "fp32")
    assert {one.name for one in engine.engines} == {"plain"} and note.startswith("plain engine: teacher 2: ")


def test_each_network_is_compared_once_whatever_sizes_the_blocks_have(monkeypatch):
    compared = []
    monkeypatch.setattr(engines, "why_not_fast", lambda *args: compared.append(args[2]))
    matched, _ = make_teachers(("head", "conv"))
    made, note = make_engines("fast", matched, None, [SIZE, 24], "fp32")
    assert compared == [24, 24] and note.startswith("fast engine")
    assert [made[size].engines[1].size for size in (SIZE, 24)] == [SIZE, 24]


def test_auto_weighs_every_teachers_term_on_noise_as_the_first_ones():
    """On min(batch, 32) images of noise by the seed; the first one with BatchNorm keeps the number."""
    networks, forwards = zip(*(build(arch) for arch in ("head", "resnet18", "conv")))
    bare = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE ** 2, 5)).double()
    noise = torch.from_numpy(unit_rng(5).standard_normal((4, 3, SIZE, SIZE), dtype="float32")).double()
    found = choose_r_bn("auto:0.03", [bare, *networks], 3.0, 4, SIZE, 5)
    products = [r_bn * terms_by_formula(forward, noise, torch.zeros(4))[1].item()
                for r_bn, forward in zip(found[1:], forwards)]
    assert found[:2] == [0.03, 0.03] and len(set(found)) == 3
    assert products == pytest.approx([products[0]] * 3, rel=1e-3)
    assert choose_r_bn("auto:0.03", [bare, *networks], 3.0, 4, SIZE, 6) != found
    assert recorded_r_bn("auto:0.03", {"r_bn": found}) == found
    assert recorded_r_bn("auto:0.02", {"r_bn": found}) == recorded_r_bn("auto:0.02", None) == "auto:0.02"


# -- a run

@pytest.fixture
def root(tmp_path):
    bare_checkpoint(tmp_path / "a.pth")
    bare_checkpoint(tmp_path / "b.pth", "convnet2-w8")
    return tmp_path


def flags_of(root, *flags, name="new"):
    files = f"{root}/a.pth,{root}/b.pth"
    return (recover, *common(root, name), "--teacher", files, "--arch", f"{SMALL},convnet2-w8",
            "--iteration", 5, "--ipc-end", 1, "--batch-size", 5, "--jitter", 4, "--print-period", 1, *flags)




def settings(root, name="new"):
    return json.loads((root / name / "images.manifest.json").read_text())["settings"]


def test_an_interrupted_run_goes_on_with_the_teacher_whose_turn_it_is(root, monkeypatch):
    run_main(*flags_of(root, name="whole"))
    interrupted(monkeypatch, Stepper, "step", 4, flags_of(root))
    run_main(*flags_of(root))
    assert files_of(root / "new" / "images") == files_of(root / "whole" / "images")
    alone = ("--teacher", root / "a.pth", "--arch", SMALL)
    run_main(*flags_of(root, *alone, name="alone"))
    of_one, of_both = (set(files_of(root / name / "images").values()) for name in ("alone", "new"))
    assert not of_one & of_both
    assert "teachers" not in settings(root, "alone")
    assert settings(root)["teacher"] == settings(root)["teachers"][0] == settings(root, "alone")["teacher"]
    assert [teacher["arch"] for teacher in settings(root)["teachers"]] == [SMALL, "convnet2-w8"]


def test_what_auto_found_is_recorded_and_used_again(root, monkeypatch):
    flags = flags_of(root, "--r-bn", "auto", "--teachers", "sum", "--teacher-weights", "1,0.5")
    run_main(*flags)
    first, second = settings(root)["r_bn"]
    assert first == 0.01 != second and settings(root)["teacher_weights"] == [1, 0.5]
    before = files_of(root / "new" / "images")
    (root / "new" / "images" / "new003" / "class003_id000.jpg").unlink()
    monkeypatch.setattr(plan, "noise_distances", None)  # not asked again
    run_main(*flags)
    assert files_of(root / "new" / "images") == before
    run_main(*flags, "--dry-run")
    run_main(*flags_of(root, "--teachers", "sum", name="sum"))
    run_main(*flags_of(root, "--teachers", "sum", "--dry-run", name="sum"))
    assert settings(root, "sum")["teacher_weights"] == [1, 1]
    assert "teacher_weights: there [1.0, 0.5], here [1.0, 1.0]" in refused(*flags, "--teacher-weights", "1,1")


def test_a_line_of_the_log_is_the_mean_over_one_iteration_of_each_teacher(root, monkeypatch):
    """With r_bn * BN of each by its own r_bn: what alternates is no reason to warn."""
    terms = []
    original = Stepper.step

    def step(self, iteration):
        found = original(self, iteration)
        terms.append({key: getattr(found, key).item() for key in TERMS})
        return found

    monkeypatch.setattr(Stepper, "step", step)
    run_main(*flags_of(root, "--r-bn", "0.01,0.3", "--batch-size", 10, "--print-period", 2))
    lines = [json.loads(line) for line in open(root / "new" / "images.metrics.jsonl")]
    lines = {line["iteration"]: line for line in lines if "iteration" in line}
    assert list(lines) == [0, 2, 4]
    products = [(0.01, 0.3)[t % 2] * one["bn"] for t, one in enumerate(terms)]
    for t, line in lines.items():
        last = range(max(0, t - 1), t + 1)
        assert line["ce"] == pytest.approx(sum(terms[i]["ce"] for i in last) / len(last), abs=1e-5)
        assert line["r_bn_bn"] == pytest.approx(sum(products[i] for i in last) / len(last), abs=1e-5)


def test_what_does_not_fit_several_teachers_is_refused(root):
    alone = ("--teacher", root / "a.pth", "--arch", SMALL)
    for flags, message in (
            (("--r-bn", "1,2,3"), "--r-bn: 3 numbers for 2 teachers"),
            (("--teachers", "sum", "--teacher-weights", "1"), "has 1 numbers for 2 teachers"),
            (("--teacher-weights", "1,2"), "teachers that take turns have no weights; add --teachers sum"),
            ((*alone, "--teachers", "sum"), "there is one teacher"),
            ((*alone, "--r-bn", "1,2"), "--r-bn: 2 numbers for 1 teacher;"),
            (("--bn-target", "class:0.5"), "a.class_statistics.pth: there are no class statistics")):
        assert message in refused(*flags_of(root, *flags))
    for flags in (("--r-bn", "auto:0"), ("--r-bn", "1,-1"), ("--r-bn", "automatic"), ("--teachers", "mean"),
                  ("--teachers", "sum", "--teacher-weights", "1,0")):
        assert refused(*flags_of(root, *flags)) == ""
    assert not (root / "new").exists()
