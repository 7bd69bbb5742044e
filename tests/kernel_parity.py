"""The GPU kernels against the plain engine without a GPU: TRITON_INTERPRET=1 python -m tests.kernel_parity. Prints one line and takes half a minute."""
import os

os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import torch  # noqa: E402

from sre2l.kernels import adam  # noqa: E402
from sre2l.kernels.triton import view as look  # noqa: E402
from recover.fast import FastEngine  # noqa: E402
from tests.nets import calibrated  # noqa: E402
from tests.oddnets import PATTERNS, SIZE, OddNet  # noqa: E402
from tests.parity import ALL, PARTS, check_parity, network_of  # noqa: E402

KERNEL_PATTERNS = ("hardtanh", "residual in place", "residual without relu", "shortcut", "thin twice", "broadcast over images", "pool of relu6",
                   "pool, two ways", "pool and not", "lines", "norm of the image", "two norms", "layer twice")


def odd_network(pattern):
    torch.manual_seed(1)
    return calibrated(OddNet(PATTERNS[pattern]), SIZE, 2)


def check_shapes_in_turn():
    """One engine for batches of two and one image and for two batches at a time: nothing is left of the one before."""
    network = odd_network("residual")
    engine = FastEngine(network, ALL, 4)
    for groups, batch in ((1, 2), (1, 1), (2, 1), (1, 2)):
        check_parity(network, 4, groups, batch, engine=engine, seed=batch)


def check_adam():
    """look.adam_step against adam.adam_step, with clamps and a value that is not a number."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, 3, 11, 11, dtype=torch.float64, generator=g)
    low, high = torch.tensor([-1.5, -1.0, -2.0]).double().view(3, 1, 1), torch.tensor([1.0, 1.5, 2.0]).double().view(3, 1, 1)
    ours, theirs = ([x.clone(), torch.zeros_like(x), torch.zeros_like(x)] for _ in range(2))
    for rate in adam.adam_rates([0.25, 0.2, 0.1]):
        gradient = torch.randn(x.shape, dtype=torch.float64, generator=g)
        gradient[1, 0, 2, 3, 4] = float("nan")
        look.adam_step(*ours, gradient, rate, low, high)
        adam.adam_step(*theirs, gradient, rate, low, high)
        assert all(torch.allclose(a, b, rtol=1e-13, atol=1e-13, equal_nan=True) for a, b in zip(ours, theirs))
    assert torch.isnan(ours[0]).sum() == 1


def main():
    for arch, size, groups, batch in (("resnet18", 32, 1, 1), ("resnet18", 20, 3, 1), ("mobilenet_v2", 32, 1, 1), ("small", 33, 2, 1)):
        engine = check_parity(network_of(arch, size), size, groups, batch)
        assert engine.on_gpu  # so it is the kernels that have run
    for weights in ("no statistics", "first layer off"):
        check_parity(network_of("small", 16), 16, 1, 1, weights=PARTS[weights])
    for pattern in KERNEL_PATTERNS:
        check_parity(odd_network(pattern), SIZE, 2, 1)
    check_shapes_in_turn()
    check_adam()
    print("every kernel equal")


if __name__ == "__main__":
    main()
