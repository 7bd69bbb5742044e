"""Images decoded once and kept as uint8: in GPU memory if they fit, else in memory."""
from dataclasses import dataclass, replace

import numpy as np
import torch

from sre2l.data.augment import source_lines
from sre2l.data.image_folder import fill, fill_gpu, on_all_cores
from sre2l.data.resize import host_cropper, vertical_first
from sre2l.kernels.compiled import why_no_triton
from sre2l.run.limits import fits_gpu, memory_room

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Store:
    """The decoded images, one after the other.

    buffer: their bytes, on a GPU or not; starts (n + 1,) int64: where each image begins, and the end; shapes
    (n, 2) int64: height, width; layout (n, 3) int64: start, height, width on the GPU, None elsewhere."""
    buffer: torch.Tensor
    starts: np.ndarray
    shapes: np.ndarray
    layout: torch.Tensor | None = None

    def pixels(self, index):
        """Image `index` as a (H, W, 3) uint8 array; from a GPU, a copy."""
        index = range(len(self.shapes))[index]
        part = self.buffer[self.starts[index]:self.starts[index + 1]]
        return part.cpu().numpy().reshape(*self.shapes[index], 3)

    def request(self, rows, windows, flips, size):
        """What `crops` needs, gathered on the CPU -> (tensor (m, 7) int64, largest height and width)."""
        columns = np.column_stack((rows, windows, flips, vertical_first(windows, size)))
        table = torch.from_numpy(columns.astype(np.int64))
        return table.pin_memory(), *windows[:, 2:].max(0, initial=1).tolist()

    def crops(self, request, size, patches=None):
        """Crop on the GPU. request: what `request` returns -> (m, 3, size, size) uint8 there, NHWC.

        patches (m, 2, F): of `Drawn`, where the images' patches move before."""
        from sre2l.kernels.triton.resize import crop_resident  # needs triton, which comes with torch for GPUs
        table, tallest, widest = request
        with torch.cuda.device_of(self.buffer):
            table = table.to(self.buffer.device, non_blocking=True)
            buffer, layout = self.buffer, self.layout
            if patches is not None:
                images = self.shuffled(table[:, 0], torch.from_numpy(patches).to(table.device))
                buffer, layout = images.view(-1), layout_of(images)
                table[:, 0] = torch.arange(len(table), device=table.device)
            return crop_resident(buffer, layout, table, size, tallest, widest)

    def shuffled(self, rows, patches):
        """The images `rows` (m,) int64 of a set of one size with their patches moved -> (m, H, W, 3) uint8.

        patches (m, 2, F): as in `shuffle_patches`. All on one device."""
        height, width = self.shapes[0].tolist()
        images = self.buffer.view(-1, height, width, 3)
        down, across = (source_lines(places, torch.arange(side // places.shape[1], device=rows.device))
                        for places, side in zip(patches.unbind(1), (height, width)))
        return images[rows[:, None, None], down[:, :, None], across[:, None, :]]


def layout_of(images):
    """Start, height and width of each of these images (m, H, W, 3), one after the other -> (m, 3) int64."""
    num_images, height, width, _ = images.shape
    starts = torch.arange(num_images, device=images.device) * (3 * height * width)
    return torch.stack((starts, torch.full_like(starts, height), torch.full_like(starts, width)), 1)


def find_shapes(images):
    """Height and width of every image, (n, 2) int64, of files from their headers."""
    if isinstance(images.items[0], np.ndarray):  # nothing is to be read
        return images.shapes(range(len(images)))

    def shape_of(row):
        return tuple(images.shapes([row])[0].tolist())

    rows = range(len(images))
    return np.array(on_all_cores(shape_of, rows, "reading sizes", images.root, chunksize=256), np.int64)


def decode_all(images, shapes, device):
    """Decode images of these heights and widths (n, 2) -> (their bytes, on the device where it has room, else
    on the CPU, or None where there is none either; where each image begins, and the end, (n + 1,) int64)."""
    starts = np.concatenate(([0], np.cumsum(shapes.prod(1) * 3)))
    num_bytes = int(starts[-1])
    if fits_gpu(num_bytes, device):
        return fill_gpu(images, starts, shapes, device), starts
    if num_bytes > memory_room():
        return None, starts
    buffer = torch.from_numpy(np.empty(num_bytes, np.uint8))  # torch.empty fills it with --deterministic
    fill(buffer.numpy(), images, range(len(images)), starts, shapes)
    return buffer, starts


def keep_decoded(images, device=CPU):
    """Decode all images once, if there is room -> (Images with a store, or the same Images to be decoded at
    each use; a line for the log that says which)."""
    shapes = find_shapes(images)
    # On a GPU the crops are made by a kernel of Triton's.
    buffer, starts = decode_all(images, shapes, CPU if why_no_triton() else device)
    line = f"{images.root}: {len(images)} images, {starts[-1] / 1e6:.1f} MB of pixels"
    if buffer is None:
        return images, f"{line}, too many for memory, decoded at each use; {host_cropper()[1]}"
    if not buffer.is_cuda:
        store = Store(buffer, starts, shapes)
        return replace(images, store=store), f"{line}, decoded into memory; {host_cropper()[1]}"
    layout = torch.from_numpy(np.column_stack((starts[:-1], shapes))).to(device)
    store = Store(buffer, starts, shapes, layout)
    return replace(images, store=store), f"{line}, decoded into GPU memory; cropped there"
