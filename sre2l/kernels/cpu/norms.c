/* The two passes of norms.py over an activation, rows of C channels
   in float32 or bfloat16. Each value is read once and written once.

   The threads are those of the OpenMP that torch has loaded. GOMP_parallel is the entry that GCC's own
   code calls. It is called here by its name, so that no compiler brings in a second OpenMP. Thread t
   of T has the t-th part of each group's rows: with T threads every run has the same sums. */
#include <stdint.h>
#include <string.h>

#define TILE 256  /* channels at a time: their sums stay in the first-level cache */
#define BLOCK 256 /* rows that are summed up in float, before their sum joins a double */
#define DEEP 4    /* rows side by side, so that the numbers of a channel are loaded once for all of them */
#define INLINE static inline __attribute__((always_inline))

void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned);
int omp_get_thread_num(void), omp_get_num_threads(void);

/* The flags of `kind`. SUM: two gradients come back. OTHER: `other` was added. */
enum { BF16 = 1, STATS = 2, SUM = 4, CLAMPS = 8, OTHER = 16, ALL_KINDS = 31 };

typedef struct {
    const void *x, *other, *g1, *g2;                  /* g1: NULL in a forward pass */
    void *y, *gx, *gother;                            /* y in a backward pass: read where CLAMPS and OTHER */
    const float *mean, *scale, *shift, *alpha, *beta; /* (C,) or (groups, C); alpha, beta: the latter */
    double *partial;                                  /* (threads, groups, 2, C), zeros */
    int64_t rows, channels, groups, kind, step;       /* rows of a group; step: as NormFacts has it */
    float low, high;
} Job;

INLINE float load(const void *values, int64_t at, int kind) {
    float v;
    if (!(kind & BF16))
        return ((const float *)values)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)values)[at] << 16;
    memcpy(&v, &bits, 4);
    return v;
}

/* bfloat16: rounds to the nearest, ties to even. A NaN stays one: those that
   arise from bfloat16 or from arithmetic have nothing in the bits that go. */
INLINE void store(void *values, int64_t at, float v, int kind) {
    uint32_t bits;
    if (!(kind & BF16)) {
        ((float *)values)[at] = v;
        return;
    }
    memcpy(&bits, &v, 4);
    ((uint16_t *)values)[at] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* `deep` rows from `row`, `width` channels from `first`.
   kind and deep are constants where this is compiled: what is left is one loop without branches. */
INLINE void forward_rows(const Job *job, float *total, float *square, int64_t row, int64_t first, int width,
                         int kind, int deep) {
    const float *m = job->mean + first, *a = job->scale + first, *b = job->shift + first;
    const float low = job->low, high = job->high;
    const int64_t channels = job->channels, begin = row * channels + first;
#pragma omp simd
    for (int c = 0; c < width; c++) {
        float t = 0, q = 0;
#pragma GCC unroll 4
        for (int r = 0; r < deep; r++) {
            int64_t at = begin + r * channels + c;
            float v = load(job->x, at, kind), d = v - m[c];
            t += d;
            q += d * d;
            v = v * a[c] + b[c];
            if (kind & OTHER)
                v += load(job->other, at, kind);
            v = v < low ? low : v; /* a NaN stays one */
            v = v > high ? high : v;
            store(job->y, at, v, kind);
        }
        if (kind & STATS) {
            total[c] += t;
            square[c] += q;
        }
    }
}

INLINE void forward_tile(const Job *job, double *sums, int64_t begin, int64_t end, int64_t first, int width,
                         int kind) {
    float total[TILE] = {0}, square[TILE] = {0};
    int64_t row = begin;
    for (; row + DEEP <= end; row += DEEP)
        forward_rows(job, total, square, row, first, width, kind, DEEP);
    for (; row < end; row++)
        forward_rows(job, total, square, row, first, width, kind, 1);
    for (int c = 0; kind & STATS && c < width; c++) {
        sums[first + c] += total[c];
        sums[job->channels + first + c] += square[c];
    }
}

INLINE void backward_tile(const Job *job, const float *alpha, const float *beta, int64_t begin, int64_t end,
                          int64_t first, int width, int kind) {
    const float *a = job->scale + first, *b = job->shift + first, low = job->low, high = job->high;
    for (int64_t row = begin; row < end; row++) {
        int64_t at = row * job->channels + first;
#pragma omp simd
        for (int c = 0; c < width; c++) {
            float g = load(job->g1, at + c, kind);
            float v = kind & (STATS | CLAMPS) ? load(job->x, at + c, kind) : 0;
            if (kind & SUM)
                g += load(job->g2, at + c, kind);
            if (kind & CLAMPS) {
                float y = kind & OTHER ? load(job->y, at + c, kind) : v * a[c] + b[c];
                g = y <= low ? 0 : y >= high ? 0 : g;
            }
            if (kind & OTHER && kind & (SUM | CLAMPS)) /* else the gradient of `other` is g1 */
                store(job->gother, at + c, g, kind);
            g *= a[c];
            if (kind & STATS)
                g += alpha[first + c] + beta[first + c] * v;
            store(job->gx, at + c, g, kind);
        }
    }
}

/* One copy of a pass for each kind, compiled for it. The
   default computes any other: nothing stays unwritten. */
#define FORWARD(k) case k: forward_tile(job, sums, begin, end, first, width, k); break;
#define BACKWARD(k) case k: backward_tile(job, alpha, beta, begin, end, first, width, k); break;
#define FOUR(F, k) F(k) F(k + 1) F(k + 2) F(k + 3)

static void run_forward_tile(const Job *job, double *sums, int64_t begin, int64_t end, int64_t first,
                             int width) {
    switch (job->kind) {
        FOUR(FORWARD, 0) FOUR(FORWARD, OTHER)
    default:
        forward_tile(job, sums, begin, end, first, width, (int)job->kind);
    }
}

static void run_backward_tile(const Job *job, const float *alpha, const float *beta, int64_t begin,
                              int64_t end, int64_t first, int width) {
    switch (job->kind) {
        FOUR(BACKWARD, 0) FOUR(BACKWARD, 4) FOUR(BACKWARD, 8) FOUR(BACKWARD, 12)
        FOUR(BACKWARD, 16) FOUR(BACKWARD, 20) FOUR(BACKWARD, 24) FOUR(BACKWARD, 28)
    default:
        backward_tile(job, alpha, beta, begin, end, first, width, (int)job->kind);
    }
}

/* This thread's part of every group, in blocks of rows and tiles of channels. */
static void run_part(void *argument) {
    Job own = *(const Job *)argument;
    const Job *job = &own;
    const int64_t channels = job->channels, blocks = (job->rows + BLOCK - 1) / BLOCK;
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    for (int64_t group = 0; group < job->groups; group++) {
        double *sums = job->partial + (thread * job->groups + group) * 2 * channels;
        const float *alpha = job->alpha + group * channels, *beta = job->beta + group * channels;
        for (int64_t block = blocks * thread / threads; block < blocks * (thread + 1) / threads; block++) {
            int64_t left = job->rows - block * BLOCK;
            int64_t begin = group * job->rows + block * BLOCK, end = begin + (left < BLOCK ? left : BLOCK);
            for (int64_t first = 0; first < channels; first += TILE) {
                int width = channels - first < TILE ? (int)(channels - first) : TILE;
                if (job->g1)
                    run_backward_tile(job, alpha, beta, begin, end, first, width);
                else
                    run_forward_tile(job, sums, begin, end, first, width);
            }
        }
        own.mean += job->step;
        own.scale += job->step;
        own.shift += job->step;
    }
}

/* -> 1, or 0 and nothing done where `kind` has a flag that this file does not know. */
int run_job(Job *job, unsigned threads) {
    if (job->kind & ~(int64_t)ALL_KINDS)
        return 0;
    GOMP_parallel(run_part, job, threads, 0);
    return 1;
}
