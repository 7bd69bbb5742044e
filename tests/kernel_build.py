"""Compile every GPU kernel of recover for an H100, without a GPU: python -m tests.kernel_build."""
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sre2l.kernels.triton import moments, norms, pool, view

TARGET = GPUTarget("cuda", 90, 32)
NUMBERS = {"low": "fp32", "high": "fp32", "factor": "fp32"}  # the others are whole numbers or pointers
DATA = ("x", "other", "y", "thin", "g1", "g2", "gx", "gother", "seen")  # in the network's type
EXACT = ("partial", "mean", "scale", "shift", "coefficients", "means", "shifts", "variances", "moments",
         "distances", "factors", "images", "out", "first", "second", "rate")
PASSES = (norms.norm_forward, norms.norm_backward, pool.pool_forward, pool.pool_backward)
VIEWS = (view.view_forward, view.view_backward)
FLAGS = ("HAS_OTHER", "THIN", "STATS", "TWO", "CLAMPS", "WRITE_OTHER")
BLOCKS = {"M": norms.TILE // 64, "N": 64, "P": 64, "WIDTH": moments.WIDTH, "CHANNELS": 4, "C": 4, "W": 256,
          "beta1": 0.5, "beta2": 0.9, "eps": 1e-8}


def types_of(function, data, exact):
    """The signature of a kernel by the names of its parameters. data, exact: 'fp16', 'fp32', ..."""
    constants = {p.name for p in function.params if p.is_constexpr}
    pointers = {**dict.fromkeys(DATA, f"*{data}"), **dict.fromkeys(EXACT, f"*{exact}"),
                "winner": "*i8", "table": "*i64", "gradient": f"*{exact}"}
    if function in VIEWS:
        pointers |= {"table": f"*{exact}", "gradient": f"*{data}"}
    if function is view.adam:
        pointers |= {"low": f"*{exact}", "high": f"*{exact}"}
    known = {**dict.fromkeys(function.arg_names, "i32"), **NUMBERS, **pointers}
    return {name: "constexpr" if name in constants else known[name] for name in function.arg_names}


def build(function, data, exact, **flags):
    signature = types_of(function, data, exact)
    columns = 1024 if function in (view.adam, moments.coefficients_of) else BLOCKS["N"]
    values = {**BLOCKS, "N": columns, "ACC": tl.float64 if exact == "fp64" else tl.float32, **flags}
    names = list(enumerate(function.arg_names))
    constants = {(place,): values[name] for place, name in names if signature[name] == "constexpr"}
    compiled = triton.compile(ASTSource(function, signature, constants), target=TARGET)
    assert compiled.metadata.shared <= 227 * 1024
    print(function.__name__, data, exact, *(name for name, on in flags.items() if on), flush=True)


def build_passes(data, exact, on):
    """The passes over an activation, with all flags on or off."""
    for function in PASSES:
        build(function, data, exact, **{name: on for name in FLAGS if name in function.arg_names})


def main():
    build_passes("fp16", "fp32", True)
    build_passes("fp64", "fp64", False)
    for data, exact in (("fp16", "fp32"), ("fp64", "fp64")):
        for function in VIEWS:
            build(function, data, exact)
        for function in (moments.sum_parts, view.adam):
            build(function, exact, exact)
        for on in (False, True):
            build(moments.coefficients_of, exact, exact, ADD=on)
    print("every kernel compiled")


if __name__ == "__main__":
    main()
