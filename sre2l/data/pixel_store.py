"""Images decoded once and kept as uint8: in GPU memory if they fit, else in RAM, else in a memory-mapped file."""
import errno
import hashlib
import os
import shutil
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool

import numpy as np
import PIL
import torch
from tqdm import tqdm

from sre2l.kernels.compiled import why_no_triton
from sre2l.data.resize import host_cropper, vertical_first
from sre2l.run.files import alone_in, atomic
from sre2l.run.errors import UserError

MEMORY_SHARE = 0.5    # of the machine's memory, shared by its processes
PART_BYTES = 2 ** 30  # decoded before they are copied to a GPU
GPU_SHARE = 0.5       # of the GPU memory that is free at the start: the rest is the network's


@dataclass(frozen=True)
class Store:
    """The decoded images, one after the other. buffer: bytes, a numpy array or a tensor on a GPU; starts (n + 1,) int64: where each
    begins in it, and its end; shapes (n, 2) int64: height, width; layout (n, 3) int64: start, height, width on the GPU, None elsewhere."""
    buffer: np.ndarray | torch.Tensor
    starts: np.ndarray
    shapes: np.ndarray
    layout: torch.Tensor | None = None

    def pixels(self, index):
        """Image `index` as a (H, W, 3) uint8 array; from a GPU, a copy."""
        index = range(len(self.shapes))[index]
        part = self.buffer[self.starts[index]:self.starts[index + 1]]
        return (part if self.layout is None else part.cpu().numpy()).reshape(*self.shapes[index], 3)

    def request(self, rows, windows, flips, size):
        """What `crops` needs to know, gathered on the CPU beside the computation -> (tensor (m, 7) int64, height and width of the largest)."""
        table = torch.from_numpy(np.column_stack((rows, windows, flips, vertical_first(windows, size))).astype(np.int64))
        return table.pin_memory(), *windows[:, 2:].max(0, initial=1).tolist()

    def crops(self, request, size):
        """Crops of images on the GPU (request of `request`) -> (m, 3, size, size) uint8 there, NHWC in memory."""
        from sre2l.kernels.triton.resize import crop_resident  # needs triton, which torch brings along where there is a GPU
        table, tallest, widest = request
        with torch.cuda.device_of(self.buffer):
            return crop_resident(self.buffer, self.layout, table.to(self.buffer.device, non_blocking=True), size, tallest, widest)


def fill(buffer, images, starts, shapes):
    """Decode every image into its place in a numpy array, on all cores; raises UserError where one is not what its header says."""
    def decode(index):
        pixels = images.pixels(index)
        if pixels.shape[:2] != tuple(shapes[index]):
            raise UserError(f"{images.items[index]}: not a readable image (its header says {shapes[index][0]} by {shapes[index][1]} pixels, "
                            f"it has {pixels.shape[0]} by {pixels.shape[1]})")
        buffer[starts[index]:starts[index + 1]] = pixels.reshape(-1)

    with ThreadPool(os.cpu_count()) as pool:
        decoded = pool.imap_unordered(decode, range(len(images)), chunksize=16)
        for _ in tqdm(decoded, "decoding", total=len(images), unit="image", disable=None, leave=False):
            pass


def fill_gpu(images, starts, shapes, device):
    """Decode every image -> uint8 tensor on the GPU, as `fill` lays them out. In parts that are copied at once: a copy for each image waits for the GPU."""
    buffer, first = torch.empty(int(starts[-1]), dtype=torch.uint8, device=device), 0
    while first < len(images):
        end = max(first + 1, int(np.searchsorted(starts, starts[first] + PART_BYTES, "right")) - 1)
        part = np.empty(starts[end] - starts[first], np.uint8)
        fill(part, replace(images, items=images.items[first:end], labels=images.labels[first:end]), starts[first:end + 1] - starts[first], shapes[first:end])
        buffer[starts[first]:starts[end]].copy_(torch.from_numpy(part))
        first = end
    return buffer


def find_shapes(images):
    """Height and width of every image, (n, 2) int64, of files from their headers."""
    parts = [range(start, min(start + 256, len(images))) for start in range(0, len(images), 256)]
    with ThreadPool(os.cpu_count()) as pool:
        return np.concatenate(list(tqdm(pool.imap(images.shapes, parts), "reading sizes", total=len(parts), disable=None, leave=False)))


def reserve(path, num_bytes):
    """Make a file that has its blocks: where a disk fills under a mapped file without them, the process dies of SIGBUS."""
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, num_bytes)


def map_file(folder, identity, images, starts, shapes):
    """The pixels in <folder>/pixels.<hash>.u8, decoded there if that file is not there yet; files of other images are removed.

    identity: what the pixels depend on besides the decoder. -> bytes, mapped; None where the disk is too full."""
    key = hashlib.sha256(f"{identity} {PIL.__version__}".encode()).hexdigest()[:16]
    path = folder / f"pixels.{key}.u8"
    with alone_in(folder, "pixels"):  # not the lock of claims and records: this may take an hour
        for other in set(folder.glob("pixels.*.u8")) - {path}:
            other.unlink(missing_ok=True)  # a process that has mapped it keeps it
        if not path.exists() or path.stat().st_size != starts[-1]:
            if shutil.disk_usage(folder).free < starts[-1]:
                return None
            try:
                with atomic(path) as tmp:
                    reserve(tmp, int(starts[-1]))
                    buffer = np.memmap(tmp, np.uint8, "r+")
                    fill(buffer, images, starts, shapes)
                    buffer.flush()
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                return None
    return np.asarray(np.memmap(path, np.uint8, "r"))


def fits_gpu(num_bytes, device):
    return device.type == "cuda" and not why_no_triton() and num_bytes <= GPU_SHARE * torch.cuda.mem_get_info(device)[0]


def fits_memory(num_bytes):
    share = MEMORY_SHARE / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return num_bytes <= share * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def keep_decoded(images, device=torch.device("cpu"), folder=None, identity=None):
    """Decode once, if there is room -> (Images with a store, or the same Images: files to be decoded at each use; a line that says which).

    folder: of the run, where a memory-mapped file may lie; identity: what identifies these images in it, such as a hash of their bytes."""
    shapes = find_shapes(images)
    starts = np.concatenate(([0], np.cumsum(shapes.prod(1) * 3)))
    num_bytes, how = int(starts[-1]), host_cropper()[1]
    layout = buffer = None
    if fits_gpu(num_bytes, device):
        buffer, where, how = fill_gpu(images, starts, shapes, device), "GPU memory", "cropped there"
        layout = torch.from_numpy(np.column_stack((starts[:-1], shapes))).to(device)
    elif fits_memory(num_bytes):
        buffer, where = np.empty(num_bytes, np.uint8), "memory"
        fill(buffer, images, starts, shapes)
    elif folder is not None and (buffer := map_file(folder, identity, images, starts, shapes)) is not None:
        where = f"a mapped file in {folder}"
    line = f"{images.root}: {len(images)} images, {num_bytes / 1e6:.1f} MB of pixels"
    if buffer is None:
        return images, f"{line}, too many for memory, decoded at each use; {how}"
    return replace(images, store=Store(buffer, starts, shapes, layout)), f"{line}, decoded into {where}; {how}"
