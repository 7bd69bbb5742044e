"""C kernels, compiled at first use and kept in the user's cache folder; whether a GPU can have Triton's."""
import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "cpu"
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")


def cpu_name():
    """What -march=native depends on: the CPU's model and its instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    kinds = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return "\n".join((platform.machine(), platform.processor(), *sorted(kinds)))


def find_compiler():
    """The path of a C compiler. Raises OSError where there is none."""
    for name in ("cc", "gcc", "clang"):
        path = shutil.which(name)
        if path:
            return path
    raise OSError("no C compiler")


@functools.cache
def compiler_version(compiler):
    """What the compiler says of itself."""
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout


def library_path(source, compiler, flags):
    """Where the compiled library of this source is kept: its name has a hash of all that it depends on."""
    headers = [header.read_text(encoding="utf-8") for header in sorted(source.parent.glob("*.h"))]
    code = source.read_text(encoding="utf-8")
    parts = (code, *headers, *flags, compiler, compiler_version(compiler), cpu_name())
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sre2l"
    return folder / f"{source.stem}-{key}.so"


def compile_kernel(source, *more_flags):
    """-> the shared library, from the user's cache folder where it was compiled before."""
    compiler = find_compiler()
    flags = (*FLAGS, *more_flags)
    library = library_path(source, compiler, flags)
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            made = Path(scratch) / library.name
            subprocess.run([compiler, *flags, "-o", made, source, "-lm"], check=True, capture_output=True)
            os.replace(made, library)  # whole or not at all, whoever else compiles it
    return library


def load_kernel(name, *more_flags):
    """The library of a C file of kernels/cpu, compiled if need be.

    Raises OSError or subprocess.CalledProcessError where that fails."""
    return ctypes.CDLL(str(compile_kernel(SOURCES / name, *more_flags)))  # its calls let other threads run


@functools.cache
def why_no_triton():
    """Why Triton's kernels cannot be had here, or None. Triton looks for a C compiler in these places."""
    if importlib.util.find_spec("triton") is None:
        return "this torch comes without Triton"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler (gcc, clang or what $CC names)"
    return None


def share_threads():
    """Make the OpenMP that torch has loaded known to C kernels, so that both have the same threads.

    Raises OSError where torch has none of its own."""
    folder = Path(torch.__file__).parent
    folders = (folder / "lib", folder.with_name("torch.libs"))
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    loaded = {line.split()[-1] for line in mapped if "libgomp" in line}
    own = [path for path in loaded if Path(path).parent in folders]
    if not own:
        raise OSError("torch has no OpenMP of its own")
    ctypes.CDLL(own[0], ctypes.RTLD_GLOBAL)


def load_threaded_kernel(name, *more_flags):
    """The library of a C file that computes on torch's threads. Raises as load_kernel does."""
    share_threads()
    return load_kernel(name, "-fopenmp-simd", *more_flags)
