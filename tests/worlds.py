"""A small world of noise for the tests of bad input: images, a teacher, labels, and flags to use them."""
from recover import recover
from relabel import relabel
from squeeze import squeeze
from tests.helpers import SMALL, bare_checkpoint, noise_folder, run_main, synthetic_folder
from validate import train

NAMES = [f"c{i}" for i in range(10)]


def make_world(root):
    """Real images, a foreign teacher, 20 synthetic images with labels for two epochs, under root -> root."""
    noise_folder(root / "real" / "train", NAMES, 3)
    noise_folder(root / "real" / "val", NAMES, 2, seed=1)
    bare_checkpoint(root / "teacher.pth")
    synthetic_folder(root / "run" / "images")
    run_main(*relabel_flags(root, "--epochs", 2, "-b", 8))
    return root


def common(root, name="run"):
    return "--dataset", "cifar10", "--name", root / name, "--device", "cpu"


def teacher(root):
    return "--teacher", root / "teacher.pth", "--arch", SMALL


def squeeze_flags(root, *flags, name="run"):
    return (
        squeeze, *common(root, name), "--real-data", root / "real", "--arch", SMALL, "--epochs", 1, "-b", 10,
        "-j", 0, *flags)


def recover_flags(root, *flags, name="new"):
    return (
        recover, *common(root, name), *teacher(root), "--iteration", 1, "--ipc-end", 1, "--batch-size", 10,
        "--no-crop-flip", *flags)


def relabel_flags(root, *flags):
    return relabel, *common(root), *teacher(root), "-j", 0, *flags


def train_flags(root, *flags):
    return train, *common(root), "--val-dir", root / "real", "--model", SMALL, "--epochs", 1, "-j", 0, *flags


def labelled_images(root, mix, *flags):
    """40 images in batches of 16, 16 and 8, with labels for two epochs -> flags of validate for them."""
    synthetic_folder(root / "run" / "images", ipc=4)
    noise_folder(root / "real" / "train", NAMES, 3)
    noise_folder(root / "real" / "val", NAMES, 2, seed=1)
    flags = ("--dataset", "cifar10", "--name", root / "run", "-j", 0, *flags)
    run_main(
        relabel, *flags, "--device", "cpu", "--teacher", bare_checkpoint(root / "t.pth"), "--arch", SMALL,
        "--epochs", 2, "-b", 16, "--mix-type", mix)
    return (*flags, "--val-dir", root / "real", "--epochs", 2, "--eval-every", 1)
