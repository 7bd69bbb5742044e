"""The real images that recover begins with, and that --merge mixes in between blocks: --init FOLDER.

A folder in recover's layout, such as pick.sh and random_real.sh write: the name of a file tells its class and
its ipc index, new007/class007_id003.png."""
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from recover.blocks import resize
from sre2l.check.manifest import describe_images
from sre2l.check.verify import read_checked, verify_images
from sre2l.data.augment import normalise
from sre2l.data.image_folder import Images
from sre2l.data.pixel_store import keep_decoded
from sre2l.run.errors import UserError
from sre2l.run.flags import check_folders
from sre2l.run.hashes import numbers_in
from sre2l.run.output import check_dataset


@dataclass(frozen=True)
class RealImages:
    """images: all of the folder; rows: {(ipc, class): place among them}."""
    images: Images
    rows: dict

    def describe(self):
        """What ties settings to these images, wherever they lie."""
        described = describe_images(self.images)
        return {key: described[key] for key in ("num_images", "paths_sha256", "images_sha256")}

    def decoded(self):
        """The same, decoded once if they fit into memory. Raises UserError for a file that cannot be read."""
        images, _ = keep_decoded(self.images)
        return RealImages(images, self.rows)

    def read(self, group, size, mean, std):
        """The real images of a BatchGroup -> (G, B, 3, size, size) float32, normalised and resized."""

        def read_one(pair):
            pixels = torch.from_numpy(self.images.pixels(self.rows[pair]).copy()).permute(2, 0, 1)
            return resize(normalise(pixels[None], mean, std), size)[0]

        return torch.stack([torch.stack([read_one(pair) for pair in batch.pairs]) for batch in group.batches])


def find_real(root, spec, batches, output, ipc_end):
    """Read the folder of --init -> RealImages, not yet decoded. ipc_end: of the run; batches may go beyond.

    Raises UserError for a folder that is not complete, holds images of another data set or is the output
    folder, and where an image of these batches is missing in it."""
    check_folders(root)
    if os.path.realpath(root) == os.path.realpath(output):
        raise UserError(f"--init {root}: is the folder that this run writes; give it another --exp-name")
    check_dataset(root, spec.name)
    images = read_checked(verify_images(root, spec.num_classes))
    if not all(name.startswith("new") for name in images.class_names):
        raise UserError(f"--init {root}: its folders are not named new000, new001, ..., so nothing tells "
                        f"which image of a class is which")
    rows = {(numbers_in(Path(path).name)[-1], label): row
            for row, (path, label) in enumerate(zip(images.items, images.labels.tolist()))}

    pairs = [pair for batch in batches for pair in batch.pairs]
    missing = [pair for pair in pairs if pair not in rows]
    if missing:
        ipc, label = missing[0]
        first, last = min(pairs)[0], max(pairs)[0]
        held = min(missing)[0]  # every class has those before it
        if first < held < ipc_end:
            raise UserError(f"--init {root}: holds {held} image{'s' * (held > 1)} a class, --ipc-end is "
                            f"{ipc_end}: add --ipc-end {held}, or pick {ipc_end}")
        raise UserError(f"--init {root}: has no image {ipc} of class {label}; batches of "
                        f"{len(batches[0].pairs)} take images {first} to {last} of a class: pick as many, or "
                        f"choose a smaller --batch-size or --batch-order class")
    return RealImages(images, rows)
