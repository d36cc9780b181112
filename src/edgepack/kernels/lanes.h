/* Sub-blocks of weights side by side: weight i of 16 sub-blocks is one row of 16 floats, so that every loop over `lane`
   is one vector instruction or two. Shared by the encoders of ggml's types (encode_*.c). */
#ifndef EDGEPACK_LANES_H
#define EDGEPACK_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "abi.h"

#define LANES 16
#define EACH_LANE for (int lane = 0; lane < LANES; lane++)

/* Helpers take the instruction set of the function that they are inlined into. */
#if defined(__GNUC__)
#define EDGEPACK_INLINE static inline __attribute__((always_inline))
#else
#define EDGEPACK_INLINE static __forceinline
#endif

/* 1.5 · 2^23: a float below 2^22 in magnitude that is added to it loses its fraction, rounded to nearest even. */
#define ROUNDER 12582912.0f

EDGEPACK_INLINE float rounded(float value) { return (value + ROUNDER) - ROUNDER; }
EDGEPACK_INLINE float least(float a, float b) { return a < b ? a : b; }
EDGEPACK_INLINE float most(float a, float b) { return a > b ? a : b; }
EDGEPACK_INLINE float clamped(float value, float low, float high) { return least(most(value, low), high); }
/* 1 / value, and 0 for 0. */
EDGEPACK_INLINE float inverse(float value) { return value != 0.0f ? 1.0f / value : 0.0f; }

EDGEPACK_INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

EDGEPACK_INLINE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* IEEE binary16 of a float, rounded to nearest even; values too large become infinity (a caller refuses those). */
EDGEPACK_INLINE uint16_t half_of(float value) {
    const uint32_t bits = bits_of(value), sign = (bits >> 16) & 0x8000u, size = bits & 0x7fffffffu;
    if (size >= 0x47800000u) return (uint16_t)(sign | (size > 0x7f800000u ? 0x7e00u : 0x7c00u));
    if (size < 0x38800000u) { /* subnormal: the sum's last place is 2^-24 */
        return (uint16_t)(sign | (bits_of(float_of(size) + 0.5f) - 0x3f000000u));
    }
    return (uint16_t)(sign | ((size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13));
}

/* The float that a half keeps of a value below 65,520: without branches, for lanes. */
EDGEPACK_INLINE float as_half(float value) {
    const uint32_t bits = bits_of(value);
    const float kept = float_of((bits + 0xfffu + ((bits >> 13) & 1u)) & ~0x1fffu);
    return fabsf(value) < 6.103515625e-5f ? (value + 0.75f) - 0.75f : kept;
}

EDGEPACK_INLINE void store_half(uint8_t *out, float value) {
    const uint16_t half = half_of(value);
    out[0] = (uint8_t)(half & 255u);
    out[1] = (uint8_t)(half >> 8);
}

/* 16 sub-blocks of `size` weights (16 or 32) of a matrix whose sub-blocks follow one another, rows included.

   x, w: weight i of sub-block `lane`, and its share in the error, at [i * LANES + lane].
   sum_w, sum_x, sum_xx: sums of w, w x and w x² of each sub-block. */
typedef struct {
    float x[32 * LANES], w[32 * LANES];
    float sum_w[LANES], sum_x[LANES], sum_xx[LANES];
} group;

/* A matrix that is encoded: rows [.., columns], importance [columns] or NULL, `blocks` sub-blocks in all. */
typedef struct {
    const float *rows, *importance;
    int64_t columns, blocks;
} matrix;

/* Fill `g` with sub-blocks `first` and following; lanes past the end repeat the last sub-block.

   The share of a weight is importance · √(spread · mean square of its block + x²) where there is importance (llama.cpp's
   quantize_row_*_impl), else √(mean square of the sub-block) + |x| (its quantize_row_q4_K_ref). `unit` sub-blocks make a
   block. */
EDGEPACK_INLINE void load_group(group *g, const matrix *m, int64_t first, const int size, const int unit) {
    float square[LANES], spread[LANES];
    for (int lane = 0; lane < LANES; lane++) {
        const int64_t block = first + lane < m->blocks ? first + lane : m->blocks - 1;
        const float *from = m->rows + block * size;
        for (int i = 0; i < size; i++) g->x[i * LANES + lane] = from[i];
        if (m->importance) {
            const float *share = m->importance + (block * size) % m->columns;
            for (int i = 0; i < size; i++) g->w[i * LANES + lane] = share[i];
        }
    }
    EACH_LANE {
        float sum = 0.0f;
        for (int i = 0; i < size; i++) sum += g->x[i * LANES + lane] * g->x[i * LANES + lane];
        square[lane] = sum / (float)size;
    }
    for (int start = 0; start < LANES; start += unit) {
        float sum = 0.0f;
        for (int lane = start; lane < start + unit; lane++) sum += square[lane];
        for (int lane = start; lane < start + unit; lane++) spread[lane] = 2.0f * sum / (float)unit;
    }
    EACH_LANE {
        const float mean = sqrtf(square[lane]);
        float sum_w = 0.0f, sum_x = 0.0f, sum_xx = 0.0f;
        for (int i = 0; i < size; i++) {
            const float x = g->x[i * LANES + lane];
            const float w = m->importance ? g->w[i * LANES + lane] * sqrtf(spread[lane] + x * x) : mean + fabsf(x);
            g->w[i * LANES + lane] = w;
            sum_w += w;
            sum_x += w * x;
            sum_xx += w * x * x;
        }
        g->sum_w[lane] = sum_w;
        g->sum_x[lane] = sum_x;
        g->sum_xx[lane] = sum_xx;
    }
}

/* The fifth bits of 32 integers as the four bytes of block_q5_0 and block_q5_1. */
EDGEPACK_INLINE void write_fifth_bits(const uint8_t *q, uint8_t *out) {
    for (int byte = 0; byte < 4; byte++) {
        uint8_t bits = 0;
        for (int i = 0; i < 8; i++) bits |= (uint8_t)(q[8 * byte + i] >> 4 << i);
        out[byte] = bits;
    }
}

/* cffi */
/* cffi */

#endif
