"""The C kernels: warnings of the compiler, their names in the cache, calls that they refuse."""
import shutil
import subprocess
from functools import partial

import pytest
import torch

from sre2l.kernels import compiled, norms
from sre2l.kernels.cpu import convs, host
from sre2l.kernels.cpu.convs import TYPES, host_kernels
from sre2l.kernels.cpu.host import Passes, host_passes
from sre2l.kernels.norms import Norm

SOURCES = sorted(compiled.SOURCES.glob("*.c"))
WARNINGS = ("-Wall", "-Wextra", "-Wswitch-default", "-Wuninitialized", "-Wmaybe-uninitialized", "-Werror")

CHOICES = {"passes": (host_passes.__wrapped__, norms.Passes),  # the search, what stands in
           "convolutions": (partial(host_kernels.__wrapped__, torch.float32), None)}
SPOILED = {"passes": (host, "OTHER", 0),  # so that nothing is added
           "convolutions": (convs, "G", convs.G * 1.01)}

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


@pytest.mark.parametrize("kernels", CHOICES)
def test_without_a_compiler_torch_does_it_and_says_so(kernels, monkeypatch):
    find, torchs = CHOICES[kernels]
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    found, line = find()
    assert found is torchs and ("no C compiler" in line or "no OpenMP" in line)


@pytest.mark.parametrize("kernels", CHOICES)
def test_a_kernel_that_disagrees_is_not_used(kernels, monkeypatch):
    find, torchs = CHOICES[kernels]
    if find()[0] is torchs:
        pytest.skip(find()[1])
    monkeypatch.setattr(*SPOILED[kernels])
    found, line = find()
    assert found is torchs and "does not agree" in line


@needs_gcc
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_no_switch_is_without_a_default_and_nothing_is_read_before_it_is_written(source):
    """As far as the compiler can tell, in both types where there are two."""
    for types in TYPES.values():
        command = ["gcc", "-O1", "-fopenmp-simd", *types, *WARNINGS, "-c", "-o", "/dev/null", source]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_pass_of_a_kind_that_the_kernel_does_not_know_is_refused():
    """Its result was left as the memory was."""
    passes, line = host_passes()
    if not isinstance(passes, Passes):
        pytest.skip(line)
    norm = Norm(torch.nn.BatchNorm2d(8), 0.0, 1.0)
    x = torch.zeros(2, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    y = torch.full_like(x, 7.0)
    with pytest.raises(RuntimeError, match="no pass of kind 32"):
        passes.call(norm.facts, norm.run, x, 32, y=y)
    assert (y == 7).all()


@needs_gcc
def test_the_name_of_a_compiled_kernel_holds_the_compilers_version(tmp_path, monkeypatch):
    """After an update of the compiler the kernels are compiled again, though its path is the same."""
    compiler = tmp_path / "cc"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = []
    for version in ("1", "2", "2"):
        answer = f'[ "$1" = --version ] && echo "cc {version}" && exit'
        compiler.write_text(f'#!/bin/sh\n{answer}\nexec gcc "$@"\n')
        compiler.chmod(0o755)
        compiled.compiler_version.cache_clear()
        library = compiled.compile_kernel(compiled.SOURCES / "resize.c")
        assert library.is_file()
        names.append(library.name)
    compiled.compiler_version.cache_clear()
    assert names[0] != names[1] == names[2]
