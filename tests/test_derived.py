"""What labels do not store: patches that move and RandAugment, derived from (seed, epoch, batch)."""
import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, autoaugment
from torchvision.transforms import functional as vision

from sre2l.data import pixel_store, randaugment
from sre2l.data.augment import shuffle_patches
from sre2l.data.derived import Derived, draw_label_batch
from sre2l.data.image_folder import read_folder
from sre2l.data.label_files import read_label_batch
from sre2l.data.loader import Batch, BatchDataset
from sre2l.data.randaugment import OPERATIONS, apply_operations, draw_operations
from sre2l.run.files import read_json
from tests.helpers import bare_checkpoint, noise_folder, refused, run_main, synthetic_folder
from tests.test_continue import files_of
from tests.worlds import relabel_flags

SIZE = 32
BOTH = Derived(5, "randaugment", 2)


def test_magnitudes_are_those_of_the_published_table():
    """Magnitude 9 of torchvision's 31, in its order; the sign belongs to the operations that have one."""
    table = autoaugment.RandAugment()._augmentation_space(31, (SIZE, SIZE))
    ours = {"ShearX": np.tan(np.radians(randaugment.SHEAR)), "TranslateX": randaugment.SHIFT * SIZE,
            "Rotate": randaugment.ANGLE, "Posterize": randaugment.BITS, "Solarize": randaugment.THRESHOLD}
    ours |= dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), randaugment.FACTOR)
    ours |= {"ShearY": ours["ShearX"], "TranslateY": ours["TranslateX"]}
    assert list(table) == list(OPERATIONS)
    for name, (magnitudes, _) in table.items():
        assert ours.get(name, 0.0) == pytest.approx(magnitudes[9].item() if magnitudes.ndim else 0.0)


@pytest.fixture(scope="module")
def pictures():
    """Noise, noise of few levels, one level, a smooth picture: (4, 3, 32, 32) uint8."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (4, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    pixels[1] = 100 + pixels[1] % 30
    pixels[2] = 7
    coarse = torch.rand(1, 3, 4, 4, generator=generator) * 255
    pixels[3] = torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")[0]
    return pixels


@pytest.mark.parametrize("sign", (1, -1))
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_torchvisions_in_every_pixel(pictures, name, sign):
    factor = 1 + sign * randaugment.FACTOR
    adjust = {"Brightness": vision.adjust_brightness, "Color": vision.adjust_saturation,
              "Contrast": vision.adjust_contrast, "Sharpness": vision.adjust_sharpness}
    magnitudes, has_sign = autoaugment.RandAugment()._augmentation_space(31, (SIZE, SIZE))[name]
    magnitude = float(magnitudes[9]) if magnitudes.ndim else 0.0
    for picture in pictures:
        if name in adjust:
            wanted = adjust[name](picture, factor)
        else:
            wanted = autoaugment._apply_op(picture, name, magnitude * (sign if has_sign else 1),
                                           InterpolationMode.NEAREST, None)
        assert torch.equal(OPERATIONS[name](picture[None], sign)[0], wanted)


def test_both_operations_are_applied_in_turn_alike_alone_and_in_a_batch(pictures):
    """With one thread or two, and the images that came in are left as they were."""
    many = pictures.repeat(30, 1, 1, 1)
    before = many.clone()
    drawn = draw_operations(len(many), np.random.default_rng(0))
    found = apply_operations(many, drawn)
    functions = list(OPERATIONS.values())
    for picture, steps, row in zip(many, drawn.tolist(), found):
        for number, sign in steps:
            picture = functions[number](picture[None], sign)[0]
        assert torch.equal(row, picture)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    large = many.repeat(1, 1, 9, 9)
    twice = apply_operations(large, drawn)
    torch.set_num_threads(1)
    assert torch.equal(apply_operations(large, drawn), twice) and torch.equal(many, before)
    torch.set_num_threads(threads)


def test_operations_and_signs_are_drawn_evenly():
    drawn = draw_operations(5000, np.random.default_rng(0))
    numbers, counts = np.unique(drawn[..., 0], return_counts=True)
    assert numbers.tolist() == list(range(14)) and abs(counts / 10000 - 1 / 14).max() < 0.01
    assert set(np.unique(drawn[..., 1])) == {-1, 1} and abs(drawn[..., 1].mean()) < 0.04
    assert abs(np.corrcoef(drawn[:, 0, 0], drawn[:, 1, 0])[0, 1]) < 0.05


def test_patches_move_by_hand():
    """The image's pixels are their own numbers; nine patches of 2 by 2, then four of 2 by 3."""
    image = np.arange(36).reshape(6, 6, 1)
    moved = shuffle_patches(image, np.array([[2, 0, 1], [1, 2, 0]]))[:, :, 0]
    assert moved.tolist() == [[6 * row + col for col in (2, 3, 4, 5, 0, 1)] for row in (4, 5, 0, 1, 2, 3)]
    moved = shuffle_patches(image[:4], np.array([[1, 0], [1, 0]]))[:, :, 0]
    assert moved.tolist() == [[15, 16, 17, 12, 13, 14], [21, 22, 23, 18, 19, 20],
                              [3, 4, 5, 0, 1, 2], [9, 10, 11, 6, 7, 8]]


def test_a_draw_depends_on_seed_epoch_and_batch_alone():
    rows = np.arange(40)
    batches = [Batch(epoch, index, rows) for epoch in (0, 1) for index in (0, 1)]
    first = [BOTH.draw(batch) for batch in batches]
    again = [BOTH.draw(batch) for batch in reversed(batches)][::-1]
    for drawn, same in zip(first, again):
        assert np.array_equal(drawn.patches, same.patches)
        assert np.array_equal(drawn.operations, same.operations)
        assert drawn.patches.shape == (40, 2, 2) and (np.sort(drawn.patches) == [0, 1]).all()
    others = [*first, dataclasses.replace(BOTH, seed=6).draw(batches[0])]
    assert len({drawn.patches.tobytes() for drawn in others}) == 5
    assert len({drawn.operations.tobytes() for drawn in others}) == 5
    assert len(np.unique(first[0].patches, axis=0)) == 4  # every arrangement of rows and of columns
    assert Derived(5).draw(batches[0]) == (None, None)


def test_a_gpus_store_moves_patches_as_the_cpu_does(tmp_path):
    """By the same gather, here on a CPU's tensor, with the layout from which the kernel crops."""
    images = read_folder(noise_folder(tmp_path, ["a", "b"], 3, size=12))
    kept, _ = pixel_store.keep_decoded(images)
    store = kept.store
    rows = np.array([4, 0, 5])
    patches = Derived(1, patch_shuffle=3).draw(Batch(0, 0, rows)).patches
    moved = store.shuffled(torch.from_numpy(rows), torch.from_numpy(patches))
    for row, places, image in zip(rows, patches, moved):
        assert np.array_equal(image.numpy(), shuffle_patches(kept.pixels(row), places))
    for (start, height, width), image in zip(pixel_store.layout_of(moved).tolist(), moved):
        assert torch.equal(moved.view(-1)[start:start + 3 * height * width], image.reshape(-1))


@pytest.mark.gpu
def test_views_on_the_gpu_equal_those_of_the_cpu(tmp_path):
    images = read_folder(noise_folder(tmp_path, ["a", "b"], 40, size=48))
    settings = {"crop": {"kind": "resized", "scale": [0.08, 1], "padding": 0, "flip": True}, "input_size": 40,
                "seed": 7, "mix": "none", "mix_alpha": 1.0}
    resident, _ = pixel_store.keep_decoded(images, torch.device("cuda"))
    found = [BatchDataset(every, 40, lambda *of: draw_label_batch(settings, *of), BOTH)[
        Batch(2, 1, np.arange(80)[::-1].copy())][1] for every in (images, resident)]
    assert found[1].is_cuda and torch.equal(found[1].cpu(), found[0])


VIEWS = ("--augment", "randaugment", "--patch-shuffle", 4)


def test_labels_of_other_views_have_the_same_crops_and_say_what_was_done(tmp_path):
    """The files of the default say nothing of it; a folder of one kind is not continued in another."""
    synthetic_folder(tmp_path / "run" / "images")
    plain, changed = (relabel_flags(tmp_path, "--fkd-path", tmp_path / name, "--epochs", 1, "-b", 8)
                      for name in ("plain", "changed"))
    bare_checkpoint(tmp_path / "teacher.pth")
    run_main(*plain)
    run_main(*changed, *VIEWS)
    settings = read_json(tmp_path / "changed.manifest.json")["settings"]
    assert (settings["augment"], settings["patch_shuffle"]) == ("randaugment", 4)
    assert not {"augment", "patch_shuffle"} & read_json(tmp_path / "plain.manifest.json")["settings"].keys()
    for index in range(3):
        one, other = (read_label_batch(tmp_path / name, 0, index) for name in ("plain", "changed"))
        assert torch.equal(one.crops.boxes, other.crops.boxes)
        assert torch.equal(one.mix.partner, other.mix.partner)
        assert not torch.equal(one.logits, other.logits)
    before = files_of(tmp_path / "plain")
    assert "augment" in refused(*plain, *VIEWS[:2]) and "patch_shuffle" in refused(*changed, *VIEWS[:2])
    assert files_of(tmp_path / "plain") == before


@pytest.mark.parametrize("size, parts", ((32, 3), (31, 2)))
def test_patches_that_do_not_divide_the_images_are_refused(tmp_path, size, parts):
    bare_checkpoint(tmp_path / "teacher.pth")
    synthetic_folder(tmp_path / "run" / "images", size=size)
    flags = relabel_flags(tmp_path, "-b", 8, "--crop", "resized", "--patch-shuffle", parts)
    assert f"--patch-shuffle {parts} is for images of one size that {parts} divides" in refused(*flags)
    assert not (tmp_path / "run" / "labels").exists()
