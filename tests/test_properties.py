"""Properties that hold whatever the numbers and names: hypothesis looks for those for which they do not."""
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, RandomSampler

from recover.batches import group_batches, index_ranges, plan_batches
from sre2l.data import resize
from sre2l.data.augment import apply_mix, draw_crops, draw_mix, draw_resized_windows, mixed_share
from sre2l.data.image_folder import image_path
from sre2l.data.label_files import label_name
from sre2l.data.loader import Batches
from sre2l.data.resize import pixel_windows
from sre2l.run.errors import UserError
from sre2l.run.files import read_json, sidecar, write_json
from sre2l.run.hashes import numbers_in, read_hashes
from sre2l.run.output import OutputFolder, recorded
from tests.crops import by_pillow
from tests.helpers import release_locks
from validate.losses import hard_targets

# The same examples at each run, so that a test that fails now has failed before; no deadline, since the
# machine may be busy.
often = settings(deadline=None, derandomize=True, database=None, max_examples=60,
                 suppress_health_check=[HealthCheck.too_slow])
now_and_then = settings(often, max_examples=25)

seeds = st.integers(0, 2 ** 31)
sides = st.integers(1, 60)


# Order

@often
@given(num_images=st.integers(1, 200), batch_size=st.integers(1, 70), seed=st.integers(0, 2 ** 63),
       epochs=st.integers(1, 4), first=st.integers(0, 4))
def test_batches_are_those_of_torchs_sampler(num_images, batch_size, seed, epochs, first):
    sampler = BatchSampler(RandomSampler(range(num_images), generator=torch.Generator().manual_seed(seed)),
                           batch_size, drop_last=False)
    wanted = [(epoch, index, rows) for epoch in range(epochs) for index, rows in enumerate(sampler)]
    first = min(first, epochs)
    batches = Batches(num_images, batch_size, seed, epochs, first)
    found = [(batch.epoch, batch.index, batch.rows.tolist()) for batch in batches]
    assert found == [row for row in wanted if row[0] >= first] and len(batches) == len(found)
    assert batches.per_epoch == len(sampler)


def test_order_has_the_published_check_values():
    """sha1 of epochs 0-3, n = 50000, seed 42."""
    epochs = [[], [], [], []]
    for batch in Batches(50000, 1024, 42, 4):
        epochs[batch.epoch] += batch.rows.tolist()
    assert epochs[0][:8] == [37542, 44491, 216, 43688, 41558, 32245, 27206, 10863]
    assert [hashlib.sha1(",".join(map(str, order)).encode()).hexdigest()[:12] for order in epochs] == [
        "c3fbfbd4b18c", "bcb91c88f12e", "aac16293c0b8", "eb6bcdd4d784"]


# Crops

@often
@given(sizes=st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=8),
       seed=seeds,
       scale=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)).map(sorted), flip=st.booleans())
def test_resized_windows_lie_inside_and_come_back_from_their_fractions(sizes, seed, scale, flip):
    """The float32 fractions that a label file keeps, rounded, are the pixels that were drawn.

    Area and aspect are within their bounds, but for what rounding adds. Where no window of the area fits,
    it is the largest of an allowed aspect, which spans a side."""
    sizes = np.array(sizes)
    crops = draw_crops(sizes, "resized", scale, 0, flip, np.random.default_rng(seed))
    windows = pixel_windows(crops.boxes, sizes)
    assert np.array_equal(windows, draw_resized_windows(sizes, scale, np.random.default_rng(seed)))
    assert (windows[:, :2] >= 0).all() and (windows[:, 2:] >= 1).all()
    assert (windows[:, :2] + windows[:, 2:] <= sizes).all()
    assert flip or not crops.flips.any()
    for (height, width), (h, w) in zip(sizes.tolist(), windows[:, 2:].tolist()):
        assert (w + 0.5) / (h - 0.5) >= 3 / 4 and (w - 0.5) / (h + 0.5) <= 4 / 3
        has_area = (h + 0.5) * (w + 0.5) >= scale[0] * height * width
        assert has_area or h == height or w == width


@often
@given(shape=st.tuples(sides, sides), corner=st.tuples(st.integers(-70, 70), st.integers(-70, 70)),
       extent=st.tuples(st.integers(1, 80), st.integers(1, 80)),
       flip=st.booleans(), size=st.integers(1, 50), seed=seeds)
def test_every_pixel_of_a_crop_is_pillows(shape, corner, extent, flip, size, seed):
    """Any window, also half or wholly outside; the compiled kernel and the code that stands in for it."""
    image = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    windows = np.array([[*corner, *extent]])
    flips = np.array([flip])
    wanted = by_pillow([image], windows, flips, size)
    for crop in (resize.host_cropper()[0], resize.crop_with_pillow):
        assert torch.equal(crop([image], windows, flips, size), wanted)


# Mix

kinds = st.sampled_from(("none", "mixup", "cutmix"))


@often
@given(kind=kinds, alpha=st.floats(0.05, 5), num_rows=st.integers(1, 40), size=st.integers(1, 40), seed=seeds)
def test_the_share_of_an_image_is_what_it_has_of_the_mixed_one(kind, alpha, num_rows, size, seed):
    """Row i is filled with the number i: what is left of it in the mixed batch, and what its partner puts
    there, is the stated share, which hard labels take over; nothing is written into the batch itself."""
    mix = draw_mix(kind, alpha, num_rows, size, np.random.default_rng(seed))
    rows = torch.arange(num_rows, dtype=torch.float64)
    images = rows.view(-1, 1, 1, 1).expand(-1, 3, size, size).clone()
    mixed = apply_mix(images, mix)
    assert (images == rows.view(-1, 1, 1, 1)).all() and mix.kind == kind
    if kind == "none":
        assert torch.equal(mixed, images)
        return
    assert sorted(mix.partner.tolist()) == list(range(num_rows)) and 0 <= mix.lam <= 1
    share = mixed_share(mix, size)
    assert torch.allclose(mixed.mean((1, 2, 3)), share * rows + (1 - share) * rows[mix.partner], atol=1e-9)
    if kind == "cutmix":
        row1, col1, row2, col2 = mix.box
        assert 0 <= row1 <= row2 <= size and 0 <= col1 <= col2 <= size
        assert set(mixed.unique().tolist()) <= set(rows.tolist())
    else:
        assert (mixed - (mix.lam * images + (1 - mix.lam) * images[mix.partner])).abs().max() < 1e-12
    classes = F.one_hot(torch.arange(num_rows) % 3, 5)  # some rows have their partner's class
    wanted = share * classes + (1 - share) * classes[mix.partner]
    assert torch.allclose(hard_targets(classes.argmax(1), mix, 5, size), wanted)


# Units of work

classes_of_sets = st.sets(st.integers(0, 60), min_size=1, max_size=30).map(sorted)


@often
@given(classes=classes_of_sets, batch_size=st.integers(1, 40), groups=st.integers(1, 5),
       cuts=st.sets(st.integers(0, 12), min_size=2, max_size=5).map(sorted))
def test_batches_of_any_ranges_cover_each_pair_once(classes, batch_size, cuts, groups):
    """Ranges side by side, as several processes or days take them: a pair's batch is the same from either."""
    whole = plan_batches(classes, batch_size, 0, cuts[-1])
    batch_of = {}
    for start, end in zip(cuts, cuts[1:]):
        batches = plan_batches(classes, batch_size, start, end)
        assert all(batch == whole[batch.index] for batch in batches)
        found = group_batches(batches, groups)
        assert [batch for group in found for batch in group.batches] == batches
        assert all(len({len(batch.pairs) for batch in group.batches}) == 1 for group in found)
        assert all(len(group.batches) <= groups for group in found)
        for group, following in zip(found, found[1:]):
            is_full = len(group.batches) == groups
            assert is_full or len(group.batches[0].pairs) != len(following.batches[0].pairs)
        pairs = [pair for group in found for pair in group.pairs]
        assert len(set(pairs)) == len(pairs)
        assert set(pairs) >= {(ipc, label) for ipc in range(start, end) for label in classes}
        for batch in batches:
            assert 1 <= len(batch.pairs) <= batch_size and any(start <= ipc < end for ipc, _ in batch.pairs)
            assert all(batch_of.setdefault(pair, batch) == batch for pair in batch.pairs)
    assert set(batch_of) >= {(ipc, label) for ipc in range(cuts[0], cuts[-1]) for label in classes}


@now_and_then
@given(indices=st.sets(st.integers(0, 300), max_size=40), num_classes=st.integers(1, 30))
def test_index_ranges_hold_each_flat_index_once_and_touch_nowhere(indices, num_classes):
    ranges = index_ranges([divmod(index, num_classes) for index in indices], num_classes)
    assert [index for first, stop in ranges for index in range(first, stop)] == sorted(indices)
    assert all(stop < first for (_, stop), (first, _) in zip(ranges, ranges[1:]))


# What is written beside the results and read back

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
plain = st.none() | st.booleans() | numbers | st.text(max_size=20)


def nested(inner):
    return st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)


values = st.recursive(plain, nested, max_leaves=6)
letters = st.characters(exclude_characters="/\0", exclude_categories=("Cs",))
names = st.text(letters, min_size=1, max_size=30).filter(lambda name: name not in (".", ".."))


@now_and_then
@given(kept=st.dictionaries(st.text(max_size=8), values, min_size=1, max_size=5), other=plain, name=names)
@example(kept={"lr": 0.1, "a\n'b\"": [1, None, "ü\u2028"]}, other=0, name="a b'[*]?$(x)\n.json")
def test_settings_are_read_back_as_they_were_written(kept, other, name):
    """Any values under any names: the same go on, others are refused by key, a changed file too."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / name
        path = sidecar(root, "manifest.json")

        def begin(settings, **options):
            try:
                OutputFolder(root, "images", **options).begin(settings)
            finally:
                release_locks()
        begin(kept)
        begin(kept)
        assert recorded(path) == kept and set(os.listdir(folder)) == {path.name, f"{name}.lock"}
        key = sorted(kept)[0]
        assume(kept[key] != other)
        with pytest.raises(UserError) as caught:
            begin({**kept, key: other})
        assert f"{key}: there {recorded(path, key)!r}, here {other!r}" in str(caught.value)
        begin({**kept, key: other}, free=(key,))
        assert recorded(path, key) == (kept[key] if other is None else other)
        assume(kept[key] != [other])
        changed = {**read_json(path), "settings": {**kept, key: [other]}}
        for record in (changed, {"settings": kept}):
            write_json(path, record)
            with pytest.raises(UserError, match="not as a run wrote it"):
                begin(kept)


def rounds_of(name):
    return st.lists(st.dictionaries(name, st.binary(max_size=20), max_size=4), max_size=4)


label_names = st.builds(label_name, st.integers(0, 10 ** 6), st.integers(0, 10 ** 6))
image_names = st.builds(lambda *which: str(image_path("", *which)), st.integers(0, 10 ** 4),
                        st.integers(0, 999), st.sampled_from((1000, 10 ** 4)))


@now_and_then
@given(work=st.tuples(st.just("labels"), rounds_of(label_names))
       | st.tuples(st.just("images"), rounds_of(image_names)), name=names)
@example(work=("labels", [{"epoch_0/batch_0.tar": b"0"}, {"epoch_0/batch_0.tar": b"1"}]),
         name="[a]*?.sha256.")
def test_hashes_are_read_back_as_they_were_written(work, name):
    """Files written in several rounds, some anew: the last hash counts, before and after the file of hashes
    is sorted by the numbers in the names; whatever the folder's name."""
    kind, rounds = work
    with tempfile.TemporaryDirectory() as place:
        folder = OutputFolder(Path(place) / name, kind)
        folder.begin({})
        wanted = {}
        for files in rounds:
            folder.write(files)
            wanted |= {key: hashlib.sha256(data).hexdigest() for key, data in files.items()}
            assert read_hashes(folder.root) == wanted
        if not wanted:
            return
        assert folder.missing(list(wanted)) == [] and folder.finish(list(wanted))
        found = read_hashes(folder.root)
        assert found == wanted and [numbers_in(key) for key in found] == sorted(map(numbers_in, wanted))
        records = {f"{name}.{suffix}" for suffix in ("sha256", "lock", "manifest.json")}
        assert set(os.listdir(place)) <= {name, *records}
