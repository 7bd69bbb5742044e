"""Properties that hold whatever the numbers and names: hypothesis looks for those for which they do not."""
import hashlib
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, RandomSampler

from recover.batches import make_chunks, make_units
from recover.views import apply_view, draw_view
from sre2l.data import resize
from sre2l.data.augment import apply_crops, apply_mix, draw_crops, draw_mix, draw_resized_windows, mixed_share, pixel_windows
from sre2l.data.loader import Batches
from sre2l.run.errors import UserError
from sre2l.run.files import sidecar, hash_file, read_json, write_json
from sre2l.data.image_folder import image_path
from sre2l.data.label_files import LabelBatch, label_name, read_label_batch
from sre2l.check.folders import scan
from sre2l.check.manifest import merge_hashes, read_hashes, write_recorded
from sre2l.run.settings import keep_settings, recorded
from tests.crops import by_pillow
from tests.helpers import write_label_batch
from validate.losses import hard_targets
from validate.shares import share_of

# The same examples at each run, so that a test that fails now has failed before; no deadline, since the machine may be busy.
often = settings(deadline=None, derandomize=True, database=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
now_and_then = settings(often, max_examples=25)

seeds = st.integers(0, 2 ** 31)
sides = st.integers(1, 60)


# Order

@often
@given(num_images=st.integers(1, 200), batch_size=st.integers(1, 70), seed=st.integers(0, 2 ** 63), epochs=st.integers(1, 4), first=st.integers(0, 4))
def test_batches_are_those_of_torchs_sampler(num_images, batch_size, seed, epochs, first):
    sampler = BatchSampler(RandomSampler(range(num_images), generator=torch.Generator().manual_seed(seed)), batch_size, drop_last=False)
    wanted = [(epoch, index, rows) for epoch in range(epochs) for index, rows in enumerate(sampler)]
    first = min(first, epochs)
    batches = Batches(num_images, batch_size, seed, epochs, first)
    found = [(batch.epoch, batch.index, batch.rows.tolist()) for batch in batches]
    assert found == [row for row in wanted if row[0] >= first] and len(batches) == len(found)


# Crops

@often
@given(sizes=st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=8), seed=seeds,
       scale=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)).map(sorted), flip=st.booleans())
def test_resized_windows_lie_inside_and_come_back_from_their_fractions(sizes, seed, scale, flip):
    """The float32 fractions that a label file keeps, rounded, are the pixels that were drawn."""
    sizes = np.array(sizes)
    crops = draw_crops(sizes, "resized", scale, 0, flip, np.random.default_rng(seed))
    windows = pixel_windows(crops.boxes, sizes)
    assert np.array_equal(windows, draw_resized_windows(sizes, scale, np.random.default_rng(seed)))
    assert (windows[:, :2] >= 0).all() and (windows[:, 2:] >= 1).all() and (windows[:, :2] + windows[:, 2:] <= sizes).all()
    assert flip or not crops.flips.any()


@often
@given(sizes=st.lists(st.tuples(st.integers(1, 600), st.integers(1, 600)), min_size=1, max_size=8), seed=seeds, padding=st.integers(0, 300))
def test_padded_windows_are_shifts_up_to_the_padding(sizes, seed, padding):
    sizes = np.array(sizes)
    windows = pixel_windows(draw_crops(sizes, "padded", None, padding, True, np.random.default_rng(seed)).boxes, sizes)
    assert (abs(windows[:, :2]) <= padding).all() and np.array_equal(windows[:, 2:], sizes)


@often
@given(shape=st.tuples(sides, sides), corner=st.tuples(st.integers(-70, 70), st.integers(-70, 70)), extent=st.tuples(st.integers(1, 80), st.integers(1, 80)),
       flip=st.booleans(), size=st.integers(1, 50), seed=seeds)
def test_every_pixel_of_a_crop_is_pillows(shape, corner, extent, flip, size, seed):
    """Any window, also half or wholly outside; the compiled kernel and the code that stands in for it."""
    image = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    windows, flips = np.array([[*corner, *extent]]), np.array([flip])
    wanted = by_pillow([image], windows, flips, size)
    for crop in (resize.crop_images, resize.crop_with_pillow):
        assert torch.equal(crop([image], windows, flips, size), wanted)


@often
@given(shape=st.tuples(sides, sides), seed=seeds, size=st.integers(1, 40))
def test_relabel_and_validate_see_the_same_pixels(shape, seed, size):
    """Through a label file: crops drawn, written, read, cut."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for _ in range(3)]
    crops = draw_crops([shape] * 3, "resized", (0.08, 1), 0, True, rng)
    with tempfile.TemporaryDirectory() as folder:
        write_label_batch(folder, 0, 0, LabelBatch(crops, draw_mix("cutmix", 1.0, 3, size, rng), torch.zeros(3, 2)))
        assert torch.equal(apply_crops(images, read_label_batch(folder, 0, 0).crops, size), apply_crops(images, crops, size))


@often
@given(size=st.integers(1, 40), jitter=st.integers(0, 50), signed=st.booleans(), crop_flip=st.booleans(), seed=seeds)
def test_a_view_shows_values_of_the_image_and_nothing_else(size, jitter, signed, crop_flip, seed):
    """Interpolation, flip and roll stay between the least and the largest value; without a crop every value is there once."""
    rng = np.random.default_rng(seed)
    view, images = draw_view(size, jitter, signed, crop_flip, rng), torch.from_numpy(rng.random((1, 3, size, size)))
    seen = apply_view(images, view)
    assert seen.shape == images.shape and images.min() - 1e-9 <= seen.min() and seen.max() <= images.max() + 1e-9
    assert crop_flip or torch.equal(seen.flatten(2).sort(2).values, images.flatten(2).sort(2).values)


# Mix

kinds = st.sampled_from(("none", "mixup", "cutmix"))


@often
@given(kind=kinds, alpha=st.floats(0.05, 5), num_rows=st.integers(1, 40), size=st.integers(1, 40), seed=seeds)
def test_the_share_of_an_image_is_what_it_has_of_the_mixed_one(kind, alpha, num_rows, size, seed):
    """Row i is filled with the number i: what is left of it in the mixed batch, and what its partner puts there, is the stated share; the
    box lies inside; nothing is written into the batch itself."""
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
    targets = hard_targets(torch.arange(num_rows), mix, num_rows, size)
    assert (targets >= 0).all() and torch.allclose(targets.sum(1), torch.ones(num_rows))


@often
@given(kind=kinds, num_rows=st.integers(1, 40), micro_size=st.integers(1, 20), world=st.integers(1, 6), seed=seeds)
def test_a_batch_mixed_in_shares_is_the_batch_mixed_whole(kind, num_rows, micro_size, world, seed):
    """Each process mixes only the crops that it asks for; every row is one process's, in micro-batches of the whole batch."""
    rng = np.random.default_rng(seed)
    mix, images = draw_mix(kind, 1.0, num_rows, 5, rng), torch.from_numpy(rng.random((num_rows, 3, 5, 5)))
    whole, seen = apply_mix(images, mix), []
    for rank in range(world):
        share = share_of(num_rows, mix, micro_size, rank, world)
        assert torch.equal(apply_mix(images[share.rows], share.mix)[:len(share.own)], whole[share.own])
        assert len(set(share.rows.tolist())) == len(share.rows)
        seen += share.own.tolist()
    assert sorted(seen) == list(range(num_rows))


# Units of work

classes_of_sets = st.sets(st.integers(0, 60), min_size=1, max_size=30).map(sorted)


@often
@given(classes=classes_of_sets, batch_size=st.integers(1, 40), cuts=st.sets(st.integers(0, 12), min_size=2, max_size=5).map(sorted), groups=st.integers(1, 5))
def test_units_of_any_ranges_cover_each_pair_once(classes, batch_size, cuts, groups):
    """Ranges side by side, as several processes or days take them: a pair is in one unit, and that is the same from either range."""
    unit_of = {}
    for start, end in zip(cuts, cuts[1:]):
        units = make_units(classes, batch_size, start, end)
        assert [unit for chunk in make_chunks(units, groups) for unit in chunk] == units
        assert all(len(chunk) <= groups and len({len(unit.pairs) for unit in chunk}) == 1 for chunk in make_chunks(units, groups))
        pairs = [pair for unit in units for pair in unit.pairs]
        assert len(set(pairs)) == len(pairs) and set(pairs) >= {(ipc, label) for ipc in range(start, end) for label in classes}
        for unit in units:
            assert 1 <= len(unit.pairs) <= batch_size and any(start <= ipc < end for ipc, _ in unit.pairs)
            for pair in unit.pairs:
                assert unit_of.setdefault(pair, unit) == unit
    assert set(unit_of) >= {(ipc, label) for ipc in range(cuts[0], cuts[-1]) for label in classes}


@now_and_then
@given(labels=st.sets(st.integers(0, 20_000), min_size=1, max_size=6), ids=st.sets(st.integers(0, 99_999), min_size=1, max_size=4), many=st.booleans())
def test_names_of_images_differ_and_are_recovers_layout(labels, ids, many):
    with tempfile.TemporaryDirectory() as root:
        paths = {image_path(root, label, ipc, 21_000 if many else 1000) for label in labels for ipc in ids}
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            path.touch()
        there, _, stray = scan(root, "images")
        assert not stray and len(there) == len(paths)
        assert len(paths) == len(labels) * len(ids)


# What is written beside the results and read back

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6)
names = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=30).filter(lambda name: name not in (".", ".."))


@now_and_then
@given(kept=st.dictionaries(st.text(max_size=8), values, min_size=1, max_size=5), other=plain, name=names)
@example(kept={"lr": 0.1, "a\n'b\"": [1, None, "ü\u2028"]}, other=0, name="a b'[*]?$(x)\n.json")
def test_settings_are_read_back_as_they_were_written(kept, other, name):
    """Any values under any names: the same settings go on, others are refused with the key named, a changed file too."""
    with tempfile.TemporaryDirectory() as folder:
        path = sidecar(Path(folder) / name, "manifest.json")
        keep_settings(path, kept)
        keep_settings(path, kept)
        assert recorded(path) == kept and os.listdir(folder) == [path.name]
        key = sorted(kept)[0]
        assume(kept[key] != other)
        with pytest.raises(UserError) as caught:
            keep_settings(path, {**kept, key: other})
        assert f"{key}: there {recorded(path, key)!r}, here {other!r}" in str(caught.value)
        keep_settings(path, {**kept, key: other}, free=(key,))
        assert recorded(path, key) == (kept[key] if other is None else other)
        assume(kept[key] != [other])
        write_json(path, {**read_json(path), "settings": {**kept, key: [other]}})
        with pytest.raises(UserError, match="not as a run wrote it"):
            recorded(path)


batches_and_images = (st.builds(label_name, st.integers(0, 10 ** 6), st.integers(0, 10 ** 6))
                      | st.builds(lambda *which: str(image_path("", *which)), st.integers(0, 10 ** 4), st.integers(0, 999), st.sampled_from((1000, 10 ** 4))))


@now_and_then
@given(rounds=st.lists(st.dictionaries(batches_and_images, st.binary(max_size=20), max_size=4), max_size=4), name=names)
@example(rounds=[{"epoch_0/batch_0.tar": b"0"}, {"epoch_0/batch_0.tar": b"1"}], name="[a]*?.sha256.")
def test_hashes_are_read_back_as_they_were_written(rounds, name):
    """Files written in several rounds, some anew: the last hash counts, before and after the part of this process joins the main file, in
    which the numbers are in order; whatever the folder's name."""
    with tempfile.TemporaryDirectory() as folder:
        root, wanted = Path(folder) / name, {}
        for files in rounds:
            write_recorded(root, files)
            wanted |= {key: hashlib.sha256(data).hexdigest() for key, data in files.items()}
            assert read_hashes(root) == wanted
        merge_hashes(root)
        assert read_hashes(root) == wanted and set(os.listdir(folder)) <= {name, f"{name}.sha256"}
        assert all(hash_file(root / key) == digest for key, digest in wanted.items())
        assert [numbers_in(key) for key in read_hashes(root)] == sorted(map(numbers_in, wanted))
        merge_hashes(root, drop=list(wanted)[:1])
        assert read_hashes(root) == {key: wanted[key] for key in list(wanted)[1:]}


def numbers_in(name):
    return [int(number) for number in re.findall("[0-9]+", name)]
