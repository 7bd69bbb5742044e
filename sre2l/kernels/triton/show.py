"""Normalise and mix a batch on the GPU in one pass over it: reads bytes, writes what the network takes."""
import torch
import triton
import triton.language as tl

BLOCK = 1024  # values that one program writes


@triton.jit(do_not_specialize=["row1", "col1", "row2", "col2"])  # else a kernel for each kind of box
def show_kernel(pixels, partner, table, out, size, lam, rest, row1, col1, row2, col2,
                KIND: tl.constexpr, BLOCK: tl.constexpr):
    """KIND 0: images as they are, 1: lam of the image and
    rest of its partner, 2: the partner's pixels in the box.

    pixels, out [m][size][size][3]; table [3][256]: the normalised value of each level."""
    image = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    length = 3 * size * size
    good = place < length
    value = place % 3 * 256  # of the channel's part of the table
    source = image
    if KIND == 2:
        row = place // 3 // size
        col = place // 3 % size
        boxed = (row >= row1) & (row < row2) & (col >= col1) & (col < col2)
        source = tl.where(boxed, tl.load(partner + image), image)
    shown = tl.load(table + value + tl.load(pixels + source * length + place, good, 0))
    if KIND == 1:
        other = tl.load(table + value + tl.load(pixels + tl.load(partner + image) * length + place, good, 0))
        shown = shown * lam + other * rest
    tl.store(out + image * length + place, shown.to(out.dtype.element_ty), good)


def as_resident(partner, device):
    """The partners on the GPU, without making the host wait for what it has still to do."""
    if partner.is_cuda or device.type != "cuda":
        return partner
    return partner.pin_memory().to(device, non_blocking=True)


def show_on_gpu(pixels, mix, table, dtype):
    """pixels (m, 3, S, S) uint8, table (3, 256) float32 -> (m, 3, S, S) in dtype, NHWC in memory.

    Mixed as apply_mix does, in float32."""
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(pixels, dtype=dtype)
    if not len(pixels):
        return out
    kind = ("none", "mixup", "cutmix").index(mix.kind)
    size = pixels.shape[-1]
    partner = as_resident(mix.partner, pixels.device) if kind else pixels
    lam = mix.lam if kind == 1 else 1.0
    box = mix.box if kind == 2 else (0, 0, 0, 0)
    grid = len(pixels), triton.cdiv(3 * size * size, BLOCK)
    with torch.cuda.device_of(pixels):
        show_kernel[grid](pixels, partner, table, out, size, lam, 1 - lam, *box, KIND=kind, BLOCK=BLOCK,
                          enable_fp_fusion=False)
    return out
