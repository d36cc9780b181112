/* x ≈ scale · q, q = -n … n - 1: the search of llama.cpp's make_qx_quants, 16 sub-blocks at a time.

   The least error of given integers is Σwx² - (Σwqx)² / Σwq². Tries round by -(n + r) / max, so that the largest weight takes
   the end with one level more; the best is settled by rounding anew with its own scale. Then the scales of a block are
   rounded (8 or 6 bits times a half) and fitted again to the integers of the weights, as in encode_affine.c. */
#include "encode_signed.h"

#include "lanes.h"

typedef struct {
    float scale[LANES], error[LANES];
} fit;

/* Σ w q², Σ w q x of each lane. */
typedef struct {
    float qq[LANES], qx[LANES];
} sums;

#define TRIES 10
#define TRIES_EIGHT_BITS 5
#define SETTLE 2
#define REFITS 2

EDGEPACK_INLINE void sum_quants(const group *g, const int size, const float n, const float *inverses, sums *s) {
    EACH_LANE {
        const float k = inverses[lane];
        float qq_sum = 0.0f, qx_sum = 0.0f;
        for (int i = 0; i < size; i++) {
            const float x = g->x[i * LANES + lane];
            const float q = clamped(rounded(x * k), -n, n - 1.0f);
            const float wq = g->w[i * LANES + lane] * q;
            qq_sum += wq * q;
            qx_sum += wq * x;
        }
        s->qq[lane] = qq_sum;
        s->qx[lane] = qx_sum;
    }
}

EDGEPACK_INLINE float error_of(const group *g, const sums *s, int lane, float scale) {
    return g->sum_xx[lane] - scale * (2.0f * s->qx[lane] - scale * s->qq[lane]);
}

/* Take the least-squares scale of `s` where it is better than what `best` has. */
EDGEPACK_INLINE void keep_better(const group *g, const sums *s, fit *best) {
    EACH_LANE {
        const float scale = s->qx[lane] * inverse(s->qq[lane]);
        const float error = error_of(g, s, lane, scale);
        const int better = error < best->error[lane];
        best->scale[lane] = better ? scale : best->scale[lane];
        best->error[lane] = better ? error : best->error[lane];
    }
}

EDGEPACK_INLINE void search(const group *g, const int size, const float n, fit *best) {
    float unit[LANES], inverses[LANES];
    sums s;
    EACH_LANE {
        float low = 0.0f, high = 0.0f;
        for (int i = 0; i < size; i++) {
            low = least(low, g->x[i * LANES + lane]);
            high = most(high, g->x[i * LANES + lane]);
        }
        const float largest = high > -low ? high : low;
        unit[lane] = -inverse(largest);
        inverses[lane] = n * unit[lane];
        best->scale[lane] = -largest / n;
    }
    sum_quants(g, size, n, inverses, &s);
    EACH_LANE best->error[lane] = error_of(g, &s, lane, best->scale[lane]);
    keep_better(g, &s, best);
    for (int t = 0; t < TRIES; t++) {
        /* Every other try turns the grid round: the largest weight takes the end that has a level less. */
        const float wanted = t % 2 ? -(n - 1.2f + 0.25f * (float)t) : n - 0.9f + 0.25f * (float)t;
        EACH_LANE inverses[lane] = wanted * unit[lane];
        sum_quants(g, size, n, inverses, &s);
        keep_better(g, &s, best);
    }
    for (int t = 0; t < SETTLE; t++) {
        EACH_LANE inverses[lane] = inverse(best->scale[lane]);
        sum_quants(g, size, n, inverses, &s);
        keep_better(g, &s, best);
    }
}

/* The half d for which `values` are nearest to d · (-top … top - 1): the least Σ share (v - d round(v/d))² over 16 steps
   about max / -top. */
EDGEPACK_INLINE float best_step(const float *values, const float *shares, const float top) {
    float largest = 0.0f, steps[LANES], errors[LANES];
    EACH_LANE largest = fabsf(values[lane]) > fabsf(largest) ? values[lane] : largest;
    EACH_LANE {
        const float step = -largest / (top + 0.125f * (float)(8 - lane)), k = inverse(step);
        float error = 0.0f;
        for (int j = 0; j < LANES; j++) {
            const float gap = values[j] - step * clamped(rounded(values[j] * k), -top, top - 1.0f);
            error += shares[j] * gap * gap;
        }
        steps[lane] = step;
        errors[lane] = error;
    }
    int best = 8;
    EACH_LANE best = errors[lane] < errors[best] ? lane : best;
    return as_half(steps[best]);
}

/* A block's half and the integers of its 16 sub-blocks. */
typedef struct {
    float d, scale[LANES];
} steps;

EDGEPACK_INLINE float sum_at(const group *g, const int size, const float n, const steps *p, sums *s) {
    float inverses[LANES], errors[LANES], error = 0.0f;
    EACH_LANE inverses[lane] = inverse(p->d * p->scale[lane]);
    sum_quants(g, size, n, inverses, s);
    EACH_LANE errors[lane] = error_of(g, s, lane, p->d * p->scale[lane]);
    EACH_LANE error += errors[lane];
    return error;
}

EDGEPACK_INLINE void round_scales(const float *scales, const float top, steps *p) {
    const float k = inverse(p->d);
    EACH_LANE p->scale[lane] = clamped(rounded(scales[lane] * k), -top, top - 1.0f);
}

EDGEPACK_INLINE void refit_half(const sums *s, steps *p) {
    float dd = 0.0f, dx = 0.0f;
    EACH_LANE {
        dd += p->scale[lane] * p->scale[lane] * s->qq[lane];
        dx += p->scale[lane] * s->qx[lane];
    }
    if (dd > 0.0f) p->d = as_half(dx / dd);
}

EDGEPACK_INLINE void choose_steps(const group *g, const int size, const float n, const float top, const fit *lines,
                                  steps *best) {
    steps now;
    sums s;
    float inverses[LANES], scales[LANES], best_error = INFINITY;
    EACH_LANE inverses[lane] = inverse(lines->scale[lane]);
    sum_quants(g, size, n, inverses, &s);
    now.d = best_step(lines->scale, s.qq, top);
    round_scales(lines->scale, top, &now);
    *best = now;
    for (int t = 0;; t++) {
        const float error = sum_at(g, size, n, &now, &s);
        if (error < best_error) {
            best_error = error;
            *best = now;
        }
        if (t == REFITS) return;
        EACH_LANE scales[lane] = s.qx[lane] * inverse(s.qq[lane]);
        round_scales(scales, top, &now);
        refit_half(&s, &now);
    }
}

/* q + n of `count` weights, as bytes. */
EDGEPACK_INLINE void write_quants(const float *x, const int count, float scale, const float n, uint8_t *q) {
    const float k = inverse(scale);
    for (int i = 0; i < count; i++) q[i] = (uint8_t)(int)(clamped(rounded(x[i] * k), -n, n - 1.0f) + n);
}

EDGEPACK_INLINE void write_q3_k(const uint8_t *q, const steps *p, uint8_t *out) {
    uint8_t scales[16];
    for (int j = 0; j < 16; j++) scales[j] = (uint8_t)((int)p->scale[j] + 32);
    for (int i = 0; i < 32; i++) {
        uint8_t high = 0;
        for (int run = 0; run < 8; run++) high |= (uint8_t)((q[32 * run + i] >> 2) << run);
        out[i] = high;
    }
    for (int half = 0; half < 2; half++) {
        const uint8_t *from = q + 128 * half;
        for (int i = 0; i < 32; i++) {
            out[32 + 32 * half + i] = (uint8_t)((from[i] & 3) | (from[i + 32] & 3) << 2 | (from[i + 64] & 3) << 4 |
                                                (from[i + 96] & 3) << 6);
        }
    }
    for (int j = 0; j < 8; j++) out[96 + j] = (uint8_t)((scales[j] & 15) | (scales[j + 8] & 15) << 4);
    for (int j = 0; j < 4; j++) {
        out[104 + j] = (uint8_t)(scales[j] >> 4 | scales[j + 4] >> 4 << 2 | scales[j + 8] >> 4 << 4 |
                                 scales[j + 12] >> 4 << 6);
    }
    store_half(out + 108, p->d);
}

EDGEPACK_INLINE void write_q6_k(const uint8_t *q, const steps *p, uint8_t *out) {
    for (int half = 0; half < 2; half++) {
        const uint8_t *from = q + 128 * half;
        for (int i = 0; i < 64; i++) out[64 * half + i] = (uint8_t)((from[i] & 15) | (from[i + 64] & 15) << 4);
        for (int i = 0; i < 32; i++) {
            out[128 + 32 * half + i] =
                (uint8_t)(from[i] >> 4 | from[i + 32] >> 4 << 2 | from[i + 64] >> 4 << 4 | from[i + 96] >> 4 << 6);
        }
    }
    for (int j = 0; j < 16; j++) out[192 + j] = (uint8_t)(int8_t)(int)p->scale[j];
    store_half(out + 208, p->d);
}

/* Blocks of 256 weights with 16 scales: -top … top - 1 times a half. */
EDGEPACK_INLINE void encode_super(const matrix *m, const int bits, const float top, const int bytes, uint8_t *out) {
    const float n = (float)(1 << (bits - 1));
    group g;
    fit lines;
    steps chosen;
    uint8_t q[256];
    for (int64_t first = 0; first < m->blocks; first += LANES, out += bytes) {
        load_group(&g, m, first, 16, LANES);
        search(&g, 16, n, &lines);
        choose_steps(&g, 16, n, top, &lines, &chosen);
        for (int j = 0; j < 16; j++) {
            write_quants(m->rows + (first + j) * 16, 16, chosen.d * chosen.scale[j], n, q + 16 * j);
        }
        if (bits == 3) write_q3_k(q, &chosen, out);
        if (bits == 6) write_q6_k(q, &chosen, out);
    }
}

EDGEPACK_CLONES void edgepack_encode_q3_k(const float *rows, int64_t blocks, int64_t columns, const float *importance,
                                          uint8_t *out) {
    const matrix m = {rows, importance, columns, blocks * 16};
    encode_super(&m, 3, 32.0f, 110, out);
}

EDGEPACK_CLONES void edgepack_encode_q6_k(const float *rows, int64_t blocks, int64_t columns, const float *importance,
                                          uint8_t *out) {
    const matrix m = {rows, importance, columns, blocks * 16};
    encode_super(&m, 6, 128.0f, 210, out);
}

/* Blocks of 32 weights with a half for the scale. */
EDGEPACK_INLINE void encode_single(const matrix *m, const int bits, uint8_t *out) {
    const float n = (float)(1 << (bits - 1));
    const int high_bytes = bits == 5 ? 4 : 0, bytes = 2 + high_bytes + 16;
    group g;
    fit lines;
    uint8_t q[32];
    for (int64_t first = 0; first < m->blocks; first += LANES) {
        load_group(&g, m, first, 32, 1);
        search(&g, 32, n, &lines);
        for (int lane = 0; lane < LANES && first + lane < m->blocks; lane++) {
            uint8_t *block = out + (first + lane) * bytes;
            const float scale = as_half(lines.scale[lane]);
            store_half(block, scale);
            write_quants(m->rows + (first + lane) * 32, 32, scale, n, q);
            if (bits == 5) write_fifth_bits(q, block + 2);
            for (int i = 0; i < 16; i++) block[2 + high_bytes + i] = (uint8_t)((q[i] & 15) | (q[i + 16] & 15) << 4);
        }
    }
}

EDGEPACK_CLONES void edgepack_encode_q4_0(const float *rows, int64_t blocks, int64_t columns, const float *importance,
                                          uint8_t *out) {
    const matrix m = {rows, importance, columns, blocks};
    encode_single(&m, 4, out);
}

EDGEPACK_CLONES void edgepack_encode_q5_0(const float *rows, int64_t blocks, int64_t columns, const float *importance,
                                          uint8_t *out) {
    const matrix m = {rows, importance, columns, blocks};
    encode_single(&m, 5, out);
}

EDGEPACK_INLINE void sum_gaps(const group *g, const float *steps, const float *inverses, float *errors) {
    EACH_LANE {
        const float step = steps[lane], k = inverses[lane];
        float error = 0.0f;
        for (int i = 0; i < 32; i++) {
            const float x = g->x[i * LANES + lane];
            const float gap = x - step * clamped(rounded(x * k), -127.0f, 127.0f);
            error += g->w[i * LANES + lane] * gap * gap;
        }
        errors[lane] = error;
    }
}

/* The step of each lane, a half about the one that puts the largest weight on ±127, whose error is least. */
EDGEPACK_INLINE void search_eight_bits(const group *g, float *best) {
    float largest[LANES], steps[LANES], inverses[LANES], errors[LANES], best_error[LANES];
    EACH_LANE {
        float high = 0.0f;
        for (int i = 0; i < 32; i++) high = most(high, fabsf(g->x[i * LANES + lane]));
        largest[lane] = high;
        best_error[lane] = INFINITY;
        best[lane] = as_half(high / 127.0f);
    }
    for (int t = 0; t < TRIES_EIGHT_BITS; t++) {
        const float divisor = 127.0f + 0.25f * (float)((t + 1) / 2) * (t % 2 ? 1.0f : -1.0f);
        EACH_LANE steps[lane] = as_half(largest[lane] / divisor);
        EACH_LANE inverses[lane] = inverse(steps[lane]);
        sum_gaps(g, steps, inverses, errors);
        EACH_LANE {
            const int better = errors[lane] < best_error[lane];
            best[lane] = better ? steps[lane] : best[lane];
            best_error[lane] = better ? errors[lane] : best_error[lane];
        }
    }
}

EDGEPACK_CLONES void edgepack_encode_q8_0(const float *rows, int64_t blocks, int64_t columns, const float *importance,
                                          uint8_t *out) {
    const matrix m = {rows, importance, columns, blocks};
    group g;
    float chosen[LANES];
    for (int64_t first = 0; first < blocks; first += LANES) {
        load_group(&g, &m, first, 32, 1);
        search_eight_bits(&g, chosen);
        for (int lane = 0; lane < LANES && first + lane < blocks; lane++) {
            const float *x = rows + (first + lane) * 32, k = inverse(chosen[lane]);
            uint8_t *block = out + (first + lane) * 34;
            store_half(block, chosen[lane]);
            for (int i = 0; i < 32; i++) block[2 + i] = (uint8_t)(int8_t)(int)clamped(rounded(x[i] * k), -127.0f, 127.0f);
        }
    }
}
