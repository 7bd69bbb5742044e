/* Crop and resize RGB images exactly as Pillow's bilinear filter does: a horizontal and a vertical pass with 22-bit weights, rounded to
   uint8 in between. Compiled at first use by resize.py. Weights are not negative and sum to 2^22 but for rounding: no clipping needed. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { BITS = 22, HALF = 1 << (BITS - 1) };
typedef uint32_t pixel_t;                                 /* red, green, blue and a spare byte */

typedef struct { int taps, *first, *count; int32_t *weights; } Axis;   /* weights [size][taps] */

/* Which input pixels an output pixel is made of, and their shares: in double precision, in Pillow's order of operations. */
static int find_taps(Axis *axis, int extent, int size)
{
    double scale = (double)extent / size, support = scale < 1 ? 1 : scale, inverse = 1 / support;
    axis->taps = (int)ceil(support) * 2 + 1;
    axis->first = malloc(sizeof(int) * size);
    axis->count = malloc(sizeof(int) * size);
    axis->weights = malloc(sizeof(int32_t) * size * axis->taps);
    double *shares = malloc(sizeof(double) * axis->taps);
    if (!axis->first || !axis->count || !axis->weights || !shares) { free(shares); return 0; }
    for (int i = 0; i < size; i++) {
        double centre = (i + 0.5) * scale, sum = 0;
        int first = (int)(centre - support + 0.5), last = (int)(centre + support + 0.5);
        first = first < 0 ? 0 : first;
        last = last > extent ? extent : last;
        for (int k = 0; k < last - first; k++) {
            double far = fabs((k + first - centre + 0.5) * inverse);
            shares[k] = far < 1 ? 1 - far : 0;
            sum += shares[k];
        }
        for (int k = 0; k < last - first; k++)
            axis->weights[i * axis->taps + k] = (int32_t)(0.5 + shares[k] / sum * (1 << BITS));
        axis->first[i] = first;
        axis->count[i] = last - first;
    }
    free(shares);
    return 1;
}

static void free_axis(Axis *axis) { free(axis->first); free(axis->count); free(axis->weights); }

/* The weighted sum of `count` runs of `length` bytes, `stride` apart, rounded: the inner step of both passes. */
static inline void blend(const uint8_t *restrict from, size_t stride, int count, const int32_t *restrict weights, int length,
                         int32_t *restrict sums, uint8_t *restrict made)
{
    if (count == 2)                                       /* wherever a crop is enlarged, away from the edges */
        for (int j = 0; j < length; j++)
            made[j] = (HALF + from[j] * weights[0] + from[stride + j] * weights[1]) >> BITS;
    else {
        for (int j = 0; j < length; j++) sums[j] = HALF;
        for (int k = 0; k < count; k++)
            for (int j = 0; j < length; j++) sums[j] += from[k * stride + j] * weights[k];
        for (int j = 0; j < length; j++) made[j] = sums[j] >> BITS;
    }
}

/* Horizontal pass over four rows at once: lines [width][4 rows] -> rows [4][size], mirrored where `flip`. */
static void shrink_rows(const pixel_t *lines, const Axis *axis, int size, int flip, pixel_t *rows)
{
    for (int i = 0; i < size; i++) {
        pixel_t four[4], *place = rows + (flip ? size - 1 - i : i);
        int32_t sums[16];
        blend((const uint8_t *)(lines + 4 * (size_t)axis->first[i]), 16, axis->count[i], axis->weights + (size_t)i * axis->taps, 16, sums, (uint8_t *)four);
        for (int r = 0; r < 4; r++) place[r * size] = four[r];
    }
}

/* Blended rows [size] -> three planes `size * size` apart. */
static void split_row(const pixel_t *row, int size, uint8_t *out)
{
    for (int c = 0; c < 3; c++)
        for (int j = 0; j < size; j++) out[(size_t)c * size * size + j] = row[j] >> (8 * c);
}

/* Columns from..to-1 of an image row of three bytes a pixel -> every fourth pixel of `lines`. */
static void spread_row(const uint8_t *row, int64_t from, int64_t to, pixel_t *lines)
{
    for (int64_t x = from; x < to - 1; x++) memcpy(lines + 4 * x, row + 3 * x, 4);
    if (from < to) memcpy(lines + 4 * (to - 1), row + 3 * (to - 1), 3);               /* reads nothing behind the image */
}

/* image [height][width][3], window (top, left, height, width), black outside the image -> out [3][size][size]. */
static int crop_one(const uint8_t *image, const int64_t *shape, const int64_t *window, int flip, int size, uint8_t *out)
{
    int64_t top = window[0], left = window[1], height = window[2], width = window[3];
    int64_t from = left < 0 ? -left : 0, to = left + width > shape[1] ? shape[1] - left : width;   /* columns that the image has */
    Axis across = {0}, down = {0};
    pixel_t *lines = calloc(4 * width, sizeof(pixel_t)), *rows = malloc(sizeof(pixel_t) * size * (height + 4));   /* RGB and a spare byte */
    pixel_t *made = malloc(sizeof(pixel_t) * size);
    int32_t *sums = malloc(sizeof(int32_t) * 4 * size);
    int good = lines && rows && made && sums && find_taps(&across, width, size) && find_taps(&down, height, size);
    for (int64_t y = 0; good && y < height; y += 4) {
        for (int64_t r = y; r < y + 4; r++)
            if (r < height && top + r >= 0 && top + r < shape[0])
                spread_row(image + 3 * ((top + r) * shape[1] + left), from, to, lines + r - y);
            else
                for (int64_t x = from; x < to; x++) lines[4 * x + r - y] = 0;
        shrink_rows(lines, &across, size, flip, rows + y * size);
    }
    for (int i = 0; good && i < size; i++) {              /* vertical pass */
        blend((const uint8_t *)(rows + (size_t)down.first[i] * size), 4 * (size_t)size, down.count[i], down.weights + (size_t)i * down.taps,
              4 * size, sums, (uint8_t *)made);
        split_row(made, size, out + (size_t)i * size);
    }
    free_axis(&across), free_axis(&down), free(lines), free(rows), free(made), free(sums);
    return good;
}

/* n images by address, shapes [n][2], windows [n][4], flips [n] -> out [n][3][size][size]; 0 where memory ran out. */
int crop_all(int64_t n, const int64_t *addresses, const int64_t *shapes, const int64_t *windows, const uint8_t *flips, int size, uint8_t *out)
{
    for (int64_t i = 0; i < n; i++)
        if (!crop_one((const uint8_t *)addresses[i], shapes + 2 * i, windows + 4 * i, flips[i], size, out + (size_t)3 * size * size * i))
            return 0;
    return 1;
}
