"""Which images are in which batch: spec section 6, and torch's own samplers."""
import hashlib
import itertools
from functools import partial

import numpy as np
import torch

from relabel.relabel import draw_label_batch
from sre2l.data.image_folder import Images
from sre2l.data.loader import BatchDataset, Batches, load_batches

# sha1 of epochs 0-3, n = 50000, seed 42
CHECK = ("c3fbfbd4b18c", "bcb91c88f12e", "aac16293c0b8", "eb6bcdd4d784")
SETTINGS = {"crop": {"kind": "resized", "scale": [0.08, 1], "padding": 0, "flip": True}, "input_size": 16,
            "seed": 7, "mix": "cutmix",
            "mix_alpha": 1.0}


def test_order_has_the_published_check_values():
    epochs = [np.concatenate([batch.rows for batch in rows]) for _, rows in
              itertools.groupby(Batches(50000, 1024, 42, 4), key=lambda batch: batch.epoch)]
    assert epochs[0][:8].tolist() == [37542, 44491, 216, 43688, 41558, 32245, 27206, 10863]
    assert tuple(hashlib.sha1(",".join(map(str, order)).encode()).hexdigest()[:12]
                 for order in epochs) == CHECK


def test_workers_change_neither_batches_nor_pixels():
    """0 and 2 threads, and no loader at all: the same batches, crops, mixes and pixels in the same order."""
    rng = np.random.default_rng(0)
    items = [rng.integers(0, 256, (20, 24, 3), dtype=np.uint8) for _ in range(11)]
    dataset = BatchDataset(Images(items, np.arange(11), [], "noise"), 16, partial(draw_label_batch, SETTINGS))
    batches = Batches(11, 4, 42, 3)
    wanted = [dataset[batch] for batch in batches]
    for workers in (0, 2):
        torch.manual_seed(workers)
        loaded = list(load_batches(dataset, batches, workers, torch.device("cpu")))
        assert len(loaded) == 9
        for (batch, pixels, sheet), (batch0, pixels0, sheet0) in zip(loaded, wanted):
            assert (batch.epoch, batch.index, np.asarray(batch.rows).tolist()) == (batch0.epoch, batch0.index,
                                                                                   batch0.rows.tolist())
            assert torch.equal(pixels, pixels0)
            assert torch.equal(sheet.crops.boxes, sheet0.crops.boxes)
            assert torch.equal(sheet.crops.flips, sheet0.crops.flips)
            assert torch.equal(sheet.mix.partner, sheet0.mix.partner)
            assert (sheet.mix.lam, sheet.mix.box) == (sheet0.mix.lam, sheet0.mix.box)
