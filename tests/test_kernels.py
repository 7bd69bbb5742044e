"""Recover's GPU kernels: in Triton's interpreter, compiled for an H100 without one, and on a GPU."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from recover import recover
from recover.engines import make_fast_engine
from recover.several import CycleEngine
from recover.step import Stepper
from recover.views import draw_view
from sre2l.run.paths import ROOT
from tests.helpers import SMALL, bare_checkpoint, run_main
from tests.oddnets import PATTERNS, SIZE, odd_network
from tests.parity import (
    ALL,
    PARTS,
    check_parity,
    check_target_parity,
    draw_case,
    group_of,
    network_of,
    target_of,
)

on_gpu = pytest.mark.gpu
NOT_REWRITTEN = ("used before and after", "changed under another name", "changed without a name", "decides",
                 "sum under another name", "ignored", "looked away", "without statistics", "class of its own")
GPU_PATTERNS = [name for name in PATTERNS if name not in NOT_REWRITTEN]
FAMILIES = (("resnet18", 64), ("resnet18", 33), ("resnet50", 32), ("mobilenet_v2", 32),
            ("shufflenet_v2_x0_5", 33), ("efficientnet_b0", 32), ("densenet121", 32),
            ("regnet_y_400mf", 32), ("inception_v3", 75), ("small", 20))


def run_module(name, **env):
    pytest.importorskip("triton", minversion="3.7")  # 3.6's interpreter fails with numpy 2.5
    ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, "-m", name], capture_output=True, text=True, check=False, cwd=ROOT,
                          env={**os.environ, **ours, **env})


def test_the_kernels_equal_the_plain_engine_in_tritons_interpreter():
    done = run_module("tests.kernel_parity")
    assert done.stdout == "every kernel equal\n", done.stderr[-2000:]


def test_every_kernel_compiles_for_an_h100(tmp_path):
    """No GPU is needed for it; in fp16 and fp64, nothing from a cache."""
    done = run_module("tests.kernel_build", TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "every kernel compiled"


@on_gpu
@pytest.mark.parametrize("groups", (1, 3))
@pytest.mark.parametrize("arch, size", FAMILIES)
def test_on_the_gpu_loss_and_gradient_equal_the_plain_engines(arch, size, groups):
    check_parity(network_of(arch, size).cuda(), size, groups, 3, times=2)


@on_gpu
@pytest.mark.parametrize("weights", PARTS)
def test_on_the_gpu_every_prior_on_and_off(weights):
    for groups in (1, 3):
        check_parity(network_of("resnet18", 32).cuda(), 32, groups, weights=PARTS[weights], seed=1)


@on_gpu
@pytest.mark.parametrize("pattern", GPU_PATTERNS)
def test_on_the_gpu_what_a_network_does_with_a_norms_result_is_kept(pattern):
    for groups in (1, 3):
        check_parity(odd_network(pattern).cuda(), SIZE, groups)


@on_gpu
def test_on_the_gpu_shapes_in_turn():
    network = odd_network("shortcut").cuda()
    engine = make_fast_engine(network, ALL, SIZE)
    for groups, batch in ((1, 5), (1, 3), (4, 3), (1, 3), (2, 1)):
        check_parity(network, SIZE, groups, batch, engine=engine, seed=batch)


@on_gpu
@pytest.mark.parametrize("kind", ("class:0.3", "group"))
@pytest.mark.parametrize("arch", ("resnet18", "mobilenet_v2"))
def test_on_the_gpu_targets_of_each_batch_equal_the_plain_engines(arch, kind):
    network = network_of(arch, 32).cuda()
    check_target_parity(network, 32, target_of(kind, network), ((3, 2), (3, 2), (1, 2)))


def make_stepper(captures=True, arch="resnet18", size=32, precision="fp32", dtype=torch.float64):
    engine = make_fast_engine(network_of(arch, size).to("cuda", dtype), ALL, size, precision)
    assert engine.captures
    engine.captures = captures
    edges = ((-1.5, -2.0, -1.0), (2.0, 1.0, 1.5))
    return Stepper(engine, *(torch.tensor(edge, device="cuda", dtype=dtype).view(3, 1, 1) for edge in edges))


def start(stepper, seed, groups=2, batch=3, steps=5, size=32):
    rng = np.random.default_rng(seed)
    images, targets, _ = draw_case(size, groups, batch, seed)
    views = [[draw_view(size, 4, True, True, rng) for _ in range(groups)] for _ in range(steps)]
    stepper.start(images.to(stepper.low), targets.cuda(), views, [0.1 - 0.01 * t for t in range(steps)])


def iterates(stepper, seed, steps=5, **case):
    """-> [(images after the step, BatchNorm term before it)] of every step."""
    start(stepper, seed, steps=steps, **case)
    found = []
    for t in range(steps):
        terms = stepper.step(t)
        found.append((stepper.images.clone(), terms.bn.clone()))
    return found


@on_gpu
def test_a_captured_iteration_is_the_eager_one_in_this_batch_and_in_the_next():
    """Every batch is that of a fresh Stepper, the first again too; nothing moves while capturing."""
    used = make_stepper()
    for seed, case in ((1, {}), (2, {}), (3, {"groups": 1}), (4, {"batch": 2}), (1, {})):
        eager = iterates(make_stepper(captures=False), seed, **case)
        for (images, bn), (wanted, wanted_bn) in zip(iterates(used, seed, **case), eager, strict=True):
            assert (images - wanted).abs().max() < 1e-8
            assert torch.allclose(bn, wanted_bn, rtol=1e-8, atol=0)
    assert len(used.space.graphs) == 1


@on_gpu
@pytest.mark.parametrize("kind", ("class:0.3", "group"))
def test_captured_iterations_of_teachers_in_turn_read_the_targets_of_the_batches_under_way(kind):
    """Two graphs, one for each teacher, and targets that change between the batches."""
    def fresh(captures):
        stepper = make_stepper()
        networks = [network_of(arch, 32).cuda() for arch in ("resnet18", "small")]
        targets = [target_of(kind, network) for network in networks]
        stepper.engine = CycleEngine([make_fast_engine(network, ALL, 32, target=target)
                                      for network, target in zip(networks, targets)])
        for engine in stepper.engine.engines:
            engine.captures = captures
        return stepper

    used = fresh(True)
    for seed in (1, 2):
        steppers = used, fresh(False)
        for stepper in steppers:
            stepper.engine.take_up(group_of(draw_case(32, 2, 3, seed)[1], first_ipc=seed))
        found, wanted = (iterates(stepper, seed) for stepper in steppers)
        assert all((a - b).abs().max() < 1e-8 for (a, _), (b, _) in zip(found, wanted, strict=True))
    assert len(used.space.graphs) == 2


@on_gpu
@pytest.mark.parametrize("precision", ("fp32", "fp16", "bf16"))
def test_an_iteration_never_waits_for_the_gpu(precision):
    for captures in (False, True):
        stepper = make_stepper(captures, precision=precision, dtype=torch.float32)
        start(stepper, 1)
        for t in range(3):  # kernels are compiled, tables laid out, the graph is captured
            stepper.step(t)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            stepper.step(3)
            stepper.step(4)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.isfinite(stepper.images).all()


@on_gpu
@pytest.mark.parametrize("precision, least", (("fp16", 0.95), ("bf16", 0.85)))
def test_on_the_gpu_half_precision_points_where_fp32_does(precision, least):
    network = network_of("resnet18", 32).float().cuda()
    images, targets, views = draw_case(32, 2, 8)
    found = {}
    for name in ("fp32", precision):
        engine = make_fast_engine(network, ALL, 32, name)
        view = engine.tabulate([views])[0]
        found[name] = engine.loss_and_gradient(images.float().cuda(), targets.cuda(), view)
    terms, gradient = found[precision]
    exact_terms, exact = found["fp32"]
    for group in range(2):
        assert torch.cosine_similarity(gradient[group].flatten(), exact[group].flatten(), 0) > least
        assert gradient[group].norm().item() == pytest.approx(exact[group].norm().item(), rel=0.05)
    assert torch.allclose(terms.ce, exact_terms.ce, rtol=1e-2)
    assert torch.allclose(terms.bn, exact_terms.bn, rtol=1e-2)


def recovered(root, *flags):
    """recover.main with one iteration, 10 classes in batches of 4 -> {file name: pixels}."""
    run_main(recover, "--dataset", "cifar10", "--name", root, "--teacher", root.parent / "teacher.pth",
             "--arch", SMALL, "--iteration", 1, "--lr", 0.1, "--batch-size", 4, "--ipc-end", 2, "--jitter", 4,
             "--r-bn", 1e-3, *flags)
    return {path.name: np.asarray(Image.open(path)).astype(int) for path in (root / "images").rglob("*.jpg")}


@on_gpu
@pytest.mark.parametrize("precision", ("fp32", "tf32", "fp16", "bf16"))
def test_recover_on_the_gpu_writes_what_the_cpu_writes(precision, tmp_path):
    """Within the precision's error after one step, three batches at a time; then nothing is left to do."""
    bare_checkpoint(tmp_path / "teacher.pth")
    exact = recovered(tmp_path / "cpu", "--device", "cpu")
    found = recovered(tmp_path / "gpu", "--device", "cuda", "--precision", precision, "--groups", 3)
    assert found.keys() == exact.keys() and len(found) == 20
    limit = {"fp32": 0.2, "tf32": 3, "fp16": 3, "bf16": 5}[precision]
    assert np.mean([np.abs(found[key] - exact[key]).mean() for key in exact]) < limit
    again = recovered(tmp_path / "gpu", "--device", "cuda")
    assert all(np.array_equal(again[key], found[key]) for key in found)
    settings = json.loads((tmp_path / "gpu" / "images.manifest.json").read_text())["settings"]
    assert settings["groups"] == 3 and settings["precision"] == precision


@on_gpu
def test_recover_on_the_gpu_chooses_how_many_batches_at_a_time(tmp_path, capsys):
    bare_checkpoint(tmp_path / "teacher.pth")
    assert len(recovered(tmp_path / "run", "--device", "cuda")) == 20
    groups = json.loads((tmp_path / "run" / "images.manifest.json").read_text())["settings"]["groups"]
    assert groups > 1 and f"{groups} batches at a time" in capsys.readouterr().out
