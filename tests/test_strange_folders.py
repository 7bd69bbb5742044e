"""Folders of strangers: huge images, names and links that lead elsewhere, files that do not belong."""
import contextlib
import os
import re
import shutil
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from relabel import relabel
from sre2l.check.verify import read_checked, read_synthetic, verify_images, verify_labels, wanted_images
from sre2l.data.datasets import DATASETS
from sre2l.data.image_folder import decode, read_shape
from sre2l.data.real_images import read_real
from sre2l.run.errors import UserError
from sre2l.run.layout import check_links, scan
from tests.helpers import noise_folder, refused, synthetic_folder
from tests.test_real_images import tiny_folder
from tests.worlds import NAMES, common, teacher


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, stored_rows):
    """An 8-bit grey PNG whose header says width x height, with `stored_rows` black rows (hundreds)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(bytes((width + 1) * 100)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = struct.pack(">I", ((width + 1) * stored_rows % 65521) << 16 | 1)
    data = b"\x78\xda" + piece * (stored_rows // 100) + packer.flush() + checksum
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def peak_memory():
    """The most memory that this process has had, KiB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.mark.parametrize("stored_rows", (50_000, 100))
def test_an_image_of_absurd_size_is_refused_by_its_header(world, tmp_path, monkeypatch, stored_rows):
    """50,000 x 50,000, whole or with a header that lies: at once, nothing decoded, in little memory."""
    synthetic_folder(tmp_path / "images")
    file = tmp_path / "images" / "new004" / "class004_id001.jpg"
    file.write_bytes(png(50_000, 50_000, stored_rows))
    assert file.stat().st_size < 5e6
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    for read in (decode, read_shape):
        start = time.process_time()
        with pytest.raises(UserError) as caught:
            read(file)
        wanted = f"{file}: its header says 50000 x 50000 pixels; the limit is 100,000,000"
        assert str(caught.value).startswith(wanted)
        assert time.process_time() - start < 0.5
    monkeypatch.undo()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the highest memory use starts from now
    before = peak_memory()
    message = refused(relabel, *common(tmp_path), *teacher(world), "--data", tmp_path / "images", "--epochs",
                      1, "-b", 10, "-j", 0)
    assert str(file) in message and "50000 x 50000" in message
    assert peak_memory() - before < 1e6  # KiB; decoded it takes 2.5 GB, as RGB 7.5


def test_an_image_with_more_data_than_its_header_says_is_what_the_header_says(tmp_path):
    """Data of 50,000 x 50,000 in an image of 100 x 100: no more is unpacked than is shown."""
    data = png(50_000, 50_000, 50_000)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 100, 100, 8, 0, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(data[:8] + header + data[8 + len(header):])
    start = time.process_time()
    assert decode(tmp_path / "a.png").shape == (100, 100, 3)
    assert time.process_time() - start < 0.5


EPS = (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n"
       b"(%pipe%touch sprung) (w) file\nshowpage\n%%EOF\n")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("suffix, save",
                         (("jpg", {}), ("png", {}), ("ppm", {}), ("bmp", {}), ("tif", {}),
                          ("webp", {"lossless": True})))
def test_the_formats_of_image_folders_are_read_and_named_when_cut_short(tmp_path, suffix, save):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(file, **save)
    assert np.array_equal(decode(file), pixels) or suffix == "jpg"
    whole = file.read_bytes()
    for share in (0, 1 / 200, 1 / 10, 1 / 2):
        file.write_bytes(whole[:int(share * len(whole))])
        with pytest.raises(UserError, match=f"a.{suffix}: not a readable image"):
            decode(file)


def test_other_formats_are_not_opened(tmp_path):
    """PostScript under an image's suffix, for which Pillow starts ghostscript, and other formats."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.gif")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.ico")
    for data in (EPS, (tmp_path / "a.gif").read_bytes(), (tmp_path / "a.ico").read_bytes(), b"", b"text"):
        (tmp_path / "a.jpg").write_bytes(data)
        with pytest.raises(UserError, match="a.jpg: not a readable image"):
            decode(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ("png", "webp", "tif"))
def test_of_several_pictures_in_a_file_the_first_counts(tmp_path, suffix):
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "lime", "blue")]
    options = {} if suffix == "tif" else {"duration": 50} | ({"lossless": True} if suffix == "webp" else {})
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert image.n_frames == 3
    assert (decode(tmp_path / f"a.{suffix}") == (255, 0, 0)).all()


@pytest.mark.parametrize("kind, suffix", ((np.uint16, "png"), (np.int32, "tif"), (np.float32, "tif")))
def test_more_than_8_bits_a_channel_would_be_white_and_are_refused(tmp_path, kind, suffix):
    Image.fromarray((np.arange(64 * 64) % 900).reshape(64, 64).astype(kind)).save(tmp_path / f"a.{suffix}")
    with pytest.raises(UserError, match="more than 8 bits a channel"):
        decode(tmp_path / f"a.{suffix}")


BAD_NAMES = ("../secret.JPEG", "..", "/etc/passwd", "a/b.JPEG", "a\\b.JPEG", "..\\a.JPEG", "C:\\a.JPEG",
             "a\0.JPEG")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_list_of_validation_images_names_files_of_one_folder(tmp_path, name):
    root = tiny_folder(tmp_path, [f"n{i:08d}" for i in range(200)])
    file = root / "val" / "val_annotations.txt"
    file.write_text(f"{name}\tn00000003\t0\t0\t1\t1\n" + file.read_text())
    with pytest.raises(UserError, match="is not the plain name of a file") as caught:
        read_real(DATASETS["tiny-imagenet"], root, "val")
    assert str(caught.value).startswith(f"{file}: {name!r}")


@pytest.mark.parametrize("what", ("new003/class003_id001.jpg", "new003"))
@pytest.mark.parametrize("absolute", (True, False))
def test_links_out_of_a_synthetic_folder_are_refused(tmp_path, what, absolute):
    synthetic_folder(tmp_path / "other")
    root = synthetic_folder(tmp_path / "images")
    if what == "new003":
        (root / what).rename(tmp_path / "was")
    else:
        (root / what).unlink()
    target = tmp_path / "other" / what
    (root / what).symlink_to(target if absolute else os.path.relpath(target, (root / what).parent))
    with pytest.raises(UserError, match="is a link to .*, outside") as caught:
        read_synthetic(root, 10)
    assert str(caught.value).startswith(f"{root / what}: ") and str(target) in str(caught.value)


def test_links_within_and_to_a_whole_folder_are_fine(tmp_path):
    root = synthetic_folder(tmp_path / "images")
    plain = read_synthetic(root, 10)
    (root / "new003" / "class003_id001.jpg").unlink()
    (root / "new003" / "class003_id001.jpg").symlink_to("class003_id000.jpg")
    (tmp_path / "whole").symlink_to(root)
    linked = read_synthetic(tmp_path / "whole", 10)
    assert len(linked) == len(plain) and np.array_equal(linked.pixels(7), plain.pixels(6))


def test_a_link_back_into_itself_is_refused(tmp_path):
    root = noise_folder(tmp_path / "set", ["cat", "dog"], 1)
    (root / "cat" / "again").symlink_to(root)
    with pytest.raises(UserError, match="cat/again: is a link to .*the folder that it lies in"):
        read_synthetic(root, 2)


def test_a_stray_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    root = noise_folder(tmp_path / "set", ["cat", "dog"], 1)
    (root / "lost+found").mkdir()
    plain = os.scandir

    def scandir(path):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match="lost\\+found: cannot be read: Permission denied"):
        read_synthetic(root, 2)


def test_real_images_may_be_links(tmp_path):
    """People build subsets of ImageNet so."""
    real = noise_folder(tmp_path / "elsewhere", NAMES, 1)
    (tmp_path / "val").mkdir()
    for name in NAMES:
        (tmp_path / "val" / name).symlink_to(real / name)
    assert len(read_real(DATASETS["cifar10"], tmp_path, "val")) == 10


@pytest.mark.parametrize("what", ("epoch_1/batch_0.tar", "epoch_1"))
def test_links_out_of_a_label_folder_are_refused(world, tmp_path, what):
    labels = shutil.copytree(world / "run" / "labels", tmp_path / "labels")
    assert read_checked(verify_labels(labels)).epochs == 2
    (labels / what).rename(tmp_path / "was")
    (labels / what).symlink_to(tmp_path / "was")
    with pytest.raises(UserError, match="is a link to .*, outside") as caught:
        read_checked(verify_labels(labels))
    assert str(caught.value).startswith(f"{labels / what}: ")
    (labels / what).unlink()
    (labels / what).symlink_to("epoch_0" if what == "epoch_1" else "batch_1.tar")
    assert read_checked(verify_labels(labels)).epochs == 2


STRAY = ("notes.txt", "new003/Thumbs.db", "new003/class004_id007.jpg", "new003/class003_id001.png",
         "new003/class003_id01.jpg", "new003/more/a.jpg",
         "new005/class005_id001.jpg.tmp", "old/class000_id000.jpg", "new010x/class010_id000.jpg")


def test_a_set_of_png_files_is_one_and_holds_no_jpeg(tmp_path):
    root = synthetic_folder(tmp_path / "images", suffix=".png")
    assert len(read_checked(verify_images(root, 10))) == 20
    (root / "new003" / "class003_id001.png").rename(root / "new003" / "class003_id001.jpg")
    with pytest.raises(UserError, match="class003_id001.jpg: is one image file too many"):
        read_checked(verify_images(root, 10))
    (root / "new003" / "class003_id001.jpg").unlink()
    with pytest.raises(UserError, match="class003_id001.png: is missing"):
        read_checked(verify_images(root, 10))


def test_the_kind_of_files_is_what_is_recorded_else_what_most_are():
    png, jpg = ([f"new{c:03d}/class{c:03d}_id000{suffix}" for c in range(5)] for suffix in (".png", ".jpg"))
    assert wanted_images([*jpg[:4], png[4]], dict.fromkeys(png), range(5), 10) == set(png)
    assert wanted_images([*png[:4], jpg[4]], None, range(5), 10) == set(png)
    assert wanted_images([*jpg[:4], png[4]], None, range(5), 10) == set(jpg)


@pytest.mark.parametrize("name", STRAY)
def test_strays_in_a_folder_of_recovers_images_are_named(tmp_path, name):
    """What is none of the images, another class's, another kind's, or an image a second time."""
    root = synthetic_folder(tmp_path / "images")
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_bytes((root / "new000" / "class000_id000.jpg").read_bytes())
    with pytest.raises(UserError,
                       match="does not belong into a folder of images|is one image file too many") as caught:
        read_checked(verify_images(root, 10))
    first = str(caught.value).partition(": ")[0]
    # of an id twice either may be called the stray
    assert (root / name).is_relative_to(first) or Path(first).name == "class003_id001.jpg"


def test_one_renamed_class_folder_is_no_folder_of_real_images(tmp_path):
    """Ten folders of which nine are recover's: the tenth was taken for the tenth class."""
    root = synthetic_folder(tmp_path / "images")
    (root / "new009").rename(root / "zebra")
    with pytest.raises(UserError, match="number 9: no folder where 'new009' is expected"):
        read_checked(verify_images(root, 10))


def test_many_files_are_looked_at_in_no_time(tmp_path):
    """Links, names and layout of 10,000 here."""
    for label in range(100):
        (tmp_path / f"new{label:03d}").mkdir()
        for i in range(100):
            (tmp_path / f"new{label:03d}" / f"class{label:03d}_id{i:03d}.jpg").touch()
    start = time.process_time()
    check_links(tmp_path)
    scan(tmp_path, "images")
    assert time.process_time() - start < 0.5
