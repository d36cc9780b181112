/* 16 rows side by side; columns in runs of 16, whose errors move the columns beyond in one pass over them. */
#include "feedback_grid.h"

#include "lanes.h"

#define RUN 16

typedef struct {
    const float *upper, *scale, *offset;
    int64_t width, first, last, group;
    float lowest, highest;
} task;

/* Rows `row` and following, `count` of them, into lanes: [column][lane]; the lanes past them are zero. */
EDGEPACK_INLINE void load_rows(const float *tile, int64_t row, int count, const task *t, float *lanes) {
    memset(lanes, 0, (size_t)((t->width - t->first) * LANES) * sizeof *lanes);
    for (int lane = 0; lane < count; lane++) {
        const float *from = tile + (row + lane) * t->width;
        for (int64_t k = t->first; k < t->width; k++) lanes[(k - t->first) * LANES + lane] = from[k];
    }
}

EDGEPACK_INLINE void store_rows(float *tile, int64_t row, int count, const task *t, int64_t until, const float *lanes) {
    for (int lane = 0; lane < count; lane++) {
        float *to = tile + (row + lane) * t->width;
        for (int64_t k = t->first; k < until; k++) to[k] = lanes[(k - t->first) * LANES + lane];
    }
}

/* Round column `j` and give its errors; q, w and e are of 16 lanes. */
EDGEPACK_INLINE void round_column(const task *t, int64_t j, int64_t row, int count, const float *w, float *q, float *e) {
    const int64_t groups = (t->last - t->first) / t->group, at = (j - t->first) / t->group;
    const float pivot = t->upper[j * t->width + j];
    float scale[LANES] = {0}, offset[LANES] = {0};
    for (int lane = 0; lane < count; lane++) {
        scale[lane] = t->scale[(row + lane) * groups + at];
        offset[lane] = t->offset[(row + lane) * groups + at];
    }
    EACH_LANE {
        const float nearest = clamped(rounded((w[lane] - offset[lane]) * inverse(scale[lane])), t->lowest, t->highest);
        q[lane] = scale[lane] != 0.0f ? nearest : clamped(0.0f, t->lowest, t->highest);
        e[lane] = (w[lane] - (scale[lane] * q[lane] + offset[lane])) / pivot;
    }
}

/* Columns `from` … `until` - 1 less the errors of columns `start` … `stop` - 1. */
EDGEPACK_INLINE void feed_back(const task *t, int64_t start, int64_t stop, int64_t from, int64_t until,
                               const float *restrict e, float *restrict lanes) {
    const int64_t count = stop - start, width = t->width;
    for (int64_t k = from; k < until; k++) {
        const float *restrict u = t->upper + start * width + k, *restrict errors = e + (start - t->first) * LANES;
        float *restrict w = lanes + (k - t->first) * LANES;
        EACH_LANE {
            float sum = 0.0f;
            for (int64_t j = 0; j < count; j++) sum += errors[j * LANES + lane] * u[j * width];
            w[lane] -= sum;
        }
    }
}

#define MOST_COLUMNS 256

EDGEPACK_CLONES void edgepack_feedback_grid(float *tile, int64_t rows, int64_t width, int64_t first, int64_t last,
                                            const float *upper, const float *scale, const float *offset, int64_t group,
                                            float lowest, float highest, int8_t *quants, float *errors) {
    const task t = {upper, scale, offset, width, first, last, group, lowest, highest};
    float lanes[MOST_COLUMNS * LANES], e[MOST_COLUMNS * LANES], q[MOST_COLUMNS * LANES];
    for (int64_t row = 0; row < rows; row += LANES) {
        const int count = rows - row < LANES ? (int)(rows - row) : LANES;
        load_rows(tile, row, count, &t, lanes);
        for (int64_t start = first; start < last; start += RUN) {
            const int64_t stop = start + RUN < last ? start + RUN : last;
            for (int64_t j = start; j < stop; j++) {
                const int64_t at = (j - first) * LANES;
                round_column(&t, j, row, count, lanes + at, q + at, e + at);
                feed_back(&t, j, j + 1, j + 1, stop, e, lanes);
            }
            feed_back(&t, start, stop, stop, width, e, lanes);
        }
        store_rows(tile, row, count, &t, width, lanes);
        store_rows(errors, row, count, &t, last, e);
        for (int lane = 0; lane < count; lane++) {
            for (int64_t j = first; j < last; j++) {
                quants[(row + lane) * width + j] = (int8_t)(int)q[(j - first) * LANES + lane];
            }
        }
    }
}
