/* x ≈ scale · v, v one of ggml's kvalues_iq4nl: the search of its quantize_row_iq4_nl_impl, 16 sub-blocks of 32 at a time.

   The least error of given levels is Σwx² - (Σwvx)² / Σwv². */
#include "encode_table.h"

#include "lanes.h"
#include "uneven_levels.h"

#define SIZE 32
#define TRIES 8
#define SETTLE 2
#define REFITS 1

EDGEPACK_INLINE int nearest_index(float value) {
    const float twice = value + value;
    int index = 0;
#define STEP(middle, gap) index += twice >= middle##.0f;
    EACH_STEP(STEP)
#undef STEP
    return index;
}

typedef struct {
    float scale[LANES], error[LANES];
} fit;

/* Σ w v², Σ w v x of each lane. */
typedef struct {
    float vv[LANES], vx[LANES];
} sums;

EDGEPACK_INLINE void sum_levels(const group *g, const float *inverses, sums *s) {
    EACH_LANE {
        const float k = inverses[lane];
        float vv_sum = 0.0f, vx_sum = 0.0f;
        for (int i = 0; i < SIZE; i++) {
            const float x = g->x[i * LANES + lane];
            const float v = nearest_level(x * k);
            const float wv = g->w[i * LANES + lane] * v;
            vv_sum += wv * v;
            vx_sum += wv * x;
        }
        s->vv[lane] = vv_sum;
        s->vx[lane] = vx_sum;
    }
}

EDGEPACK_INLINE float error_of(const group *g, const sums *s, int lane, float scale) {
    return g->sum_xx[lane] - scale * (2.0f * s->vx[lane] - scale * s->vv[lane]);
}

EDGEPACK_INLINE void keep_better(const group *g, const sums *s, fit *best) {
    EACH_LANE {
        const float scale = s->vx[lane] * inverse(s->vv[lane]);
        const float error = error_of(g, s, lane, scale);
        const int better = error < best->error[lane];
        best->scale[lane] = better ? scale : best->scale[lane];
        best->error[lane] = better ? error : best->error[lane];
    }
}

EDGEPACK_INLINE void search(const group *g, fit *best) {
    float unit[LANES], inverses[LANES];
    sums s;
    EACH_LANE {
        float low = 0.0f, high = 0.0f;
        for (int i = 0; i < SIZE; i++) {
            low = least(low, g->x[i * LANES + lane]);
            high = most(high, g->x[i * LANES + lane]);
        }
        const float largest = high > -low ? high : low;
        unit[lane] = inverse(largest);
        inverses[lane] = LOWEST * unit[lane];
        best->scale[lane] = largest / LOWEST;
    }
    sum_levels(g, inverses, &s);
    EACH_LANE best->error[lane] = error_of(g, &s, lane, best->scale[lane]);
    keep_better(g, &s, best);
    for (int t = 0; t < TRIES; t++) {
        /* The largest weight on the negative end, then on the positive one, which is 113. */
        const float wanted = t % 2 ? 104.0f + 2.5f * (float)t : -118.0f - 3.0f * (float)t;
        EACH_LANE inverses[lane] = wanted * unit[lane];
        sum_levels(g, inverses, &s);
        keep_better(g, &s, best);
    }
    for (int t = 0; t < SETTLE; t++) {
        EACH_LANE inverses[lane] = inverse(best->scale[lane]);
        sum_levels(g, inverses, &s);
        keep_better(g, &s, best);
    }
}

/* The half of each block and the integers, -32 … 31, of its 8 sub-blocks. */
typedef struct {
    float d[LANES], scale[LANES];
} steps;

#define UNIT 8

/* The half d for which `values` are nearest to d · (-32 … 31), as in encode_signed.c. */
EDGEPACK_INLINE float best_step(const float *values, const float *shares) {
    float largest = 0.0f, candidates[LANES], errors[LANES];
    for (int j = 0; j < UNIT; j++) largest = fabsf(values[j]) > fabsf(largest) ? values[j] : largest;
    EACH_LANE {
        const float step = -largest / (32.0f + 0.125f * (float)(8 - lane)), k = inverse(step);
        float error = 0.0f;
        for (int j = 0; j < UNIT; j++) {
            const float gap = values[j] - step * clamped(rounded(values[j] * k), -32.0f, 31.0f);
            error += shares[j] * gap * gap;
        }
        candidates[lane] = step;
        errors[lane] = error;
    }
    int best = 8;
    EACH_LANE best = errors[lane] < errors[best] ? lane : best;
    return as_half(candidates[best]);
}

EDGEPACK_INLINE void round_scales(const float *scales, steps *p) {
    EACH_LANE p->scale[lane] = clamped(rounded(scales[lane] * inverse(p->d[lane])), -32.0f, 31.0f);
}

EDGEPACK_INLINE void refit_halves(const sums *s, steps *p) {
    for (int start = 0; start < LANES; start += UNIT) {
        float dd = 0.0f, dx = 0.0f;
        for (int lane = start; lane < start + UNIT; lane++) {
            dd += p->scale[lane] * p->scale[lane] * s->vv[lane];
            dx += p->scale[lane] * s->vx[lane];
        }
        for (int lane = start; lane < start + UNIT; lane++) p->d[lane] = dd > 0.0f ? as_half(dx / dd) : p->d[lane];
    }
}

/* Copy the blocks of `now` whose error is less than what `best` has. */
EDGEPACK_INLINE void keep_blocks(const steps *now, const float *error, steps *best, float *best_error) {
    for (int start = 0; start < LANES; start += UNIT) {
        float sum = 0.0f;
        for (int lane = start; lane < start + UNIT; lane++) sum += error[lane];
        if (!(sum < best_error[start])) continue;
        best_error[start] = sum;
        for (int lane = start; lane < start + UNIT; lane++) {
            best->d[lane] = now->d[lane];
            best->scale[lane] = now->scale[lane];
        }
    }
}

EDGEPACK_INLINE void choose_steps(const group *g, const fit *lines, steps *best) {
    steps now;
    sums s;
    float inverses[LANES], scales[LANES], error[LANES], best_error[LANES];
    EACH_LANE {
        inverses[lane] = inverse(lines->scale[lane]);
        best_error[lane] = INFINITY;
    }
    sum_levels(g, inverses, &s);
    for (int start = 0; start < LANES; start += UNIT) {
        const float d = best_step(lines->scale + start, s.vv + start);
        for (int lane = start; lane < start + UNIT; lane++) now.d[lane] = d;
    }
    round_scales(lines->scale, &now);
    *best = now;
    for (int t = 0;; t++) {
        EACH_LANE inverses[lane] = inverse(now.d[lane] * now.scale[lane]);
        sum_levels(g, inverses, &s);
        EACH_LANE error[lane] = error_of(g, &s, lane, now.d[lane] * now.scale[lane]);
        keep_blocks(&now, error, best, best_error);
        if (t == REFITS) return;
        EACH_LANE scales[lane] = s.vx[lane] * inverse(s.vv[lane]);
        round_scales(scales, &now);
        refit_halves(&s, &now);
    }
}

/* 32 weights as 16 bytes: weight i in the low half of byte i, weight i + 16 in the high one. */
EDGEPACK_INLINE void write_levels(const float *x, float scale, uint8_t *out) {
    const float k = inverse(scale);
    for (int i = 0; i < 16; i++) out[i] = (uint8_t)(nearest_index(x[i] * k) | nearest_index(x[i + 16] * k) << 4);
}

EDGEPACK_CLONES void edgepack_encode_iq4_nl(const float *rows, int64_t blocks, int64_t columns, const float *importance,
                                            uint8_t *out) {
    const matrix m = {rows, importance, columns, blocks};
    group g;
    fit lines;
    for (int64_t first = 0; first < blocks; first += LANES) {
        load_group(&g, &m, first, SIZE, 1);
        search(&g, &lines);
        for (int lane = 0; lane < LANES && first + lane < blocks; lane++) {
            uint8_t *block = out + (first + lane) * 18;
            const float scale = as_half(lines.scale[lane]);
            store_half(block, scale);
            write_levels(rows + (first + lane) * SIZE, scale, block + 2);
        }
    }
}

EDGEPACK_INLINE void write_iq4_xs(const float *x, const steps *p, int start, uint8_t *out) {
    store_half(out, p->d[start]);
    memset(out + 2, 0, 6);
    for (int j = 0; j < UNIT; j++) {
        const int scale = (int)p->scale[start + j] + 32;
        out[2 + j / 4] |= (uint8_t)(scale >> 4 << (2 * (j % 4)));
        out[4 + j / 2] |= (uint8_t)((scale & 15) << (4 * (j % 2)));
        write_levels(x + j * SIZE, p->d[start] * p->scale[start + j], out + 8 + 16 * j);
    }
}

EDGEPACK_CLONES void edgepack_encode_iq4_xs(const float *rows, int64_t blocks, int64_t columns, const float *importance,
                                            uint8_t *out) {
    const matrix m = {rows, importance, columns, blocks * UNIT};
    group g;
    fit lines;
    steps chosen;
    for (int64_t first = 0; first < m.blocks; first += LANES) {
        load_group(&g, &m, first, SIZE, UNIT);
        search(&g, &lines);
        choose_steps(&g, &lines, &chosen);
        for (int start = 0; start < LANES && first + start < m.blocks; start += UNIT) {
            write_iq4_xs(rows + (first + start) * SIZE, &chosen, start, out + (first + start) / UNIT * 136);
        }
    }
}
