"""A folder of synthetic JPEGs and of label files for them, for the benchmark."""
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from sre2l.check.verify import read_synthetic
from sre2l.data.datasets import DATASETS
from sre2l.data.derived import draw_label_batch
from sre2l.data.image_folder import encode, image_path
from sre2l.data.loader import Batches
from tests.helpers import write_label_batch

SPEC = DATASETS["imagenet1k"]
NUM_FOLDERS, NUM_DISTINCT, SEED = 10, 200, 42  # classes and different images on disk; seed of their order


def draw_settings(size):
    """The part of relabel's settings that the draws of a batch depend on: the published protocol's."""
    crop = {"kind": "resized", "padding": 0, "scale": [0.08, 1.0], "flip": True}
    return {"seed": 0, "crop": crop, "mix": "cutmix", "mix_alpha": 1.0, "input_size": size}


@dataclass(frozen=True)
class World:
    """Images under root, and labels for them.

    size: of images and crops, pixels; epochs: how many have labels; workers: processes or threads."""
    root: Path
    num_images: int
    size: int
    batch: int
    epochs: int
    device: torch.device
    workers: int

    @property
    def images(self):
        """The first num_images on disk, not decoded."""
        images = read_synthetic(self.root / "images", SPEC.num_classes, range(NUM_FOLDERS))
        return replace(images, items=images.items[:self.num_images], labels=images.labels[:self.num_images])

    @property
    def labels(self):
        """The folder of label files, which belong to a number of images and a batch size."""
        return self.root / f"labels_{self.num_images}_{self.batch}"

    def epoch(self, number):
        return Batches(self.num_images, self.batch, SEED, number + 1, number)


def smooth_noise(size, rng):
    """Noise of all scales (S, S, 3) uint8 that compresses as recovered images do: about 15 kB at 224."""
    total = np.zeros((size, size, 3), np.float32)
    for scale in (4, 8, 16, 32, 64, 128):
        coarse = torch.from_numpy(rng.standard_normal((1, 3, scale, scale), dtype=np.float32))
        layer = F.interpolate(coarse, (size, size), mode="bilinear")[0].permute(1, 2, 0).numpy()
        total += layer * 50 / scale ** 0.1
    return np.clip(total + 128, 0, 255).astype(np.uint8)


def write_images(world):
    """A world's images in recover's layout, the same number in each folder; copies beyond NUM_DISTINCT."""
    rng = np.random.default_rng(0)
    paths = [image_path(world.root / "images", index % NUM_FOLDERS, index // NUM_FOLDERS, SPEC.num_classes)
             for index in range(world.num_images)]
    for index, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        if index < NUM_DISTINCT:
            path.write_bytes(encode(smooth_noise(world.size, rng)))
        else:
            shutil.copyfile(paths[index % NUM_DISTINCT], path)


def write_labels(world):
    """Label files of random logits for every epoch: what they say costs validate nothing."""
    settings = draw_settings(world.size)
    for number in range(world.epochs):
        for batch in world.epoch(number):
            drawn = draw_label_batch(settings, batch, [(world.size, world.size)] * len(batch.rows))
            logits = torch.randn(len(batch.rows), SPEC.num_classes).half()
            write_label_batch(world.labels, batch.epoch, batch.index, drawn._replace(logits=logits))
