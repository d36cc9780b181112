#include "wire_sweep.h"

#include <math.h>
#include <string.h>

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define INDEPENDENT _Pragma("GCC ivdep")
#define RESTRICT __restrict__
#else
#define INLINE static __forceinline
#define UNROLL
#define INDEPENDENT __pragma(loop(ivdep))
#define RESTRICT __restrict
#endif

enum { PANEL = 64, SUB = 32, OUTER = 128, INNER = 8, CHUNK = 128, MICRO = 4, LANES = 16, STATES = 256, SCALES = 121 };

static const float NEAREST = 12582912.0f; /* 1.5 · 2^23: added and taken away, leaves the nearest integer */
static const float UNREACHABLE = 1e30f;
static const float SMALLEST = 8.6736174e-19f; /* 2^-60: products of smaller numbers might not be exact */

/* What a sweep of one tile works on. */
typedef struct {
    const edgepack_wire_matrix *matrix;
    const int32_t *rows;
    int32_t slots, length, columns;
    float *errors;     /* [slots / PANEL][columns][PANEL], of 12 bits */
    float *base;       /* [OUTER][slots]: values with the errors of all earlier columns made good */
    float *work;       /* [SUB][slots] */
    float *scaled;     /* [slots]: values of a column in steps */
    float *step, *cost, *square, *wait, *real, *loss; /* [slots] each */
    float *factor;     /* [SUB][slots]: of the groups of a sub-block */
    float *shrink;     /* [SUB][slots]: square of the factor asked for over the factor */
    float *beyond;     /* [SUB][slots]: the greatest value over what its limit bears */
    uint32_t *from;    /* [states / 32][slots]: bit s % 32 says whether state s was entered from the upper half */
    int32_t *chosen;   /* [SUB][slots]: n · multiple */
    uint8_t lower[STATES], upper[STATES]; /* subset of the step into a state from either half */
} tile;

INLINE int32_t parity(int32_t bits)
{
    bits ^= bits >> 4;
    return (0x6996 >> (bits & 15)) & 1;
}

/* Twelve significant bits, ties to even, tiny numbers zero. */
INLINE float twelve_bits(float value)
{
    int32_t bits;
    memcpy(&bits, &value, 4);
    bits = (bits + 0x7ff + ((bits >> 12) & 1)) & ~0xfff;
    memcpy(&value, &bits, 4);
    return fabsf(value) < SMALLEST ? 0.0f : value;
}

/* target[c] += u[k][c] · errors[k] over k, for MICRO columns and `rows` slots. */
INLINE void micro(
    const float *RESTRICT errors, const float *RESTRICT u, int32_t count, float *RESTRICT target, int64_t stride,
    const int rows, const int fused)
{
    float sum[MICRO][PANEL];
    for (int c = 0; c < MICRO; c++)
        for (int r = 0; r < rows; r++)
            sum[c][r] = target[c * stride + r];
    for (int32_t k = 0; k < count; k++) {
        UNROLL
        for (int c = 0; c < MICRO; c++) {
            float factor = u[(int64_t)k * SUB + c];
            for (int r = 0; r < rows; r++)
                sum[c][r] = fused ? fmaf(factor, errors[k * PANEL + r], sum[c][r])
                                  : sum[c][r] + factor * errors[k * PANEL + r];
        }
    }
    for (int c = 0; c < MICRO; c++)
        for (int r = 0; r < rows; r++)
            target[c * stride + r] = sum[c][r];
}

/* -U[k][column], as packed: what earlier column k does to `column` and those behind it in its panel. */
INLINE const float *feedback_at(const tile *t, int32_t column, int32_t k)
{
    int64_t panel = column / SUB;
    return t->matrix->feedback + (panel * (panel + 1) / 2 * SUB + k) * SUB + column % SUB;
}

/* Make good the errors of columns first … stop - 1 in the columns `at` … at + width - 1 (from a sub-block's start or
   within one; a multiple of MICRO is written). */
INLINE void make_good(
    const tile *t, float *target, int32_t at, int32_t width, int32_t first, int32_t stop, const int rows,
    const int fused)
{
    int64_t columns = t->columns;
    for (int32_t panel = 0; panel < t->slots / PANEL; panel++)
        for (int32_t k = first; k < stop; k += CHUNK) {
            int32_t count = stop - k < CHUNK ? stop - k : CHUNK;
            const float *errors = t->errors + (panel * columns + k) * PANEL;
            for (int32_t c = 0; c < width; c += MICRO) {
                int32_t column = at + c;
                const float *u = feedback_at(t, column, k);
                for (int r = 0; r < PANEL; r += rows)
                    micro(errors + r, u, count, target + (int64_t)c * t->slots + panel * PANEL + r, t->slots, rows,
                          fused);
            }
        }
}

/* Weights of columns at … at + width - 1 into [width][slots]; nothing beyond the last column. */
INLINE void load(const tile *t, int32_t at, int32_t width)
{
    int32_t real = t->columns - at < width ? t->columns - at : width;
    for (int32_t slot = 0; slot < t->slots; slot += LANES) {
        const float *from[LANES];
        static const float nothing[OUTER] = {0};
        for (int l = 0; l < LANES; l++) {
            int32_t row = t->rows[slot + l];
            from[l] = row < 0 ? nothing : t->matrix->weights + (int64_t)row * t->columns + at;
        }
        for (int32_t c = 0; c < real; c++)
            for (int l = 0; l < LANES; l++)
                t->base[(int64_t)c * t->slots + slot + l] = from[l][c];
    }
    memset(t->base + (int64_t)real * t->slots, 0, sizeof(float) * (size_t)(width - real) * (size_t)t->slots);
}

/* What a column's integers are held to and what they cost. */
typedef struct {
    float multiple, most, level, rate, noise, inverse, slope, pull;
    const float *factor, *shrink, *logs, *normalisers;
    float *beyond;
} column_facts;

INLINE column_facts facts_of(const tile *t, int32_t column)
{
    const edgepack_wire_matrix *m = t->matrix;
    int32_t place = column % SUB / m->group;
    return (column_facts){
        (float)m->multiples[column], (float)m->limits[column], m->levels[column / m->group],
        m->rate_columns[column], m->rate_noise[column], 1.0f / m->diagonal[column], m->slope, m->pull,
        t->factor + (int64_t)place * t->slots, t->shrink + (int64_t)place * t->slots, m->logs, m->normalisers,
        t->beyond + (int64_t)place * t->slots};
}

/* How far values lie beyond what a limit bears: a step more than the limit, since a clamped value costs less than
   larger steps for its whole group. */
INLINE float over_limit(float size, float most, float before)
{
    float over = size / (most + 1.0f);
    return over > before ? over : before;
}

/* The nearest integer of class `subset` modulo 4 within ±most. */
INLINE float candidate(float value, float subset, float most)
{
    float within = value < -most ? -most : value > most ? most : value;
    float found = ((within - subset) * 0.25f + NEAREST - NEAREST) * 4.0f + subset;
    float nearer = found > 0.0f ? found - 4.0f : found + 4.0f;
    return fabsf(found) > most ? nearer : found;
}

/* Values in steps, whether they pass the limit, and what the candidates of the subsets cost, for LANES slots. */
INLINE void costs_of(
    const tile *t, const float *work, int32_t slot, const column_facts *f, float cost[4][LANES])
{
    const float a = 0.6f / 2 / 0.69314718f, b = 0.4f * 1.41421356f / 0.69314718f;
    float weight[LANES], quadratic[LANES], linear[LANES], norm[2][LANES];
    int32_t place[LANES];
    INDEPENDENT
    for (int l = 0; l < LANES; l++) {
        float factor = f->factor[slot + l], x = work[slot + l] / (t->step[slot + l] * factor * f->multiple);
        t->scaled[slot + l] = x;
        f->beyond[slot + l] = over_limit(fabsf(x), f->most, f->beyond[slot + l]);
        weight[l] = t->cost[slot + l] * factor * factor * f->level;
    }
    for (int l = 0; l < LANES; l++) {
        float square = t->square[slot + l] * f->rate * f->shrink[slot + l] + f->noise * t->wait[slot + l];
        square = square < 1e-12f ? 1e-12f : square;
        float inverse = 1.0f / sqrtf(square);
        quadratic[l] = f->slope * a * inverse * inverse;
        linear[l] = f->slope * b * inverse;
        int32_t bits, mantissa;
        memcpy(&bits, &square, 4);
        mantissa = bits & 0x7fffff;
        /* Thresholds: mantissas of 2^(1/8), 2^(3/8), 2^(5/8) and 2^(7/8). The scale is half a root of the square. */
        bits = ((bits >> 23) - 127) * 4 + (mantissa >= 759234) + (mantissa >= 2490071) + (mantissa >= 4548394)
               + (mantissa >= 6996167) + 40;
        place[l] = bits < 0 ? 0 : bits > SCALES - 1 ? SCALES - 1 : bits;
    }
    for (int l = 0; l < LANES; l++) {
        norm[0][l] = f->slope * f->normalisers[place[l]];
        norm[1][l] = f->slope * f->normalisers[SCALES + place[l]];
    }
    UNROLL
    for (int s = 0; s < 4; s++)
        for (int l = 0; l < LANES; l++) {
            float x = t->scaled[slot + l], n = candidate(x, (float)s, f->most), d = x - n, size = fabsf(n);
            cost[s][l] = d * d * weight[l] + (size * (size * quadratic[l] + linear[l]) + norm[s & 1][l]);
        }
    if (f->pull != 0.0f)
        for (int s = 0; s < 4; s++)
            for (int l = 0; l < LANES; l++) {
                float n = candidate(t->scaled[slot + l], (float)s, f->most);
                cost[s][l] += 2 * f->pull * f->logs[(int32_t)fabsf(n)];
            }
}

/* Sets the integers of a column's slots: their errors, what feeds on, and what is written. */
INLINE void settle(
    const tile *t, const float *work, int32_t slot, int32_t column, const column_facts *f, const float *n)
{
    float *errors = t->errors + ((int64_t)(slot / PANEL) * t->columns + column) * PANEL + slot % PANEL;
    int32_t *chosen = t->chosen + (int64_t)(column % SUB) * t->slots;
    INDEPENDENT
    for (int l = 0; l < LANES; l++) {
        float step = t->step[slot + l] * f->factor[slot + l] * f->multiple;
        float error = (work[slot + l] - n[l] * step) * f->inverse * t->real[slot + l];
        t->loss[slot + l] += error * error;
        errors[l] = twelve_bits(error);
        chosen[slot + l] = (int32_t)(n[l] * f->multiple);
    }
}

/* Any integers, or even ones only: no row depends on another. */
INLINE void free_column(const tile *t, const float *work, int32_t column)
{
    column_facts f = facts_of(t, column);
    for (int32_t slot = 0; slot < t->slots; slot += LANES) {
        float n[LANES], cost[4][LANES];
        if (t->matrix->states) {
            costs_of(t, work, slot, &f, cost);
            for (int l = 0; l < LANES; l++)
                n[l] = candidate(t->scaled[slot + l], cost[2][l] < cost[0][l] ? 2.0f : 0.0f, f.most);
        } else {
            INDEPENDENT
            for (int l = 0; l < LANES; l++) {
                float x = work[slot + l] / (t->step[slot + l] * f.factor[slot + l] * f.multiple), size = fabsf(x);
                f.beyond[slot + l] = over_limit(size, f.most, f.beyond[slot + l]);
                size -= f.pull / (size + 1.0f);
                size = size < 0.0f ? 0.0f : size;
                size = size > f.most ? f.most : size;
                n[l] = copysignf(size + NEAREST - NEAREST, x);
            }
        }
        settle(t, work, slot, column, &f, n);
    }
}

/* Viterbi's algorithm along a column, lanes side by side, then the survivors back. */
INLINE void path_column(const tile *t, const float *work, int32_t column, const int states)
{
    column_facts f = facts_of(t, column);
    float total[2][STATES][LANES], cost[4][LANES], best[LANES];
    int32_t state[LANES], start = column % states, half = states / 2;
    for (int s = 0; s < states; s++)
        for (int l = 0; l < LANES; l++)
            total[0][s][l] = s == start ? 0.0f : UNREACHABLE;
    for (int32_t i = 0; i < t->length; i++) {
        int32_t slot = i * LANES;
        float(*RESTRICT before)[LANES] = total[i & 1], (*RESTRICT after)[LANES] = total[~i & 1];
        costs_of(t, work, slot, &f, cost);
        for (int s = 0; s < 4; s++)
            for (int l = 0; l < LANES; l++)
                cost[s][l] *= t->real[slot + l];
        for (int first = 0; first < states; first += 32) {
            uint32_t from[LANES] = {0};
            for (int s = first; s < first + 32 && s < states; s++) {
                const float *low = cost[t->lower[s]], *up = cost[t->upper[s]];
                for (int l = 0; l < LANES; l++) {
                    float one = before[s >> 1][l] + low[l], two = before[(s >> 1) + half][l] + up[l];
                    after[s][l] = two < one ? two : one;
                    from[l] |= (uint32_t)(two < one) << (s & 31);
                }
            }
            memcpy(t->from + (int64_t)(first / 32) * t->slots + slot, from, sizeof from);
        }
    }
    for (int l = 0; l < LANES; l++) {
        state[l] = 0;
        best[l] = total[t->length & 1][0][l];
    }
    for (int s = 1; s < states; s++)
        for (int l = 0; l < LANES; l++) {
            float found = total[t->length & 1][s][l];
            state[l] = found < best[l] ? s : state[l];
            best[l] = found < best[l] ? found : best[l];
        }
    for (int32_t i = t->length - 1; i >= 0; i--) {
        int32_t slot = i * LANES;
        float n[LANES];
        for (int l = 0; l < LANES; l++) {
            uint32_t word = t->from[slot + l];
            for (int w = 1; w < states / 32; w++)
                word = state[l] >> 5 == w ? t->from[(int64_t)w * t->slots + slot + l] : word;
            int32_t origin = (state[l] >> 1) + ((word >> (state[l] & 31)) & 1 ? half : 0);
            int32_t subset = ((state[l] & 1) ^ parity(origin & t->matrix->index_mask)) * 2
                             + parity(origin & t->matrix->quantiser_mask);
            n[l] = candidate(t->scaled[slot + l], (float)subset, f.most);
            state[l] = origin;
        }
        settle(t, work, slot, column, &f, n);
    }
}

INLINE void one_column(const tile *t, int32_t column)
{
    const float *work = t->work + (int64_t)(column % SUB) * t->slots;
    if (t->matrix->states < 2)
        free_column(t, work, column);
    else if (t->matrix->states == 8)
        path_column(t, work, column, 8);
    else
        path_column(t, work, column, t->matrix->states);
}

/* The columns of a sub-block from their values in `base`. */
INLINE void sub_block(
    const tile *t, const float *base, int32_t start, int32_t width, const int rows, const int fused)
{
    memcpy(t->work, base, sizeof(float) * (size_t)SUB * (size_t)t->slots);
    memset(t->beyond, 0, sizeof(float) * (size_t)(width / t->matrix->group) * (size_t)t->slots);
    memset(t->loss, 0, sizeof(float) * (size_t)t->slots);
    for (int32_t inner = 0; inner < width; inner += INNER) {
        make_good(t, t->work + (int64_t)inner * t->slots, start + inner, INNER, start, start + inner, rows, fused);
        for (int32_t c = inner; c < inner + INNER && c < width; c++) {
            one_column(t, start + c);
            const float *u = feedback_at(t, start, start + c);
            for (int32_t k = c + 1; k < inner + INNER; k++)
                for (int32_t panel = 0; panel < t->slots / PANEL; panel++) {
                    const float *errors = t->errors + ((int64_t)panel * t->columns + start + c) * PANEL;
                    float *RESTRICT later = t->work + (int64_t)k * t->slots + panel * PANEL;
                    for (int r = 0; r < PANEL; r++)
                        later[r] = fused ? fmaf(u[k], errors[r], later[r]) : later[r] + u[k] * errors[r];
                }
        }
    }
}

/* The next factor of the ladder. */
static float next_factor(const edgepack_wire_matrix *m, float factor)
{
    float unit = 1.0f, most = (float)m->most_factor;
    while (2.0f * (float)m->rungs * unit <= factor)
        unit *= 2.0f;
    return factor + unit < most ? factor + unit : most;
}

/* Raises the first factor of each row whose values passed their limits; how many could be, and how many not. */
static int32_t raise_factors(const tile *t, int32_t width, int32_t *failed)
{
    int32_t raised = 0, groups = (width + t->matrix->group - 1) / t->matrix->group;
    *failed = 0;
    for (int32_t slot = 0; slot < t->slots; slot++) {
        int32_t place = 0;
        while (place < groups && !(t->beyond[(int64_t)place * t->slots + slot] > 1.0f))
            place++;
        if (place == groups || t->rows[slot] < 0)
            continue;
        int64_t at = (int64_t)place * t->slots + slot;
        float old = t->factor[at], wanted = old * t->beyond[at], most = (float)t->matrix->most_factor;
        if (old >= most) {
            (*failed)++;
            continue;
        }
        float factor = next_factor(t->matrix, old);
        while (factor < wanted && factor < most)
            factor = next_factor(t->matrix, factor);
        t->shrink[at] *= old / factor * (old / factor);
        t->factor[at] = factor;
        raised++;
    }
    return raised;
}

/* The factor of a group of a slot that costs least (the formula is in the header), from `base`'s values. */
static float best_factor(const tile *t, const float *base, int32_t slot, int32_t first, int32_t count, float asked)
{
    const edgepack_wire_matrix *m = t->matrix;
    float sizes[SUB], limits[SUB], needed = 0.0f, unit = t->step[slot] * asked;
    for (int32_t c = 0; c < count; c++) {
        sizes[c] = fabsf(base[(int64_t)c * t->slots + slot]) / (unit * (float)m->multiples[first + c]);
        limits[c] = (float)m->limits[first + c];
        float over = sizes[c] / limits[c];
        needed = over > needed ? over : needed;
    }
    if (!(needed > 1.0f))
        return asked;
    float best = asked, least = UNREACHABLE, all = m->rounding * (float)count;
    for (float factor = asked, before = 0.0f; factor != before; factor = next_factor(m, factor)) {
        float ratio = factor / asked;
        float cost = all * (ratio * ratio - 2.0f * (m->logs[(int32_t)factor - 1] - m->logs[(int32_t)asked - 1]));
        for (int32_t c = 0; c < count; c++) {
            float rest = sizes[c] - ratio * limits[c];
            cost += rest > 0.0f ? rest * rest : 0.0f;
        }
        if (cost < least) {
            least = cost;
            best = factor;
        }
        if (ratio >= needed)
            break;
        before = factor;
    }
    return best;
}

static void load_factors(const tile *t, const float *base, int32_t start, int32_t width)
{
    int32_t group = t->matrix->group, all = t->columns / group, first = start / group;
    for (int32_t place = 0; place < width / group; place++)
        for (int32_t slot = 0; slot < t->slots; slot++) {
            int64_t at = (int64_t)place * t->slots + slot;
            int32_t row = t->rows[slot];
            float asked = row < 0 ? 1.0f : (float)t->matrix->factors[(int64_t)row * all + first + place];
            t->factor[at] = asked;
            if (row >= 0)
                t->factor[at] = best_factor(
                    t, base + (int64_t)place * group * t->slots, slot, start + place * group, group, asked);
            t->shrink[at] = asked / t->factor[at] * (asked / t->factor[at]);
        }
}

static void store(const tile *t, int32_t start, int32_t width)
{
    int32_t group = t->matrix->group, all = t->columns / group, first = start / group;
    for (int32_t slot = 0; slot < t->slots; slot++) {
        int32_t row = t->rows[slot];
        if (row < 0)
            continue;
        int16_t *quants = t->matrix->quants + (int64_t)row * t->columns + start;
        for (int32_t c = 0; c < width; c++)
            quants[c] = (int16_t)t->chosen[(int64_t)c * t->slots + slot];
        for (int32_t place = 0; place < width / group; place++)
            t->matrix->factors[(int64_t)row * all + first + place] =
                (int32_t)t->factor[(int64_t)place * t->slots + slot];
        t->matrix->losses[row] += (double)t->loss[slot];
    }
}

static void load_rows(tile *t)
{
    const edgepack_wire_matrix *m = t->matrix;
    for (int32_t slot = 0; slot < t->slots; slot++) {
        int32_t row = t->rows[slot];
        t->real[slot] = row < 0 ? 0.0f : 1.0f;
        t->step[slot] = row < 0 ? 1.0f : m->steps[row];
        t->cost[slot] = row < 0 ? 1.0f : m->costs[row] * m->steps[row] * m->steps[row];
        t->square[slot] = row < 0 ? 1.0f : m->rate_rows[row];
        /* A row below the water level becomes zeros: so large are its errors. */
        t->wait[slot] = t->square[slot] < 0.264f ? t->square[slot] : 0.264f;
        if (row >= 0)
            m->losses[row] = 0.0;
    }
    for (int s = 0; s < m->states && m->states > 1; s++) {
        int32_t low = s >> 1, up = low + m->states / 2;
        t->lower[s] = (uint8_t)(((s & 1) ^ parity(low & m->index_mask)) * 2 + parity(low & m->quantiser_mask));
        t->upper[s] = (uint8_t)(((s & 1) ^ parity(up & m->index_mask)) * 2 + parity(up & m->quantiser_mask));
    }
}

INLINE int64_t sweep(tile *t, const int rows, const int fused)
{
    int64_t failures = 0;
    load_rows(t);
    for (int32_t outer = 0; outer < t->columns; outer += OUTER) {
        load(t, outer, OUTER);
        make_good(t, t->base, outer, (t->columns - outer < OUTER ? t->columns - outer + SUB - 1 : OUTER) / SUB * SUB, 0,
                  outer, rows, fused);
        for (int32_t start = outer; start < outer + OUTER && start < t->columns; start += SUB) {
            int32_t width = t->columns - start < SUB ? t->columns - start : SUB, failed, raised;
            float *base = t->base + (int64_t)(start - outer) * t->slots;
            make_good(t, base, start, SUB, outer, start, rows, fused);
            load_factors(t, base, start, width);
            do {
                sub_block(t, base, start, width, rows, fused);
                raised = raise_factors(t, width, &failed);
            } while (raised);
            failures += failed;
            store(t, start, width);
        }
    }
    return failures;
}

typedef int64_t (*variant_of)(tile *);

static int64_t sweep_plain(tile *t)
{
#if defined(__aarch64__)
    return sweep(t, 16, 1);
#else
    return sweep(t, 8, 0);
#endif
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx2,fma"))) static int64_t sweep_avx2(tile *t)
{
    return sweep(t, 16, 1);
}

__attribute__((target("arch=x86-64-v4"))) static int64_t sweep_avx512(tile *t)
{
    return sweep(t, 64, 1);
}

static const variant_of VARIANTS[] = {sweep_plain, sweep_avx2, sweep_avx512};

int32_t edgepack_wire_variants(void)
{
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return 1;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd")
                   && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
               ? 3 : 2;
}
#else
static const variant_of VARIANTS[] = {sweep_plain};

int32_t edgepack_wire_variants(void) { return 1; }
#endif

static int64_t words_of(int32_t states) { return states <= 32 ? 1 : states / 32; }

int64_t edgepack_wire_scratch(int32_t columns, int32_t length, int32_t states)
{
    int64_t slots = (int64_t)LANES * length;
    return slots * (columns + OUTER + 5 * SUB + 7 + words_of(states)) + 16;
}

int64_t edgepack_wire_sweep(
    const edgepack_wire_matrix *matrix, const int32_t *rows, int32_t length, float *scratch, int32_t variant)
{
    int32_t variants = edgepack_wire_variants();
    if (length < 1 || length % (PANEL / LANES) || matrix->columns < 1 || matrix->group < 1
        || SUB % matrix->group || matrix->columns % matrix->group || matrix->states < 0 || matrix->states > STATES
        || matrix->rungs < 1 || matrix->most_factor < 1 || matrix->most_factor > 32767
        || (matrix->states > 1 && matrix->states < 4) || (matrix->states & (matrix->states - 1)))
        return -1;
    tile t = {.matrix = matrix, .rows = rows, .slots = LANES * length, .length = length, .columns = matrix->columns};
    int64_t slots = t.slots;
    float *next = (float *)(((uintptr_t)scratch + 63) / 64 * 64);
    t.errors = next;
    t.base = next += slots * t.columns;
    t.work = next += slots * OUTER;
    t.factor = next += slots * SUB;
    t.shrink = next += slots * SUB;
    t.beyond = next += slots * SUB;
    t.chosen = (int32_t *)(next += slots * SUB);
    t.scaled = next += slots * SUB;
    t.step = next += slots;
    t.cost = next += slots;
    t.square = next += slots;
    t.wait = next += slots;
    t.real = next += slots;
    t.loss = next += slots;
    t.from = (uint32_t *)(next + slots);
    return VARIANTS[variant >= 0 && variant < variants ? variant : variants - 1](&t);
}
