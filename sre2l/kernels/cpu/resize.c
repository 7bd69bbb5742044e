/* Crop and resize RGB images exactly as Pillow's bilinear filter does: a pass along rows and one along
   columns with 22-bit weights, rounded to uint8 in between. sre2l/data/resize.py compiles this file at its
   first use. The weights are not negative and sum to 2^22 but for rounding: nothing needs clipping. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { BITS = 22, HALF = 1 << (BITS - 1) };
typedef uint32_t pixel_t; /* red, green, blue and a spare byte */

typedef struct { int taps, *first, *count; int32_t *weights; } Axis; /* weights [size][taps] */

/* Which input pixels an output pixel is made of, and their shares: in double precision, in Pillow's order of
   operations. -> 0 where memory ran out. */
static int find_taps(Axis *axis, int extent, int size)
{
    double scale = (double)extent / size, support = scale < 1 ? 1 : scale, inverse = 1 / support;
    axis->taps = (int)ceil(support) * 2 + 1;
    axis->first = malloc(sizeof(int) * size);
    axis->count = malloc(sizeof(int) * size);
    axis->weights = malloc(sizeof(int32_t) * size * axis->taps);
    double *shares = malloc(sizeof(double) * axis->taps);
    if (!axis->first || !axis->count || !axis->weights || !shares) {
        free(shares);
        return 0;
    }
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

static void free_axis(Axis *axis)
{
    free(axis->first);
    free(axis->count);
    free(axis->weights);
}

/* The weighted sum of `count` runs of `length` bytes,
   `stride` apart, rounded: the inner step of both passes. */
static inline void blend(const uint8_t *restrict from, size_t stride, int count,
                         const int32_t *restrict weights, int length, int32_t *restrict sums,
                         uint8_t *restrict made)
{
    if (count == 2) /* wherever a crop is enlarged, away from the edges */
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
static void across_pass(const pixel_t *lines, const Axis *axis, int size, int flip, pixel_t *rows)
{
    for (int i = 0; i < size; i++) {
        pixel_t four[4], *place = rows + (flip ? size - 1 - i : i);
        int32_t sums[16];
        const uint8_t *from = (const uint8_t *)(lines + 4 * (size_t)axis->first[i]);
        blend(from, 16, axis->count[i], axis->weights + (size_t)i * axis->taps, 16, sums, (uint8_t *)four);
        for (int r = 0; r < 4; r++) place[r * size] = four[r];
    }
}

/* A row of three bytes a pixel -> every fourth pixel of `lines`. Reads nothing behind the row. */
static void spread_row(const uint8_t *row, int64_t width, pixel_t *lines)
{
    for (int64_t x = 0; x < width - 1; x++) memcpy(lines + 4 * x, row + 3 * x, 4);
    memcpy(lines + 4 * (width - 1), row + 3 * (width - 1), 3);
}

/* A row of the output -> three planes `size * size` apart. */
static void split_row(const pixel_t *row, int size, uint8_t *out)
{
    for (int c = 0; c < 3; c++)
        for (int j = 0; j < size; j++) out[(size_t)c * size * size + j] = row[j] >> (8 * c);
}

/* Room for one crop: RGB and a spare byte a pixel. */
typedef struct { pixel_t *lines, *rows; uint8_t *made; int32_t *sums; } Room;

/* Rows first, then columns: image [height][width][3], rows `stride` bytes apart -> out. */
static void wide_first(const uint8_t *image, int64_t stride, int64_t height, int64_t width,
                       const Axis *across, const Axis *down, int flip, int size, Room *room, uint8_t *out)
{
    for (int64_t y = 0; y < height; y += 4) {
        for (int64_t r = 0; r < 4 && y + r < height; r++)
            spread_row(image + (y + r) * stride, width, room->lines + r);
        across_pass(room->lines, across, size, flip, room->rows + y * size);
    }
    for (int i = 0; i < size; i++) {
        const uint8_t *from = (const uint8_t *)(room->rows + (size_t)down->first[i] * size);
        const int32_t *weights = down->weights + (size_t)i * down->taps;
        blend(from, 4 * (size_t)size, down->count[i], weights, 4 * size, room->sums, room->made);
        split_row((pixel_t *)room->made, size, out + (size_t)i * size);
    }
}

/* Columns first, then rows. */
static void tall_first(const uint8_t *image, int64_t stride, int64_t width, const Axis *across,
                       const Axis *down, int flip, int size, Room *room, uint8_t *out)
{
    for (int i = 0; i < size; i += 4) {
        for (int r = 0; r < 4 && i + r < size; r++) {
            const uint8_t *from = image + down->first[i + r] * stride;
            const int32_t *weights = down->weights + (size_t)(i + r) * down->taps;
            blend(from, stride, down->count[i + r], weights, 3 * width, room->sums, room->made);
            spread_row(room->made, width, room->lines + r);
        }
        across_pass(room->lines, across, size, flip, room->rows);
        for (int r = 0; r < 4 && i + r < size; r++)
            split_row(room->rows + (size_t)r * size, size, out + (size_t)(i + r) * size);
    }
}

/* image [height][width][3], window (top, left, height, width)
   -> a copy of the window, black outside the image. */
static uint8_t *copy_window(const uint8_t *image, const int64_t *shape, const int64_t *window)
{
    int64_t top = window[0], left = window[1], height = window[2], width = window[3];
    int64_t from = left < 0 ? -left : 0; /* the columns that the image has */
    int64_t to = left + width > shape[1] ? shape[1] - left : width;
    uint8_t *copy = calloc(3 * height, width);
    for (int64_t y = 0; copy && from < to && y < height; y++)
        if (top + y >= 0 && top + y < shape[0])
            memcpy(copy + 3 * (y * width + from), image + 3 * ((top + y) * shape[1] + left + from),
                   3 * (to - from));
    return copy;
}

/* One image -> out [3][size][size]; 0 where memory ran out. tall: the vertical pass comes first. */
static int crop_one(const uint8_t *image, const int64_t *shape, const int64_t *window, int flip, int tall,
                    int size, uint8_t *out)
{
    int64_t top = window[0], left = window[1], height = window[2], width = window[3], stride = 3 * shape[1];
    int64_t longest = width > size ? width : size;
    uint8_t *copy = NULL;
    const uint8_t *inside = image + top * stride + 3 * left;
    if (top < 0 || left < 0 || top + height > shape[0] || left + width > shape[1]) {
        inside = copy = copy_window(image, shape, window);
        stride = 3 * width;
    }
    Axis across = {0}, down = {0};
    Room room = {
        .lines = calloc(4 * width, sizeof(pixel_t)),
        .rows = malloc(sizeof(pixel_t) * size * (height + 4)),
        .made = malloc(4 * longest),
        .sums = malloc(sizeof(int32_t) * 4 * longest),
    };
    int good = inside && room.lines && room.rows && room.made && room.sums;
    good = good && find_taps(&across, width, size) && find_taps(&down, height, size);
    if (good && tall)
        tall_first(inside, stride, width, &across, &down, flip, size, &room, out);
    else if (good)
        wide_first(inside, stride, height, width, &across, &down, flip, size, &room, out);
    free_axis(&across);
    free_axis(&down);
    free(copy);
    free(room.lines);
    free(room.rows);
    free(room.made);
    free(room.sums);
    return good;
}

/* n images by address, shapes [n][2], windows [n][4], flips and
   tall [n] -> out [n][3][size][size]; 0 where memory ran out. */
int crop_all(int64_t n, const int64_t *addresses, const int64_t *shapes, const int64_t *windows,
             const uint8_t *flips, const uint8_t *tall, int size, uint8_t *out)
{
    for (int64_t i = 0; i < n; i++, out += (size_t)3 * size * size) {
        const uint8_t *image = (const uint8_t *)addresses[i];
        if (!crop_one(image, shapes + 2 * i, windows + 4 * i, flips[i], tall[i], size, out))
            return 0;
    }
    return 1;
}
