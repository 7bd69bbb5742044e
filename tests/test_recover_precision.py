"""Half precision and batches at a time in recover: near fp32, loud where it overflows."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

from recover import fast, recover
from recover.batches import plan_batches
from recover.engines import choose_groups, make_fast_engine
from recover.objective import TERMS
from tests.helpers import SMALL, bare_checkpoint, refused, run_main
from tests.parity import ALL, check_parity, draw_case, network_of


def in_precision(network, size, precision, groups=2, batch=8):
    """-> (Terms, gradient) of the fast engine."""
    images, targets, views = draw_case(size, groups, batch)
    engine = make_fast_engine(network, ALL, size, precision)
    return engine.loss_and_gradient(images.float(), targets, engine.tabulate([views])[0])


@pytest.mark.parametrize("arch, precision, least", (("small", "fp16", 0.999), ("small", "bf16", 0.99),
                                                    ("resnet18", "fp16", 0.97), ("resnet18", "bf16", 0.9)))
def test_half_precision_points_where_fp32_does(arch, precision, least):
    """Cosine of the gradients, their norms within 5 % (so no loss scale is left
    in them), terms within 1 %, the cross-entropy, which rounding in bf16 moves
    by 0.7 % (root mean square over draws), within 3 %; images stay fp32."""
    network = network_of(arch, 32).float()
    terms, gradient = in_precision(network, 32, precision)
    exact_terms, exact = in_precision(network, 32, "fp32")
    assert gradient.dtype == terms.bn.dtype == terms.ce.dtype == torch.float32
    for group in range(2):
        assert torch.cosine_similarity(gradient[group].flatten(), exact[group].flatten(), 0) > least
        assert gradient[group].norm().item() == pytest.approx(exact[group].norm().item(), rel=0.05)
    for key in TERMS:
        rtol = 3e-2 if key == "ce" else 1e-2
        assert torch.allclose(getattr(terms, key), getattr(exact_terms, key), rtol=rtol)


@pytest.mark.parametrize("scale", (2.0 ** 12, 2.0 ** -3))
def test_a_loss_scale_drops_out(scale, monkeypatch):
    """In fp64, to rounding: of cross-entropy, BatchNorm term and priors alike."""
    monkeypatch.setitem(fast.LOSS_SCALE, "fp32", scale)
    engine = check_parity(network_of("small", 20), 20, 2)
    assert engine.loss_scale == scale


def recover_flags(root, *flags, name="run", teacher="teacher.pth"):
    return (recover, "--dataset", "cifar10", "--name", root / name, "--device", "cpu",
            "--teacher", root / teacher, "--arch", SMALL, "--iteration", 2, "--batch-size", 2, "--ipc-end", 1,
            "--jitter", 4, *flags)


def images_of(root, name):
    paths = (root / name / "images").rglob("*.jpg")
    return {path.name: np.asarray(Image.open(path)).astype(int) for path in paths}


def manifest(root, name="run"):
    return json.loads((root / name / "images.manifest.json").read_text())["settings"]


@pytest.fixture
def root(tmp_path):
    bare_checkpoint(tmp_path / "teacher.pth")
    return tmp_path


def test_an_overflow_in_fp16_is_one_sentence_and_nothing_is_written(root):
    """Activations pass 65504 after the first convolution. In bf16, which the sentence names, it goes on."""
    def enlarge(weights):
        return {**weights, "conv1.0.weight": weights["conv1.0.weight"] * 1e6}

    bare_checkpoint(root / "large.pth", wrap=enlarge)
    message = refused(*recover_flags(root, "--precision", "fp16", teacher="large.pth"))
    for part in ("not finite", "half precision overflowed", "--precision bf16"):
        assert part in message
    assert "\n" not in message
    assert not images_of(root, "run")
    run_main(*recover_flags(root, "--precision", "bf16", teacher="large.pth"))
    assert len(images_of(root, "run")) == 10 and manifest(root)["precision"] == "bf16"


@pytest.mark.parametrize("precision", ("bf16", "fp16"))
def test_a_run_in_half_precision_is_recorded_and_near_fp32(precision, root):
    """fp16 with a teacher of its range; noise, views and the first step's direction are those of fp32."""
    for name, flags in (("fp32", ()), (precision, ("--precision", precision))):
        run_main(*recover_flags(root, "--r-bn", 1e-3, "--iteration", 1, "--lr", 0.1, *flags, name=name))
        assert manifest(root, name)["precision"] == name
    exact = images_of(root, "fp32")
    found = images_of(root, precision)
    assert exact.keys() == found.keys()
    assert np.mean([np.abs(exact[key] - found[key]).mean() for key in exact]) < 3


def test_batches_at_a_time_give_the_images_of_one_at_a_time(root):
    """Five batches of two, three at a time: rounding moves a few pixels by a few grey levels at most."""
    found = {}
    for groups in (1, 3):
        run_main(*recover_flags(root, "--groups", groups, name=f"groups{groups}"))
        found[groups] = images_of(root, f"groups{groups}")
    assert found[1].keys() == found[3].keys() and len(found[1]) == 10
    differences = np.stack([np.abs(found[1][key] - found[3][key]) for key in found[1]])
    assert differences.max() <= 8 and differences.mean() < 0.05
    metrics = [json.loads(line) for line in open(root / "groups3" / "images.metrics.jsonl")]
    assert sorted({row["unit"] for row in metrics}) == [0, 1, 2, 3, 4]  # each batch has its own terms


def test_a_run_keeps_the_number_of_batches_at_a_time_it_began_with(root, capsys):
    run_main(*recover_flags(root, "--groups", 3))
    assert manifest(root)["groups"] == 3
    gone = root / "run" / "images" / "new003" / "class003_id000.jpg"
    before = gone.read_bytes()
    gone.unlink()
    run_main(*recover_flags(root))
    assert manifest(root)["groups"] == 3 and "3 batches at a time" in capsys.readouterr().out
    assert gone.read_bytes() == before
    message = refused(*recover_flags(root, "--groups", 2))
    assert "groups: there 3, here 2" in message
    run_main(*recover_flags(root, name="other"))
    assert manifest(root, "other")["groups"] == 1  # the choice on a CPU


def test_on_a_cpu_one_batch_at_a_time():
    engine = make_fast_engine(network_of("small", 20), ALL, 20)
    assert choose_groups(engine, plan_batches(list(range(5)), 2, 0, 9), 20, torch.device("cpu")) == 1
