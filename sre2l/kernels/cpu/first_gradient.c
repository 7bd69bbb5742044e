/* The input gradient of a convolution over few channels: the image. */
#include "products.h"

/* m: the gradient of a row of outputs, (width, in), times the weights. It is
   what each of the outputs adds to its window of the image. y is REAL here. */
static void scatter_row(const Job *job, int64_t image, int64_t row, const REAL *m) {
    REAL *y = (REAL *)job->y + image * job->out_height * job->out_width * job->out;
    for (int64_t column = 0; column < job->width; column++) {
        int64_t left = column * job->stride_width - job->padding_width, right = left + job->kernel_width;
        int64_t from = left < 0 ? 0 : left, to = right > job->out_width ? job->out_width : right;
        for (int64_t r = 0; r < job->kernel_height; r++) {
            int64_t line = row * job->stride_height + r - job->padding_height;
            const REAL *added = m + column * job->columns + (r * job->kernel_width + from - left) * job->out;
            REAL *sum = y + (line * job->out_width + from) * job->out;
            if (line < 0 || line >= job->out_height)
                continue;
            for (int64_t i = 0; i < (to - from) * job->out; i++)
                sum[i] += added[i];
        }
    }
}

/* This thread's images. */
static void first_gradient_part(void *argument) {
    const Job *job = argument;
    int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    int64_t first = job->images * thread / threads, stop = job->images * (thread + 1) / threads;
    int64_t row_values = job->width * job->in, image_values = job->out_height * job->out_width * job->out;
    REAL *v = job->scratch + thread * job->values, *m = v + (job->width + ROWS - 1) / ROWS * ROWS * job->in;
    for (int64_t image = first; image < stop; image++) {
        memset((REAL *)job->y + image * image_values, 0, image_values * sizeof(REAL));
        for (int64_t row = 0; row < job->height; row++) {
            int64_t begin = (image * job->height + row) * row_values;
            for (int64_t i = 0; i < row_values; i += WIDTH)
                store(v + i, take(job->x, begin + i, job->bf16));
            for (int64_t k = 0; k < job->columns; k += PANEL)
                products(v, job->in, job->u + k * job->in, m + k, job->columns, job->width);
            scatter_row(job, image, row, m);
        }
    }
}

void first_gradient(Job *job, unsigned threads) { GOMP_parallel(first_gradient_part, job, threads, 0); }
