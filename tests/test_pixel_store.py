"""Images decoded once, batches prepared ahead: the same pixels, errors in words, no thread left."""
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sre2l.data import image_folder
from sre2l.data import pixel_store as store
from sre2l.data.derived import draw_label_batch
from sre2l.data.image_folder import read_folder
from sre2l.data.loader import BatchDataset, Batches, load_batches
from sre2l.run import limits
from sre2l.run.ahead import in_order
from sre2l.run.errors import UserError
from stress.compare import same_values

CPU = torch.device("cpu")
on_gpu = pytest.mark.gpu
SETTINGS = {"crop": {"kind": "resized", "scale": [0.08, 1], "padding": 0, "flip": True}, "input_size": 16,
            "seed": 7, "mix": "cutmix", "mix_alpha": 1.0}


@pytest.fixture
def images(tmp_path):
    """Nine JPEGs of different sizes in three classes."""
    rng = np.random.default_rng(0)
    for label in range(3):
        (tmp_path / "set" / f"c{label}").mkdir(parents=True)
        for i in range(3):
            shape = *rng.integers(17, 60, 2), 3
            noise = rng.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "set" / f"c{label}" / f"{i}.jpg")
    return read_folder(tmp_path / "set")


def assert_same_pixels(images, others):
    for index in (*range(len(images)), -1):
        assert np.array_equal(images.pixels(index), others.pixels(index))
        assert images.pixels(index).dtype == np.uint8
    assert np.array_equal(images.shapes(np.arange(9)), others.shapes(np.arange(9)))


def test_pixels_are_the_same_decoded_once_or_at_each_use(images, monkeypatch):
    kept, line = store.keep_decoded(images)
    assert_same_pixels(images, kept)
    assert "decoded into memory" in line
    assert f"{sum(image.size for image in map(images.pixels, range(9))) / 1e6:.1f} MB" in line
    monkeypatch.setattr(limits, "MEMORY_SHARE", 0)
    left, line = store.keep_decoded(images)
    assert left.store is None and "decoded at each use" in line


def test_an_image_that_ends_early_is_named(images):
    Path(images.items[5]).write_bytes(Path(images.items[5]).read_bytes()[:-100])  # its header is whole
    with pytest.raises(UserError, match="c1/2.jpg"):
        store.keep_decoded(images)


@pytest.mark.parametrize("kept", (False, True))
@pytest.mark.parametrize("workers", (0, 3))
def test_batches_are_the_same_with_threads_and_decoded_once_or_at_each_use(images, workers, kept):
    """Those of no loader at all: the same batches, crops, mixes and pixels in the same order."""
    of = partial(draw_label_batch, SETTINGS)
    dataset = BatchDataset(images, 16, of)
    batches = Batches(9, 4, 42, 3)
    wanted = [dataset[batch] for batch in batches]
    torch.manual_seed(workers)
    images = store.keep_decoded(images)[0] if kept else images
    loaded = load_batches(BatchDataset(images, 16, of), batches, workers, CPU)
    for (batch, pixels, sheet), (batch0, pixels0, sheet0) in zip(loaded, wanted, strict=True):
        assert (batch.epoch, batch.index, batch.rows.tolist()) == (
            batch0.epoch, batch0.index, batch0.rows.tolist())
        assert torch.equal(pixels, pixels0)
        assert same_values(vars(sheet.crops), vars(sheet0.crops))
        assert same_values(vars(sheet.mix), vars(sheet0.mix))


@pytest.mark.parametrize("kept", (False, True))
def test_crops_of_chosen_rows_are_those_rows_of_the_whole_batch(images, kept):
    images = store.keep_decoded(images)[0] if kept else images
    dataset = BatchDataset(images, 16, partial(draw_label_batch, SETTINGS))
    batches = Batches(9, 4, 42, 2)

    def rows_of(batch):
        return slice(batch.index, 3)
    whole = list(load_batches(dataset, batches, 0, CPU))
    part = load_batches(dataset, batches, 2, CPU, rows_of)
    for (batch, pixels, sheet), (_, every, _) in zip(part, whole, strict=True):
        assert torch.equal(pixels, every[rows_of(batch)])
        assert len(sheet.crops.boxes) == len(batch.rows)


@pytest.mark.parametrize("part_bytes", (1, 2000, 2 ** 30))
def test_parts_of_any_size_fill_the_gpus_memory_as_one_does(images, part_bytes, monkeypatch):
    """An image larger than a part is a part of its own."""
    monkeypatch.setattr(image_folder, "PART_BYTES", part_bytes)
    kept = store.keep_decoded(images)[0].store
    assert np.array_equal(store.fill_gpu(images, kept.starts, kept.shapes, CPU).numpy(), kept.buffer)


@on_gpu
@pytest.mark.parametrize("workers", (0, 2))
def test_batches_on_the_gpu_equal_those_of_the_cpu(images, workers):
    device = torch.device("cuda")
    of = partial(draw_label_batch, SETTINGS)
    kept, line = store.keep_decoded(images, device)
    assert "GPU memory" in line and kept.store.layout is not None
    assert_same_pixels(images, kept)
    streams = [load_batches(BatchDataset(every, 16, of), Batches(9, 4, 42, 3), workers, on)
               for every, on in ((images, CPU), (kept, device), (images, device))]
    for (_, pixels, _), (_, resident, _), (_, uploaded, _) in zip(*streams, strict=True):
        assert resident.device.type == uploaded.device.type == "cuda"
        assert torch.equal(resident.cpu(), pixels) and torch.equal(uploaded.cpu(), pixels)


@on_gpu
def test_a_process_without_rows_gets_no_crops(images):
    kept, _ = store.keep_decoded(images, torch.device("cuda"))
    dataset = BatchDataset(kept, 16, partial(draw_label_batch, SETTINGS))
    for _, pixels, _ in load_batches(dataset, Batches(9, 4, 42, 1), 0, torch.device("cuda"),
                                     lambda _: slice(0, 0)):
        assert pixels.shape == (0, 3, 16, 16)


@pytest.fixture
def threads():
    """-> threads(): the threads of pools that were started since, whatever an earlier test has left."""
    def pooled():
        return {thread for thread in threading.enumerate() if "ThreadPool" in thread.name}
    before = pooled()
    return lambda: pooled() - before


@pytest.mark.parametrize("workers", (0, 1, 4))
def test_results_come_in_order_and_few_are_made_ahead(workers, threads):
    made = []

    def work(item):
        time.sleep(0.002 * (item % 3))
        made.append(item)
        return item * item
    for at, result in enumerate(in_order(work, range(30), workers)):
        assert result == at * at and len(made) <= at + 1 + workers
    assert at == 29 and sorted(made) == list(range(30)) and not threads()


@pytest.mark.parametrize("workers", (0, 3))
def test_an_error_in_a_thread_is_raised_at_its_place(workers, threads):
    def work(item):
        if item == 5:
            raise UserError("the fifth")
        return item
    stream = in_order(work, range(100), workers)
    assert [next(stream) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="the fifth"):
        next(stream)
    assert not threads()


def test_no_thread_outlives_a_consumer_that_stops(threads):
    stream = in_order(lambda item: item, range(10 ** 9), 3)
    assert next(stream) == 0 and threads()
    stream.close()
    assert not threads()
