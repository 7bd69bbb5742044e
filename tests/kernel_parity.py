"""The GPU kernels against the plain engine without a GPU: TRITON_INTERPRET=1 python -m tests.kernel_parity.

Prints one line and takes about 25 seconds. The interpreter's time goes with the number of
programs: images are small, and a whole network runs where only a whole network shows something."""
import os

os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import torch  # noqa: E402
from torchvision.models import MobileNetV2, ResNet  # noqa: E402
from torchvision.models.resnet import BasicBlock  # noqa: E402

from recover.engines import make_fast_engine  # noqa: E402
from recover.triton_engine import TritonEngine  # noqa: E402
from sre2l.kernels import adam  # noqa: E402
from sre2l.kernels.triton import view  # noqa: E402
from tests.nets import calibrated  # noqa: E402
from tests.oddnets import SIZE, odd_network  # noqa: E402
from tests.parity import ALL, PARTS, check_parity, check_target_parity, network_of, target_of  # noqa: E402

SMALL_SIZE = 6  # pixels: even, for the stem's pool; 3 after it
KERNEL_PATTERNS = ("hardtanh", "thin twice", "pool of relu6", "pool, two ways", "pool and not", "lines",
                   "norm of the image", "two norms", "layer twice")


def small_mobilenet(size):
    """ReLU6, depthwise convolutions and residuals without a ReLU: three blocks of a MobileNetV2."""
    torch.manual_seed(1)
    blocks = [[1, 16, 1, 1], [6, 24, 2, 2]]  # expansion, channels, how many, stride of the first
    return calibrated(MobileNetV2(num_classes=5, width_mult=0.5, inverted_residual_setting=blocks), size, 2)


def small_resnet(size):
    """A ResNet-18 with one block a stage."""
    torch.manual_seed(1)
    return calibrated(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5), size, 2)


def check_whole_networks():
    """Pool, shortcuts, several tiles of channels; a size above a power of two; odd sizes, three batches."""
    engine = check_parity(small_resnet(12), 12, 1, 1)
    assert isinstance(engine, TritonEngine)  # so it is the kernels that have run
    check_parity(small_mobilenet(16), 16, 1, 1)
    check_parity(network_of("small", 17), 17, 2, 1)
    check_parity(odd_network("shortcut", 9), 9, 3, 1)


def check_weights():
    """Without the statistics, and without those of the first layer."""
    for weights in ("no statistics", "first layer off"):
        check_parity(network_of("small", 9), 9, 1, 1, weights=PARTS[weights])


def check_patterns():
    for pattern in KERNEL_PATTERNS:
        check_parity(odd_network(pattern, SMALL_SIZE), SMALL_SIZE, 2, 1)
    check_parity(odd_network("broadcast over images", SIZE), SIZE, 2, 1)  # it has a parameter of this size


def check_shapes_in_turn():
    """One engine for batches of two, one, and two at a time: nothing is left of the one before."""
    network = odd_network("residual", SMALL_SIZE)
    engine = make_fast_engine(network, ALL, 4)
    for groups, batch in ((1, 2), (1, 1), (2, 1), (1, 2)):
        check_parity(network, 4, groups, batch, engine=engine, seed=batch)


def check_targets():
    """Statistics of each batch's own as targets and as what normalises, also in the pool's kernels."""
    for kind in ("class:0.3", "group"):
        network = odd_network("pool, two ways", SMALL_SIZE)
        check_target_parity(network, SMALL_SIZE, target_of(kind, network), ((2, 1), (2, 1), (1, 2)))
    network = network_of("small", 9)
    check_target_parity(network, 9, target_of("group", network), ((2, 1),))


def check_adam():
    """view.adam_step against adam.adam_step, with clamps and a value that is not a number."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, 3, 11, 11, dtype=torch.float64, generator=g)
    low = torch.tensor([-1.5, -1.0, -2.0]).double().view(3, 1, 1)
    high = torch.tensor([1.0, 1.5, 2.0]).double().view(3, 1, 1)
    ours, theirs = ([x.clone(), torch.zeros_like(x), torch.zeros_like(x)] for _ in range(2))
    for rate in adam.adam_rates([0.25, 0.2, 0.1]):
        gradient = torch.randn(x.shape, dtype=torch.float64, generator=g)
        gradient[1, 0, 2, 3, 4] = float("nan")
        view.adam_step(*ours, gradient, rate, low, high)
        adam.adam_step(*theirs, gradient, rate, low, high)
        assert all(torch.allclose(a, b, rtol=1e-13, atol=1e-13, equal_nan=True) for a, b in zip(ours, theirs))
    assert torch.isnan(ours[0]).sum() == 1


def main():
    check_whole_networks()
    check_weights()
    check_patterns()
    check_shapes_in_turn()
    check_targets()
    check_adam()
    print("every kernel equal")


if __name__ == "__main__":
    main()
