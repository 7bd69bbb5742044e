"""The blocks of a run: each has a size, a number of steps and a fresh Adam. After each but the last a real
image P may be merged in (FADRM: four blocks of 500 steps at 200, 224, 200, 224 pixels, merged at 0.5).

    x = bilinear(x -> size of the next block)
    x = (1 - merge) x + merge bilinear(P -> size of the next block)

One cosine of the learning rate runs over all blocks. A run without --blocks is one block."""
import argparse
import re
from dataclasses import dataclass

import torch.nn.functional as F

from recover.step import Stepper
from sre2l.run.errors import UserError

LEAST_SIZE = 8  # pixels, as of --input-size


@dataclass(frozen=True)
class Block:
    """Iterations first ... stop - 1 of a run, on images of size x size pixels."""
    first: int
    stop: int
    size: int


def block_list(text):
    """An argparse type: '500@200,500' -> [(500, 200), (500, None)], steps and pixels."""
    parts = [re.fullmatch(r"(\d+)(?:@(\d+))?", part) for part in text.split(",")]
    if not all(parts):
        raise argparse.ArgumentTypeError(f"{text!r}: write it like 500@200,500@224 (steps@pixels, or steps)")
    found = [(int(steps), size and int(size)) for steps, size in (part.groups() for part in parts)]
    if any(steps < 1 or (size is not None and size < LEAST_SIZE) for steps, size in found):
        raise argparse.ArgumentTypeError(f"{text!r}: at least 1 step and {LEAST_SIZE} pixels each")
    return found


class Iterations(argparse.Action):
    """--iteration. Behind --blocks, which a recipe may have, it would do nothing, so it is refused there."""

    def __call__(self, parser, namespace, value, option_string=None):
        blocks = namespace.blocks or ()
        if blocks and value != sum(steps for steps, _ in blocks):
            typed = ",".join(f"{steps}@{size}" if size else f"{steps}" for steps, size in blocks)
            raise UserError(f"{option_string} {value} stands after --blocks {typed}, which has the steps; "
                            f"type other --blocks, or --blocks {value} --merge 0 for one block of {value}")
        setattr(namespace, self.dest, value)


def plan_blocks(parts, size):
    """[(steps, pixels or None)] -> Blocks. size: of the data set's images, for those that have none."""
    blocks = []
    first = 0
    for steps, block_size in parts:
        blocks.append(Block(first, first + steps, block_size or size))
        first += steps
    return blocks


def describe_blocks(blocks):
    """Blocks as --blocks takes them, each with its size; None for a single one, which is no setting."""
    return ",".join(f"{one.stop - one.first}@{one.size}" for one in blocks) if len(blocks) > 1 else None


def check_blocks(blocks, size, jitter):
    """Raise UserError where the last block makes images of another size than the data set's, or an image is
    smaller than the largest roll."""
    if blocks[-1].size != size:
        raise UserError(f"--blocks: the last block makes images of {blocks[-1].size} pixels, but the next "
                        f"stages want {size}; end with a block of {size} (--input-size is for all)")
    smallest = min(block.size for block in blocks)
    if jitter > smallest:
        raise UserError(f"--jitter {jitter} is more than the image size, {smallest} pixels")


def resize(images, size):
    """(..., 3, H, W) -> (..., 3, size, size), bilinear without antialiasing, as in FADRM."""
    if images.shape[-2:] == (size, size):
        return images
    resized = F.interpolate(images.flatten(0, -4), size=(size, size), mode="bilinear", align_corners=False)
    return resized.view(*images.shape[:-2], size, size)


@dataclass
class Course:
    """Takes one group of batches after another through the blocks."""
    stepper: Stepper
    engines: dict  # {pixels: the Engine for images of that size}
    blocks: list
    rates: list    # of all iterations
    merge: float   # the weight of the real image

    def start(self, noise, views, real, targets, iteration=0, tensors=None):
        """Take up a group. noise (G, B, 3, S, S): of the first block's size, on the device; views: T lists of
        G View; real: {S: real images (G, B, 3, S, S)}, or None to begin with the noise; targets (G, B).

        iteration, tensors: how many iterations an earlier run has done, and the Stepper's tensors then."""
        self.views = views
        self.real = real and {size: images.to(noise) for size, images in real.items()}
        self.targets = targets
        at = next(i for i, block in enumerate(self.blocks) if iteration <= block.stop)
        if tensors is None:
            self.enter(at, noise if self.real is None else self.real[self.blocks[0].size])
        else:
            self.enter(at, tensors[0])
            for tensor, value in zip(self.stepper.tensors, tensors):
                tensor.copy_(value)
        self.stepper.forget_nonfinite()

    def enter(self, at, images):
        """Begin block number `at` with these images and a fresh Adam."""
        self.at = at
        block = self.blocks[at]
        part = slice(block.first, block.stop)
        self.stepper.start(images, self.targets, self.views[part], self.rates[part], block.first,
                           self.engines[block.size])

    def step(self, iteration):
        """Iteration 0, 1, ... of the run -> its Terms, before the step."""
        if iteration == self.blocks[self.at].stop:
            size = self.blocks[self.at + 1].size
            images = resize(self.stepper.images, size)
            if self.merge:
                images = images.lerp(self.real[size], self.merge)
            self.enter(self.at + 1, images)
        return self.stepper.step(iteration)
