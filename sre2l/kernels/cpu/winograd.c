/* 3x3 convolutions by Winograd's F(4x4, 3x3), as convs.py has it. */
#include "products.h"

/* Winograd's transforms for the points 0, a, -a, b, -b and infinity, a = 1 / b =
   sqrt(1/2). Of all points that were tried, these are nearest to the exact result. Weights
   turned by 180 degrees have the transform of the weights at the inverse points. */
#define A ((REAL)0.70710678118654752440)
#define B ((REAL)1.41421356237309504880)
#define THIRD ((REAL)1 / 3)
static const int INVERSE[6] = {5, 3, 4, 1, 2, 0};

INLINE void transform_input(const Vector *x, int step, Vector *v) {
    Vector x1 = x[step], x2 = x[2 * step], x3 = x[3 * step], x4 = x[4 * step];
    Vector t = (x4 - 2 * x2) * (2 * A * THIRD), s = (x3 - 2 * x1) * THIRD;
    v[0] = x[0] + x4 - (REAL)2.5 * x2;
    v[1] = -t - s;
    v[2] = t - s;
    t = (x4 - (REAL)0.5 * x2) * (A * THIRD), s = (x3 - (REAL)0.5 * x1) * THIRD;
    v[3] = t + s;
    v[4] = s - t;
    v[5] = x1 + x[5 * step] - (REAL)2.5 * x3;
}

INLINE void transform_output(const Vector *m, int step, Vector *y) {
    Vector a = m[step] + m[2 * step], da = m[step] - m[2 * step];
    Vector b = m[3 * step] + m[4 * step], db = m[3 * step] - m[4 * step];
    y[0] = m[0] + a + b;
    y[1] = A * da + B * db;
    y[2] = (REAL)0.5 * a + 2 * b;
    y[3] = A / 2 * da + 2 * B * db + m[5 * step];
}

/* WIDTH x WIDTH values, transposed: blocks of 1, 2, 4 .. that lie across the diagonal change places. */
INLINE void transpose(const REAL *from, REAL *to) {
    Vector rows[WIDTH];
#pragma GCC unroll 16
    for (int i = 0; i < WIDTH; i++)
        rows[i] = load(from + i * PANEL);
#pragma GCC unroll 4
    for (int s = 1; s < WIDTH; s *= 2)
#pragma GCC unroll 16
        for (int i = 0; i < WIDTH; i++)
            if (!(i & s)) {
                Vector a = rows[i], b = rows[i + s];
                Index low = {0}, high = {0};
#pragma GCC unroll 16
                for (int j = 0; j < WIDTH; j++) {
                    low[j] = j & s ? WIDTH + j - s : j;
                    high[j] = j & s ? WIDTH + j : j + s;
                }
                rows[i] = __builtin_shuffle(a, b, low);
                rows[i + s] = __builtin_shuffle(a, b, high);
            }
#pragma GCC unroll 16
    for (int i = 0; i < WIDTH; i++)
        store(to + i * PANEL, rows[i]);
}

/* The panel from column k of the transpose of u, (out, in) in panels. */
static void turn_panel(const REAL *u, int64_t k, int64_t in, int64_t out, REAL *panel) {
    for (int64_t c = 0; c < in; c += WIDTH)
        for (int64_t i = 0; i < PANEL; i += WIDTH)
            transpose(u + (c / PANEL * out + k + i) * PANEL + c % PANEL, panel + c * PANEL + i);
}

typedef struct { int64_t image, row, column; } Tile;

/* 4x4 values of the result, that see 6x6 of the input. */
INLINE Tile tile_at(const Job *job, int64_t tile) {
    int64_t across = (job->width + 3) / 4, down = (job->height + 3) / 4;
    return (Tile){tile / (across * down), tile / across % down * 4, tile % across * 4};
}

INLINE void read_tile(const Job *job, Tile tile, REAL *v, int bf16) {
    for (int64_t c = 0; c < job->in; c += WIDTH) {
        Vector seen[36], down[36], across[6];
        for (int i = 0; i < 36; i++) {
            int64_t row = tile.row + i / 6 - 1, column = tile.column + i % 6 - 1;
            int inside = row >= 0 && row < job->height && column >= 0 && column < job->width;
            int64_t pixel = (tile.image * job->height + row) * job->width + column;
            seen[i] = inside ? take(job->x, pixel * job->in + c, bf16) : (Vector){0};
        }
        for (int j = 0; j < 6; j++) {
            transform_input(seen + j, 6, across);
            for (int i = 0; i < 6; i++)
                down[6 * i + j] = across[i];
        }
        for (int i = 0; i < 6; i++) {
            transform_input(down + 6 * i, 1, across);
            for (int j = 0; j < 6; j++)
                store(v + (6 * i + j) * job->block * job->in + c, across[j]);
        }
    }
}

INLINE void write_tile(const Job *job, Tile tile, const REAL *m, int bf16) {
    for (int64_t k = 0; k < job->out; k += WIDTH) {
        Vector sums[36], down[24], across[4], bias = job->bias ? load(job->bias + k) : (Vector){0};
        for (int i = 0; i < 36; i++)
            sums[i] = load(m + i * job->block * job->out + k);
        for (int j = 0; j < 6; j++) {
            transform_output(sums + j, 6, across);
            for (int i = 0; i < 4; i++)
                down[6 * i + j] = across[i];
        }
        for (int i = 0; i < 4 && tile.row + i < job->height; i++) {
            transform_output(down + 6 * i, 1, across);
            int64_t pixel = (tile.image * job->height + tile.row + i) * job->width + tile.column;
            for (int j = 0; j < 4 && tile.column + j < job->width; j++)
                put(job->y, (pixel + j) * job->out + k, across[j] + bias, bf16);
        }
    }
}

/* A block of tiles: 36 products of (tiles, in) and (in, out) between the two transforms. */
INLINE void winograd_block(const Job *job, REAL *v, int64_t first, int64_t count, int bf16) {
    REAL *m = v + 36 * job->block * job->in, *panel = m + 36 * job->block * job->out;
    for (int64_t t = 0; t < count; t++)
        read_tile(job, tile_at(job, first + t), v + t * job->in, bf16);
    for (int i = 0; i < 36; i++) {
        const REAL *u = job->u + (job->turned ? 6 * INVERSE[i / 6] + INVERSE[i % 6] : i) * job->in * job->out;
        for (int64_t k = 0; k < job->out; k += PANEL) {
            if (job->turned)
                turn_panel(u, k, job->in, job->out, panel);
            const REAL *weights = job->turned ? panel : u + k * job->in;
            REAL *sums = m + i * job->block * job->out + k;
            products(v + i * job->block * job->in, job->in, weights, sums, job->out, count);
        }
    }
    for (int64_t t = 0; t < count; t++)
        write_tile(job, tile_at(job, first + t), m + t * job->out, bf16);
}

/* This thread's blocks. */
static void winograd_part(void *argument) {
    const Job *job = argument;
    int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    int64_t tiles = job->images * ((job->height + 3) / 4) * ((job->width + 3) / 4);
    int64_t blocks = (tiles + job->block - 1) / job->block;
    REAL *scratch = job->scratch + thread * job->values;
    for (int64_t block = blocks * thread / threads; block < blocks * (thread + 1) / threads; block++) {
        int64_t first = block * job->block, count = tiles - first < job->block ? tiles - first : job->block;
        if (job->bf16)
            winograd_block(job, scratch, first, count, 1);
        else
            winograd_block(job, scratch, first, count, 0);
    }
}

void winograd(Job *job, unsigned threads) { GOMP_parallel(winograd_part, job, threads, 0); }
