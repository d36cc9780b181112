/* x ≈ scale · q + floor, q = 0 … highest: the searches of llama.cpp's make_qkx2_quants and make_qkx3_quants, 16 sub-blocks
   at a time, with the error of a try in closed form:

       E(scale, floor) = Σwx² - 2 scale Σwqx - 2 floor Σwx + scale² Σwq² + 2 scale floor Σwq + floor² Σw

   Tries round by (highest + r) / (max - min), r = -1.1 … 1.1, above a floor of min and a little less or more; the best is
   settled by rounding anew with its own least-squares scale and floor. Then the scales and floors of a block are themselves rounded (6 or 4 bits times a half each), and both halves
   and the integers are fitted again to the integers of the weights: what ggml leaves undone, and what pays for fewer
   tries. Every step keeps the best that was seen. */
#include "encode_affine.h"

#include "lanes.h"

typedef struct {
    float scale[LANES], floor[LANES], error[LANES];
} fit;

/* Σ w q, Σ w q², Σ w q x of each lane. */
typedef struct {
    float q[LANES], qq[LANES], qx[LANES];
} sums;

/* Measured on a real model's matrices beside ggml's 16 to 37 tries: the error is 2 to 6 % below ggml's. */
#define TRIES_PLAIN 9
#define TRIES_WEIGHTED 12
#define TRIES_TWO_BITS 18
#define SETTLE 2
#define REFITS 2

EDGEPACK_INLINE void sum_quants(const group *g, const int size, const float highest, const float *inverses,
                                const float *floors, sums *s) {
    EACH_LANE {
        const float k = inverses[lane], floor = floors[lane];
        float q_sum = 0.0f, qq_sum = 0.0f, qx_sum = 0.0f;
        for (int i = 0; i < size; i++) {
            const float x = g->x[i * LANES + lane];
            const float q = clamped(rounded((x - floor) * k), 0.0f, highest);
            const float wq = g->w[i * LANES + lane] * q;
            q_sum += wq;
            qq_sum += wq * q;
            qx_sum += wq * x;
        }
        s->q[lane] = q_sum;
        s->qq[lane] = qq_sum;
        s->qx[lane] = qx_sum;
    }
}

EDGEPACK_INLINE float error_of(const group *g, const sums *s, int lane, float scale, float floor) {
    const float cross = scale * s->qx[lane] + floor * g->sum_x[lane];
    return g->sum_xx[lane] - 2.0f * cross + scale * (scale * s->qq[lane] + 2.0f * floor * s->q[lane]) +
           floor * floor * g->sum_w[lane];
}

/* The scale and floor of least error for the integers behind `s`, the floor at most 0 where it is stored as such. */
EDGEPACK_INLINE void best_line(const group *g, const sums *s, int lane, const int capped, float *scale, float *floor) {
    const float w = g->sum_w[lane], x = g->sum_x[lane], q = s->q[lane], qq = s->qq[lane], qx = s->qx[lane];
    const float determinant = w * qq - q * q, k = inverse(determinant);
    const float a = (w * qx - x * q) * k, b = (qq * x - q * qx) * k;
    const int refused = capped && b > 0.0f;
    *scale = refused ? qx * inverse(qq) : a;
    *floor = refused ? 0.0f : b;
}

/* Take the least-squares line of `s` where it is better than what `best` has. */
EDGEPACK_INLINE void keep_better(const group *g, const sums *s, const int capped, fit *best) {
    EACH_LANE {
        float scale, floor;
        best_line(g, s, lane, capped, &scale, &floor);
        const float error = error_of(g, s, lane, scale, floor);
        const int better = error < best->error[lane] && scale > 0.0f;
        best->scale[lane] = better ? scale : best->scale[lane];
        best->floor[lane] = better ? floor : best->floor[lane];
        best->error[lane] = better ? error : best->error[lane];
    }
}

EDGEPACK_INLINE void search(const group *g, const int size, const float highest, const int capped, const int tries,
                            fit *best) {
    float low[LANES], range[LANES], inverses[LANES], floors[LANES];
    sums s;
    EACH_LANE {
        float least_x = capped ? 0.0f : g->x[lane], most_x = g->x[lane];
        for (int i = 0; i < size; i++) {
            least_x = least(least_x, g->x[i * LANES + lane]);
            most_x = most(most_x, g->x[i * LANES + lane]);
        }
        low[lane] = least_x;
        range[lane] = most_x - least_x;
        best->floor[lane] = least_x;
        best->scale[lane] = range[lane] / highest;
        inverses[lane] = inverse(best->scale[lane]);
    }
    sum_quants(g, size, highest, inverses, low, &s);
    EACH_LANE best->error[lane] = error_of(g, &s, lane, best->scale[lane], low[lane]);
    keep_better(g, &s, capped, best);
    for (int t = 0; t < tries; t++) {
        const float wanted = highest + (2.2f * (float)t / (float)(tries - 1) - 1.1f);
        const float shift = 0.4f / highest * (float)(t % 3 - 1);
        EACH_LANE {
            const float floor = low[lane] + shift * range[lane];
            inverses[lane] = wanted * inverse(range[lane]);
            floors[lane] = capped ? least(floor, 0.0f) : floor;
        }
        sum_quants(g, size, highest, inverses, floors, &s);
        keep_better(g, &s, capped, best);
    }
    for (int t = 0; t < SETTLE; t++) {
        EACH_LANE inverses[lane] = inverse(best->scale[lane]);
        sum_quants(g, size, highest, inverses, best->floor, &s);
        keep_better(g, &s, capped, best);
    }
}

/* The step d, a half, for which `values` (not negative) are nearest to d · (0 … top): the least Σ share (v - d round(v/d))²
   over 16 steps from max / (top + 1) on. */
EDGEPACK_INLINE float best_step(const float *values, const float *shares, const int count, const float top) {
    float highest = 0.0f, steps[LANES], errors[LANES];
    for (int j = 0; j < count; j++) highest = most(highest, values[j]);
    EACH_LANE {
        const float step = highest / (top + 0.125f * (8 - lane)), k = inverse(step);
        float error = 0.0f;
        for (int j = 0; j < count; j++) {
            const float gap = values[j] - step * least(rounded(values[j] * k), top);
            error += shares[j] * gap * gap;
        }
        steps[lane] = step;
        errors[lane] = error;
    }
    int best = 8;
    EACH_LANE best = errors[lane] < errors[best] ? lane : best;
    return as_half(steps[best]);
}

/* A block's two halves and the integers of its sub-blocks (as floats). */
typedef struct {
    float d[LANES], dmin[LANES], scale[LANES], floor[LANES];
} steps;

/* Integers nearest to the lines of `wanted`: the floor first, then the scale that fits that floor best. */
EDGEPACK_INLINE void round_lines(const sums *s, const fit *wanted, const float top, steps *p) {
    EACH_LANE {
        const float m = clamped(rounded(-wanted->floor[lane] * inverse(p->dmin[lane])), 0.0f, top);
        const float floor = -p->dmin[lane] * m;
        const float scale = (s->qx[lane] - floor * s->q[lane]) * inverse(s->qq[lane]);
        p->floor[lane] = m;
        p->scale[lane] = clamped(rounded(scale * inverse(p->d[lane])), 0.0f, top);
    }
}

/* Both halves of each block by least squares, its integers and those of its weights given. */
EDGEPACK_INLINE void refit_halves(const group *g, const sums *s, const int unit, steps *p) {
    for (int start = 0; start < LANES; start += unit) {
        float dd = 0.0f, dm = 0.0f, mm = 0.0f, dx = 0.0f, mx = 0.0f;
        for (int lane = start; lane < start + unit; lane++) {
            dd += p->scale[lane] * p->scale[lane] * s->qq[lane];
            dm += p->scale[lane] * p->floor[lane] * s->q[lane];
            mm += p->floor[lane] * p->floor[lane] * g->sum_w[lane];
            dx += p->scale[lane] * s->qx[lane];
            mx += p->floor[lane] * g->sum_x[lane];
        }
        const float k = inverse(dd * mm - dm * dm);
        float d = (dx * mm - dm * mx) * k, dmin = (dm * dx - dd * mx) * k;
        if (!(dmin > 0.0f)) {
            dmin = 0.0f;
            d = dx * inverse(dd);
        }
        if (!(d > 0.0f)) continue;
        d = as_half(d);
        dmin = as_half(dmin);
        for (int lane = start; lane < start + unit; lane++) {
            p->d[lane] = d;
            p->dmin[lane] = dmin;
        }
    }
}

EDGEPACK_INLINE void sum_at(const group *g, const int size, const float highest, const steps *p, sums *s, float *error) {
    float inverses[LANES], floors[LANES];
    EACH_LANE {
        inverses[lane] = inverse(p->d[lane] * p->scale[lane]);
        floors[lane] = -p->dmin[lane] * p->floor[lane];
    }
    sum_quants(g, size, highest, inverses, floors, s);
    EACH_LANE error[lane] = error_of(g, s, lane, p->d[lane] * p->scale[lane], floors[lane]);
}

/* Copy the blocks of `now` whose error is less than what `best` has. */
EDGEPACK_INLINE void keep_blocks(const steps *now, const float *error, const int unit, steps *best, float *best_error) {
    for (int start = 0; start < LANES; start += unit) {
        float sum = 0.0f;
        for (int lane = start; lane < start + unit; lane++) sum += error[lane];
        if (!(sum < best_error[start])) continue;
        best_error[start] = sum;
        for (int lane = start; lane < start + unit; lane++) {
            best->d[lane] = now->d[lane];
            best->dmin[lane] = now->dmin[lane];
            best->scale[lane] = now->scale[lane];
            best->floor[lane] = now->floor[lane];
        }
    }
}

EDGEPACK_INLINE void choose_steps(const group *g, const int size, const float highest, const int unit, const float top,
                                  const fit *lines, steps *best) {
    steps now;
    sums s;
    fit wanted = *lines;
    float error[LANES], best_error[LANES], inverses[LANES], depth[LANES];
    EACH_LANE {
        inverses[lane] = inverse(lines->scale[lane]);
        depth[lane] = -lines->floor[lane];
        best_error[lane] = INFINITY;
    }
    sum_quants(g, size, highest, inverses, lines->floor, &s);
    for (int start = 0; start < LANES; start += unit) {
        const float d = best_step(lines->scale + start, s.qq + start, unit, top);
        const float dmin = best_step(depth + start, g->sum_w + start, unit, top);
        for (int lane = start; lane < start + unit; lane++) now.d[lane] = d, now.dmin[lane] = dmin;
    }
    EACH_LANE {
        now.scale[lane] = clamped(rounded(lines->scale[lane] * inverse(now.d[lane])), 0.0f, top);
        now.floor[lane] = clamped(rounded(depth[lane] * inverse(now.dmin[lane])), 0.0f, top);
    }
    *best = now;
    for (int t = 0;; t++) {
        sum_at(g, size, highest, &now, &s, error);
        keep_blocks(&now, error, unit, best, best_error);
        if (t == REFITS) return;
        EACH_LANE best_line(g, &s, lane, 1, &wanted.scale[lane], &wanted.floor[lane]);
        round_lines(&s, &wanted, top, &now);
        refit_halves(g, &s, unit, &now);
    }
}

/* Integers of `count` weights, as bytes. */
EDGEPACK_INLINE void write_quants(const float *x, const int count, float scale, float floor, float highest, uint8_t *q) {
    const float k = inverse(scale);
    for (int i = 0; i < count; i++) q[i] = (uint8_t)(int)clamped(rounded((x[i] - floor) * k), 0.0f, highest);
}

/* d, dmin, then the 6-bit pairs of block_q4_K and block_q5_K. */
EDGEPACK_INLINE void write_six_bit(const steps *p, int start, uint8_t *out) {
    uint8_t s[8], m[8];
    for (int j = 0; j < 8; j++) {
        s[j] = (uint8_t)(int)p->scale[start + j];
        m[j] = (uint8_t)(int)p->floor[start + j];
    }
    store_half(out, p->d[start]);
    store_half(out + 2, p->dmin[start]);
    for (int j = 0; j < 4; j++) {
        out[4 + j] = (uint8_t)(s[j] | (s[j + 4] >> 4) << 6);
        out[8 + j] = (uint8_t)(m[j] | (m[j + 4] >> 4) << 6);
        out[12 + j] = (uint8_t)((s[j + 4] & 15) | (m[j + 4] & 15) << 4);
    }
}

EDGEPACK_INLINE void write_q4_k(const uint8_t *q, const steps *p, int start, uint8_t *out) {
    write_six_bit(p, start, out);
    for (int run = 0; run < 4; run++) {
        for (int i = 0; i < 32; i++) out[16 + 32 * run + i] = (uint8_t)(q[64 * run + i] | q[64 * run + 32 + i] << 4);
    }
}

EDGEPACK_INLINE void write_q5_k(const uint8_t *q, const steps *p, int start, uint8_t *out) {
    write_six_bit(p, start, out);
    for (int i = 0; i < 32; i++) {
        uint8_t high = 0;
        for (int run = 0; run < 8; run++) high |= (uint8_t)((q[32 * run + i] >> 4) << run);
        out[16 + i] = high;
    }
    for (int run = 0; run < 4; run++) {
        for (int i = 0; i < 32; i++) {
            out[48 + 32 * run + i] = (uint8_t)((q[64 * run + i] & 15) | (q[64 * run + 32 + i] & 15) << 4);
        }
    }
}

EDGEPACK_INLINE void write_q2_k(const uint8_t *q, const steps *p, int start, uint8_t *out) {
    for (int j = 0; j < 16; j++) out[j] = (uint8_t)((int)p->scale[start + j] | (int)p->floor[start + j] << 4);
    for (int half = 0; half < 2; half++) {
        const uint8_t *from = q + 128 * half;
        for (int i = 0; i < 32; i++) {
            out[16 + 32 * half + i] = (uint8_t)(from[i] | from[i + 32] << 2 | from[i + 64] << 4 | from[i + 96] << 6);
        }
    }
    store_half(out + 80, p->d[start]);
    store_half(out + 82, p->dmin[start]);
}

/* Blocks of 256 weights: sub-blocks of `size`, `unit` of them a block, integers up to `top` for scale and floor. */
EDGEPACK_INLINE void encode_super(const matrix *m, const int size, const int bits, const float top, const int bytes,
                                  uint8_t *out) {
    const int unit = 256 / size;
    const float highest = (float)((1 << bits) - 1);
    group g;
    fit lines;
    steps chosen;
    uint8_t q[256];
    for (int64_t first = 0; first < m->blocks; first += LANES) {
        load_group(&g, m, first, size, unit);
        search(&g, size, highest, 1, bits == 2 ? TRIES_TWO_BITS : m->importance ? TRIES_WEIGHTED : TRIES_PLAIN, &lines);
        choose_steps(&g, size, highest, unit, top, &lines, &chosen);
        for (int start = 0; start < LANES && first + start < m->blocks; start += unit) {
            for (int j = 0; j < unit; j++) {
                const int lane = start + j;
                write_quants(m->rows + (first + lane) * size, size, chosen.d[lane] * chosen.scale[lane],
                             -chosen.dmin[lane] * chosen.floor[lane], highest, q + j * size);
            }
            uint8_t *block = out + (first + start) / unit * bytes;
            if (bits == 5) write_q5_k(q, &chosen, start, block);
            if (bits == 4) write_q4_k(q, &chosen, start, block);
            if (bits == 2) write_q2_k(q, &chosen, start, block);
        }
    }
}

EDGEPACK_CLONES void edgepack_encode_q2_k(const float *rows, int64_t blocks, int64_t columns, const float *importance,
                                          uint8_t *out) {
    const matrix m = {rows, importance, columns, blocks * 16};
    encode_super(&m, 16, 2, 15.0f, 84, out);
}

EDGEPACK_CLONES void edgepack_encode_q4_k(const float *rows, int64_t blocks, int64_t columns, const float *importance,
                                          uint8_t *out) {
    const matrix m = {rows, importance, columns, blocks * 8};
    encode_super(&m, 32, 4, 63.0f, 144, out);
}

EDGEPACK_CLONES void edgepack_encode_q5_k(const float *rows, int64_t blocks, int64_t columns, const float *importance,
                                          uint8_t *out) {
    const matrix m = {rows, importance, columns, blocks * 8};
    encode_super(&m, 32, 5, 63.0f, 176, out);
}

/* Blocks of 32 weights with a half each for scale and floor, which may have any sign. */
EDGEPACK_INLINE void encode_single(const matrix *m, const int bits, uint8_t *out) {
    const float highest = (float)((1 << bits) - 1);
    const int high_bytes = bits == 5 ? 4 : 0, bytes = 4 + high_bytes + 16;
    group g;
    fit lines;
    uint8_t q[32];
    for (int64_t first = 0; first < m->blocks; first += LANES) {
        load_group(&g, m, first, 32, 1);
        search(&g, 32, highest, 0, m->importance ? TRIES_WEIGHTED : TRIES_PLAIN, &lines);
        for (int lane = 0; lane < LANES && first + lane < m->blocks; lane++) {
            uint8_t *block = out + (first + lane) * bytes;
            const float scale = as_half(lines.scale[lane]), floor = as_half(lines.floor[lane]);
            store_half(block, scale);
            store_half(block + 2, floor);
            write_quants(m->rows + (first + lane) * 32, 32, scale, floor, highest, q);
            if (bits == 5) write_fifth_bits(q, block + 4);
            for (int i = 0; i < 16; i++) block[4 + high_bytes + i] = (uint8_t)((q[i] & 15) | (q[i + 16] & 15) << 4);
        }
    }
}

EDGEPACK_CLONES void edgepack_encode_q4_1(const float *rows, int64_t blocks, int64_t columns, const float *importance,
                                          uint8_t *out) {
    const matrix m = {rows, importance, columns, blocks};
    encode_single(&m, 4, out);
}

EDGEPACK_CLONES void edgepack_encode_q5_1(const float *rows, int64_t blocks, int64_t columns, const float *importance,
                                          uint8_t *out) {
    const matrix m = {rows, importance, columns, blocks};
    encode_single(&m, 5, out);
}
