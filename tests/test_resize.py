"""Crop and resize: the compiled kernel and the GPU's against Pillow, every pixel."""
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from sre2l.data import resize
from sre2l.kernels import compiled as compiled_kernels
from sre2l.run.paths import ROOT
from tests.crops import by_gpu_kernel, by_pillow, check_shown, draw_case, mixed_batches, odd_cases

SIZES = (32, 33, 64, 100, 224, 299)
on_gpu = pytest.mark.gpu


def compiled():
    """The C kernel, or the test is skipped: a machine without a compiler uses Pillow."""
    cropper, line = resize.host_cropper()
    if cropper is resize.crop_with_pillow:
        pytest.skip(line)
    return cropper


@pytest.fixture(params=("C", pytest.param("Triton", marks=on_gpu)))
def cropper(request):
    if request.param == "C":
        return compiled()
    return lambda *case: by_gpu_kernel(*case, "cuda").cpu()


@pytest.mark.parametrize("padded", (False, True))
@pytest.mark.parametrize("size", SIZES)
def test_crops_equal_pillows_in_every_pixel(cropper, size, padded):
    images, windows, flips = draw_case(np.random.default_rng(size), size, 48, padded=padded)
    assert torch.equal(cropper(images, windows, flips, size), by_pillow(images, windows, flips, size))


@pytest.mark.parametrize("size", (1, 7, 32, 224))
def test_odd_windows_equal_pillows(cropper, size):
    images, windows, flips = odd_cases(np.random.default_rng(1))
    assert torch.equal(cropper(images, windows, flips, size), by_pillow(images, windows, flips, size))


def test_the_order_of_the_passes_is_pillows():
    """Pillow 13 takes columns first where that is cheaper: all small shapes, both sides of its rule."""
    rng = np.random.default_rng(2)
    size = 16
    shapes = [(height, width) for height in range(10, 44, 3) for width in range(10, 44)]
    images = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in shapes]
    windows = np.array([(0, 0, *shape) for shape in shapes])
    flips = np.zeros(len(shapes), bool)
    assert torch.equal(compiled()(images, windows, flips, size), by_pillow(images, windows, flips, size))


def test_no_images_make_no_crops():
    assert compiled()([], np.zeros((0, 4), np.int64), np.zeros(0, bool), 24).shape == (0, 3, 24, 24)


def test_a_view_into_a_larger_array_is_cropped_like_a_copy():
    whole = np.random.default_rng(3).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    window = np.array([[2, 3, 20, 30]])
    flips = np.array([True])
    assert torch.equal(compiled()([whole[10:50, 5:65]], window, flips, 24),
                       compiled()([whole[10:50, 5:65].copy()], window, flips, 24))


def test_the_gpu_kernel_equals_pillow_in_tritons_interpreter():
    # 3.6's interpreter fails with numpy 2.5; its compiled kernels are right
    pytest.importorskip("triton", minversion="3.7")
    done = subprocess.run([sys.executable, "-m", "tests.crops"], cwd=ROOT, capture_output=True, text=True,
                          check=False,
                          env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)})
    assert done.stdout == "every pixel equal\n", done.stderr[-2000:]


@on_gpu
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
def test_what_a_network_is_shown_on_the_gpu_equals_normalise_and_mix(dtype):
    for size in (1, 19, 224):
        for pixels, mix in mixed_batches(np.random.default_rng(4), size):
            if mix.box is None or max(mix.box) <= size:
                check_shown(pixels, mix, dtype, "cuda")


def test_without_a_compiler_pillow_makes_the_crops_and_says_so(monkeypatch):
    monkeypatch.setattr(compiled_kernels.shutil, "which", lambda name: None)
    cropper, line = resize.host_cropper.__wrapped__()
    assert cropper is resize.crop_with_pillow and "no C compiler" in line


def test_the_kernel_is_compiled_once_into_the_cache_folder(tmp_path, monkeypatch):
    compiled()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _, line = resize.host_cropper.__wrapped__()
    library, = (tmp_path / "sre2l").iterdir()  # nothing else is left there
    stamp = library.stat().st_mtime_ns
    assert resize.host_cropper.__wrapped__()[1] == line == "crops on the CPU by the compiled kernel"
    assert library.stat().st_mtime_ns == stamp


def test_a_kernel_that_disagrees_with_pillow_is_not_used(monkeypatch):
    compiled()
    monkeypatch.setattr(resize, "vertical_first", lambda windows, size: windows[:, 2] < 0)
    if int(resize.PIL.__version__.split(".")[0]) >= 13:
        assert resize.host_cropper.__wrapped__()[0] is resize.crop_with_pillow
