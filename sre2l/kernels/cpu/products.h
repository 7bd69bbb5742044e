/* What winograd.c and first_gradient.c share: activations, and small products
   of matrices that stay in a core's cache. Activations are rows of channels
   (NHWC) in float32, bfloat16 or, with REAL=double INTEGER=int64_t, float64.

   The threads are those of the OpenMP that torch has loaded, as in norms.c. A
   value of the result has one order of summation, whatever their number. */
#include <stdint.h>
#include <string.h>

#ifndef REAL
#define REAL float
#define INTEGER int32_t /* of the same size */
#endif
#if defined(__AVX512F__)
#define BYTES 64 /* of a vector */
#define ROWS 12  /* of a product: with two vectors each they fill the registers */
#elif defined(__AVX__)
#define BYTES 32
#define ROWS 6
#elif defined(__aarch64__)
#define BYTES 16
#define ROWS 12
#else
#define BYTES 16
#define ROWS 6
#endif
#define WIDTH ((int)(BYTES / sizeof(REAL)))
#define PANEL (2 * WIDTH) /* columns of a product */
#define INLINE static inline __attribute__((always_inline))

typedef REAL Vector __attribute__((vector_size(BYTES)));
typedef INTEGER Index __attribute__((vector_size(BYTES)));
typedef uint16_t Bf16 __attribute__((vector_size(BYTES / 2)));
typedef uint32_t Bits __attribute__((vector_size(BYTES)));

void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned);
int omp_get_thread_num(void), omp_get_num_threads(void);

typedef struct {
    const void *x;       /* read: (images, height, width, in) */
    void *y;             /* written: (images, out_height, out_width, out) */
    const REAL *u;       /* weights, in panels: (.., columns / PANEL, in, PANEL) */
    const REAL *bias;    /* (out,) or NULL */
    REAL *scratch;       /* (threads, values of one) */
    int64_t images, height, width, in, out_height, out_width, out;
    int64_t block;       /* tiles that a thread has in hand */
    int64_t bf16;        /* 1: x and y are bfloat16 */
    int64_t turned;      /* 1: u is of the convolution whose input gradient this is */
    int64_t kernel_height, kernel_width, stride_height, stride_width, padding_height, padding_width;
    int64_t columns, values;
} Job;

int64_t panel(void) { return PANEL; }
int64_t rows(void) { return ROWS; }

INLINE Vector load(const REAL *values) {
    Vector v;
    memcpy(&v, values, BYTES);
    return v;
}

INLINE void store(REAL *values, Vector v) { memcpy(values, &v, BYTES); }

/* WIDTH values of an activation. */
INLINE Vector take(const void *values, int64_t at, int bf16) {
    Vector v;
    Bf16 h;
    if (sizeof(REAL) != 4 || !bf16)
        return load((const REAL *)values + at);
    memcpy(&h, (const uint16_t *)values + at, sizeof h);
    Bits bits = __builtin_convertvector(h, Bits) << 16;
    memcpy(&v, &bits, BYTES);
    return v;
}

/* WIDTH values of an activation. bfloat16: rounds to the nearest, ties to even, as in norms.c. */
INLINE void put(void *values, int64_t at, Vector v, int bf16) {
    Bits bits;
    if (sizeof(REAL) != 4 || !bf16) {
        store((REAL *)values + at, v);
        return;
    }
    memcpy(&bits, &v, BYTES);
    Bf16 h = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, Bf16);
    memcpy((uint16_t *)values + at, &h, sizeof h);
}

/* m (ROWS, PANEL of `out`) = v (ROWS, in) u (in, PANEL). */
INLINE void product(const REAL *v, int64_t in, const REAL *u, REAL *m, int64_t out) {
    Vector left[ROWS] = {{0}}, right[ROWS] = {{0}};
    for (int64_t c = 0; c < in; c++) {
        Vector a = load(u + c * PANEL), b = load(u + c * PANEL + WIDTH);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            left[r] += v[r * in + c] * a;
            right[r] += v[r * in + c] * b;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
        store(m + r * out, left[r]);
        store(m + r * out + WIDTH, right[r]);
    }
}

/* m (count, PANEL of `out`) = v (count, in) u (in, PANEL); v and m have room for whole ROWS. */
static void products(const REAL *v, int64_t in, const REAL *u, REAL *m, int64_t out, int64_t count) {
    for (int64_t row = 0; row < count; row += ROWS)
        product(v + row * in, in, u, m + row * out, out);
}
