"""Crop and resize on the GPU, from images that lie there as
uint8: every pixel as Pillow's bilinear filter makes it.

torch computes the weights in float64. One Triton kernel does the
two passes, and rounds to uint8 in between as Pillow does."""
import torch
import triton
import triton.language as tl

BITS = tl.constexpr(22)            # of Pillow's fixed-point weights
HALF = tl.constexpr(1 << 21)
TILE = {"ROWS": 8, "COLS": 64}     # of the output, one program's


def max_taps(extent, size):
    """The most input pixels that an output pixel is made of: 2 where a crop is enlarged."""
    return max(2, -(-2 * extent // size))


def find_taps(extents, size, taps):
    """Pillow's weights for `extents` (m,) int64 pixels that become `size`, in
    its order of operations -> (m, 2, size) int32, the first input pixel and how
    many there are, and (m, taps, size) int32 weights, 0 where there is none."""
    scale = extents.double() / size
    support = scale.clamp(min=1)[:, None]
    centre = (torch.arange(size, device=extents.device, dtype=torch.float64) + 0.5) * scale[:, None]
    first = (centre - support + 0.5).clamp(min=0).floor()
    last = torch.minimum((centre + support + 0.5).floor(), extents[:, None].double())
    taps_in_order = torch.arange(taps, device=extents.device, dtype=torch.float64)
    places = taps_in_order[None, :, None] + first[:, None]  # (m, taps, size)
    shares = 1 - ((places - centre[:, None] + 0.5) * (1 / support[:, None])).abs()
    shares = torch.where(places < last[:, None], shares, 0.0).clamp(min=0)
    total = shares[:, 0]
    for tap in range(1, taps):  # one by one: the order of a sum is part of its last bit
        total = total + shares[:, tap]
    weights = (0.5 + shares / total[:, None] * (1 << 22)).int()
    return torch.stack((first, (last - first).clamp(max=taps)), 1).int(), weights


@triton.jit
def crop_kernel(pixels, layout, request, down, across, weights_down, weights_across, out, size, taps,
                ROWS: tl.constexpr, COLS: tl.constexpr):
    """One tile of one crop. layout [n][3]: start, height, width of each stored image; out [m][size][size][3].

    request [m][7]: index, top, left, height, width, flip, whether the
    vertical pass comes first. Height and width are in the tables already."""
    crop = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(2) * COLS + tl.arange(0, COLS)
    index = tl.load(request + 7 * crop)
    top = tl.load(request + 7 * crop + 1)
    left = tl.load(request + 7 * crop + 2)
    flip = tl.load(request + 7 * crop + 5) != 0
    tall = tl.load(request + 7 * crop + 6) != 0
    image = pixels + tl.load(layout + 3 * index)
    height = tl.load(layout + 3 * index + 1)
    width = tl.load(layout + 3 * index + 2)

    source = tl.where(flip, size - 1 - cols, cols)  # mirrored: column c is made like column size - 1 - c
    good_rows = rows < size
    good_cols = cols < size

    # A tile's pixels have different numbers of taps: the loops run to the largest, with weights of 0 after
    # a pixel's own.
    first_x = left + tl.load(across + 2 * crop * size + source, good_cols, 0)
    first_y = top + tl.load(down + 2 * crop * size + rows, good_rows, 0)
    count_x = tl.max(tl.load(across + (2 * crop + 1) * size + source, good_cols, 0))
    count_y = tl.max(tl.load(down + (2 * crop + 1) * size + rows, good_rows, 0))
    weights_across += taps * crop * size + source
    weights_down += taps * crop * size + rows


    # Pillow starts each sum at a half, so that the shift at the end rounds.
    red = tl.full((ROWS, COLS), HALF, tl.int32)
    green = tl.full((ROWS, COLS), HALF, tl.int32)
    blue = tl.full((ROWS, COLS), HALF, tl.int32)
    # The second pass sums over the rounded sums of the first.
    for second in range(tl.where(tall, count_x, count_y)):
        line_r = tl.full((ROWS, COLS), HALF, tl.int32)
        line_g = tl.full((ROWS, COLS), HALF, tl.int32)
        line_b = tl.full((ROWS, COLS), HALF, tl.int32)
        for first in range(tl.where(tall, count_y, count_x)):
            tap_x = tl.where(tall, second, first)
            tap_y = tl.where(tall, first, second)
            x = first_x + tap_x
            y = first_y + tap_y
            good_x = good_cols & (x >= 0) & (x < width)  # black outside the image
            good_y = good_rows & (y >= 0) & (y < height)
            at = image + 3 * (y[:, None] * width + x[None, :])
            good = good_y[:, None] & good_x[None, :]
            weight_x = tl.load(weights_across + tap_x * size, good_cols, 0)[None, :]
            weight = tl.where(tall, tl.load(weights_down + tap_y * size, good_rows, 0)[:, None], weight_x)
            line_r += tl.load(at, good, 0).to(tl.int32) * weight
            line_g += tl.load(at + 1, good, 0).to(tl.int32) * weight
            line_b += tl.load(at + 2, good, 0).to(tl.int32) * weight
        # Between the passes Pillow keeps 8 bits, and so does this.
        weight_x = tl.load(weights_across + second * size, good_cols & (second < count_x), 0)[None, :]
        weight_y = tl.load(weights_down + second * size, good_rows & (second < count_y), 0)[:, None]
        weight = tl.where(tall, weight_x, weight_y)
        red += (line_r >> BITS) * weight  # between 0 and 255: the weights are not negative and sum to 1
        green += (line_g >> BITS) * weight
        blue += (line_b >> BITS) * weight
    good = good_rows[:, None] & good_cols[None, :]
    to = out + 3 * ((crop * size + rows[:, None]) * size + cols[None, :])
    tl.store(to, (red >> BITS).to(tl.uint8), good)
    tl.store(to + 1, (green >> BITS).to(tl.uint8), good)
    tl.store(to + 2, (blue >> BITS).to(tl.uint8), good)


def crop_resident(pixels, layout, request, size, tallest, widest):
    """Crops of stored images -> (m, 3, size, size) uint8 on
    their device, NHWC in memory, black outside the images.

    pixels: the images' bytes, uint8; layout (n, 3) int64: start, height, width;
    request (m, 7) int64: index, top, left, height, width, flip, vertical_first; all on
    one device. tallest, widest: of the windows, known without asking the device."""
    taps = max_taps(max(tallest, widest), size)
    m = len(request)
    places, weights = find_taps(request[:, 3:5].t().reshape(-1), size, taps)  # heights, then widths
    out = torch.empty((m, size, size, 3), dtype=torch.uint8, device=pixels.device)
    grid = m, triton.cdiv(size, TILE["ROWS"]), triton.cdiv(size, TILE["COLS"])
    if m:  # a process may have no row of a short batch
        crop_kernel[grid](pixels, layout, request, places[:m], places[m:], weights[:m], weights[m:],
                          out, size, taps, **TILE)
    return out.permute(0, 3, 1, 2)
