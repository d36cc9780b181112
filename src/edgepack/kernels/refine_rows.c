/* 16 rows side by side. With e = w - v of a row, what is made small is e H eᵀ, group of columns by group of columns:

   1. *Feedback* (GPTQ, arXiv 2210.17323): errors of earlier groups are made good by this one, x = w - Σ e_i U[i, ·], and an
      error e_j of this one costs (e_j / U[j, j])², for later columns will make it good.
   2. *Descent* (QuantEase, arXiv 2309.01885, by groups): all other groups stay as they are; the group's best real values are
      x = w + H_gg⁻¹ Σ_{j ∉ g} H_gj e_j, and values v cost (x - v) H_gg (x - v)ᵀ, the same form with H_gg's own factor.

   In both a group is solved alike: of several scales (and floors) each is tried with feedback *inside* the group, and each
   try gives the scale of least squares for its integers, from which the next tries start: with r(y) = U⁻ᵀ y a try's errors
   are r(x) - S r(q) - F r(1). Before the first sweep of descent the steps of a unit are refitted by least squares under H,
   rounded to halves. What does not make e H eᵀ less is not taken, so no step of descent makes it more.

   3. *Rates*: with `rated`, what is made small is e H eᵀ + rate · bits. An integer k from the middle costs b1 |k| + b2 k²
      bits, minus the logarithm of a density between a Gaussian's and Laplace's whose mean magnitude is the row's, measured
      anew before every sweep. In a group whose errors cost a (v - k)² the best k of all real ones is v drawn towards the
      middle by rate · (b1 + 2 b2 |k|) / 2a. Scales and floors are few and halves have few digits, for they are coded too;
      wider scales and floors that put 0 in the middle are tried besides. */
#include "refine_rows.h"

#include "lanes.h"
#include "uneven_levels.h"

enum { SIZE = 32, CHUNK = 128, AT_ONCE = 4 };

/* Of a scale s of the density's magnitudes: its mean magnitude, and bits of a magnitude and of a square over s and s². */
static const float MEAN = 0.7529f, LINEAR = 0.8161f, SQUARE = 0.4328f, LEAST_SCALE = 0.35f;


/* 16 rows: everything [index][lane]. */
typedef struct {
    const edgepack_refine_matrix *m;
    float *weights, *errors, *quants; /* of columns */
    float *scales, *floors;           /* of groups */
    float *steps, *floor_steps;       /* of units */
    float rate[LANES], linear[LANES], square[LANES]; /* of a bit, in e H eᵀ; bits of a magnitude and of a square */
} tile;

/* One group of columns: what its values should be, how errors in it feed on, and the best that is known. */
typedef struct {
    float x[SIZE * LANES], white[SIZE * LANES], ones[SIZE]; /* r(x) and r(1) */
    float step[LANES], floor_step[LANES];
    float cost[LANES], scale[LANES], floor[LANES];   /* codes of the best */
    float fit_scale[LANES], fit_floor[LANES];        /* values of least squares for the best's integers */
    float q[SIZE * LANES], errors[SIZE * LANES];
    const float *upper; /* [group, group] */
    const float *rate, *linear, *square; /* of the tile's lanes */
} problem;

/* Codes of the scales and floors that are tried together. */
typedef struct {
    float scale[AT_ONCE][LANES], floor[AT_ONCE][LANES];
} tries;

/* sums[k] += Σ_j panel[j, k] · source[j], j = from … until - 1. Four sums side by side hide the adder's delay. */
EDGEPACK_CLONES static void gather(const float *restrict panel, const float *restrict source, int64_t from, int64_t until,
                                   const int size, float *restrict sums) {
    for (int64_t start = from; start < until; start += CHUNK) {
        const int64_t stop = start + CHUNK < until ? start + CHUNK : until;
        for (int k = 0; k < size; k += AT_ONCE) {
            const float *restrict factors = panel + start * size + k, *restrict values = source + start * LANES;
            float *restrict sum = sums + k * LANES;
            float a[LANES], b[LANES], c[LANES], d[LANES];
            EACH_LANE a[lane] = sum[lane];
            EACH_LANE b[lane] = sum[LANES + lane];
            EACH_LANE c[lane] = sum[2 * LANES + lane];
            EACH_LANE d[lane] = sum[3 * LANES + lane];
            for (int64_t j = start; j < stop; j++, factors += size, values += LANES) {
                EACH_LANE a[lane] += factors[0] * values[lane];
                EACH_LANE b[lane] += factors[1] * values[lane];
                EACH_LANE c[lane] += factors[2] * values[lane];
                EACH_LANE d[lane] += factors[3] * values[lane];
            }
            EACH_LANE sum[lane] = a[lane];
            EACH_LANE sum[LANES + lane] = b[lane];
            EACH_LANE sum[2 * LANES + lane] = c[lane];
            EACH_LANE sum[3 * LANES + lane] = d[lane];
        }
    }
}

/* What all columns do to those of group `g`: [columns, group]. */
EDGEPACK_INLINE const float *panel_of(const edgepack_refine_matrix *m, const float *panels, int64_t g) {
    return panels + g * m->group * m->columns;
}

/* r(x) and r(1). */
EDGEPACK_CLONES static void whiten(problem *p, const int size) {
    for (int j = 0; j < size; j++) {
        const float pivot = 1.0f / p->upper[j * size + j];
        float value[LANES], one = 1.0f;
        EACH_LANE value[lane] = p->x[j * LANES + lane];
        for (int i = 0; i < j; i++) {
            const float factor = p->upper[i * size + j];
            EACH_LANE value[lane] -= factor * p->white[i * LANES + lane];
            one -= factor * p->ones[i];
        }
        EACH_LANE p->white[j * LANES + lane] = value[lane] * pivot;
        p->ones[j] = one * pivot;
    }
}

EDGEPACK_INLINE float nearest(const edgepack_refine_matrix *m, float value, const int uneven) {
    return uneven ? nearest_level(value) : rounded(clamped(value, m->lowest, m->highest));
}

/* Where an integer best lies of which an error of one costs 1 / turned² and that is wanted to be `value`. */
EDGEPACK_INLINE float drawn(const edgepack_refine_matrix *m, const problem *p, int lane, float value, float turned) {
    const float k = value - m->zero, weight = p->rate[lane] * turned * turned;
    const float size = fabsf(k), pull = weight * (0.5f * p->linear[lane] + p->square[lane] * size);
    return m->zero + copysignf(most(size - pull, 0.0f), k);
}

EDGEPACK_INLINE float bits_taken(const edgepack_refine_matrix *m, const problem *p, int lane, float n) {
    const float k = fabsf(n - m->zero);
    return k * (p->linear[lane] + p->square[lane] * k);
}

/* Sums over a try's columns: of its errors e, of r(q) times its scale, of both with r(1). */
typedef struct {
    float ee[LANES], eq[LANES], qq[LANES], e1[LANES], q1[LANES];
} sums;

/* Values of least squares for the integers of a try, and whether it is the best so far. */
EDGEPACK_INLINE void keep_better(problem *p, const sums *s, const tries *t, int c, const float *q, const float *e,
                                 const int size, const int affine) {
    float ones = 0.0f, better[LANES];
    for (int j = 0; j < size; j++) ones += p->ones[j] * p->ones[j];
    EACH_LANE {
        const float scale = t->scale[c][lane] * p->step[lane], floor = t->floor[c][lane] * p->floor_step[lane];
        const float k = inverse(affine ? s->qq[lane] * ones - s->q1[lane] * s->q1[lane] : s->qq[lane]);
        const float grown = affine ? (ones * s->eq[lane] - s->q1[lane] * s->e1[lane]) * k : s->eq[lane] * k;
        const float raised = affine ? (s->qq[lane] * s->e1[lane] - s->q1[lane] * s->eq[lane]) * k : 0.0f;
        const int found = s->ee[lane] < p->cost[lane];
        better[lane] = found ? 1.0f : 0.0f;
        p->cost[lane] = found ? s->ee[lane] : p->cost[lane];
        p->scale[lane] = found ? t->scale[c][lane] : p->scale[lane];
        p->floor[lane] = found ? t->floor[c][lane] : p->floor[lane];
        p->fit_scale[lane] = found ? scale + grown * scale : p->fit_scale[lane];
        p->fit_floor[lane] = found ? floor + raised : p->fit_floor[lane];
    }
    for (int j = 0; j < size; j++) {
        EACH_LANE {
            const int at = j * LANES + lane, found = better[lane] != 0.0f;
            p->q[at] = found ? q[at] : p->q[at];
            p->errors[at] = found ? e[at] : p->errors[at];
        }
    }
}

/* Try scales and floors with feedback inside the group; where `kept`, the first try has the integers of `p`. */
EDGEPACK_INLINE void attempt_on(const edgepack_refine_matrix *m, problem *p, const tries *t, const int size,
                                const int affine, const int uneven, const int kept, const int rated) {
    float q[AT_ONCE][SIZE * LANES], e[AT_ONCE][SIZE * LANES];
    float scale[AT_ONCE][LANES], turned[AT_ONCE][LANES], floor[AT_ONCE][LANES];
    float bits[AT_ONCE][LANES];
    sums s[AT_ONCE];
    memset(s, 0, sizeof s);
    memset(bits, 0, sizeof bits);
    for (int c = 0; c < AT_ONCE; c++) {
        EACH_LANE {
            scale[c][lane] = t->scale[c][lane] * p->step[lane];
            floor[c][lane] = t->floor[c][lane] * p->floor_step[lane];
            turned[c][lane] = inverse(scale[c][lane]);
        }
    }
    for (int j = 0; j < size; j++) {
        const float pivot = 1.0f / p->upper[j * size + j], one = p->ones[j];
        float value[AT_ONCE][LANES];
        for (int c = 0; c < AT_ONCE; c++) EACH_LANE value[c][lane] = p->x[j * LANES + lane];
        for (int i = 0; i < j; i++) {
            const float factor = p->upper[i * size + j];
            for (int c = 0; c < AT_ONCE; c++) EACH_LANE value[c][lane] -= factor * e[c][i * LANES + lane];
        }
        for (int c = 0; c < AT_ONCE; c++) {
            EACH_LANE {
                const int at = j * LANES + lane;
                float wanted = (value[c][lane] - floor[c][lane]) * turned[c][lane];
                if (rated) wanted = drawn(m, p, lane, wanted, turned[c][lane] * p->upper[j * size + j]);
                const float n = kept && c == 0 ? p->q[at] : nearest(m, wanted, uneven);
                const float error = (value[c][lane] - (scale[c][lane] * n + floor[c][lane])) * pivot;
                const float part = p->white[at] - floor[c][lane] * one - error;
                q[c][at] = n;
                e[c][at] = error;
                s[c].ee[lane] += error * error;
                s[c].eq[lane] += error * part;
                s[c].qq[lane] += part * part;
                if (affine) s[c].e1[lane] += error * one;
                if (affine) s[c].q1[lane] += part * one;
                if (rated) bits[c][lane] += bits_taken(m, p, lane, n);
            }
        }
    }
    for (int c = 0; rated && c < AT_ONCE; c++) EACH_LANE s[c].ee[lane] += p->rate[lane] * bits[c][lane];
    for (int c = 0; c < AT_ONCE; c++) keep_better(p, &s[c], t, c, q[c], e[c], size, affine);
}

EDGEPACK_CLONES static void attempt_even(const edgepack_refine_matrix *m, problem *p, const tries *t, const int kept) {
    attempt_on(m, p, t, (int)m->group, (int)m->affine, 0, kept, 0);
}

EDGEPACK_CLONES static void attempt_uneven(const edgepack_refine_matrix *m, problem *p, const tries *t, const int kept) {
    attempt_on(m, p, t, (int)m->group, 0, 1, kept, 0);
}

EDGEPACK_CLONES static void attempt_rated(const edgepack_refine_matrix *m, problem *p, const tries *t, const int kept) {
    attempt_on(m, p, t, (int)m->group, (int)m->affine, 0, kept, 1);
}

EDGEPACK_CLONES static void attempt_uneven_rated(const edgepack_refine_matrix *m, problem *p, const tries *t, const int kept) {
    attempt_on(m, p, t, (int)m->group, 0, 1, kept, 1);
}

static void attempt(const edgepack_refine_matrix *m, problem *p, const tries *t, const int kept) {
    if (m->rated && m->uneven) attempt_uneven_rated(m, p, t, kept);
    else if (m->rated) attempt_rated(m, p, t, kept);
    else if (m->uneven) attempt_uneven(m, p, t, kept);
    else attempt_even(m, p, t, kept);
}

/* A half with `digits` binary digits behind its first one, of which an archive needs few bits. */
EDGEPACK_INLINE float short_half(float value, int64_t digits) {
    const uint32_t last = 1u << (23 - (int)digits);
    return as_half(float_of((bits_of(value) + (last >> 1) - 1u) & ~(last - 1u)));
}

/* The code of a scale of about `value`, `more` codes (or hundredths) beyond it. */
EDGEPACK_INLINE float scale_code(const edgepack_refine_matrix *m, float value, float step, float more) {
    const float half = m->rated ? short_half(value * (1.0f + more * m->last_digit), m->digits) : as_half(value * (1.0f + 0.01f * more));
    const float near = clamped(value * inverse(step), m->scale_low - 1.0f, m->scale_high + 1.0f);
    const float code = (rounded(near / m->scale_grain) + more) * m->scale_grain;
    return m->scale_high == 0.0f ? half : clamped(code, m->scale_low, m->scale_high);
}

/* The code of a floor of about `value`, `more` codes (or sixteenths of the scale) beyond it. */
EDGEPACK_INLINE float floor_code(const edgepack_refine_matrix *m, float value, float step, float scale, float more) {
    const float half = m->rated ? short_half(value + 0.25f * more * scale, m->digits) : as_half(value + 0.0625f * more * scale);
    const float near = clamped(value * inverse(step), -1.0f, m->floor_high + 1.0f);
    const float code = (rounded(near / m->floor_grain) + more) * m->floor_grain;
    return m->floor_high == 0.0f ? half : clamped(code, 0.0f, m->floor_high);
}

/* Try c: a scale `factor` times `scale` and `more` codes more, the middle of the range where it was, the floor `raised`. */
EDGEPACK_CLONES static void set_try(const edgepack_refine_matrix *m, const problem *p, tries *t, int c, const float *scale,
                             const float *floor, float factor, float more, float raised, const int affine) {
    EACH_LANE {
        const float code = scale_code(m, scale[lane] * factor, p->step[lane], more), now = code * p->step[lane];
        const float middle = floor[lane] + 0.5f * m->highest * (scale[lane] - now);
        t->scale[c][lane] = code;
        t->floor[c][lane] = affine ? floor_code(m, middle, p->floor_step[lane], now, raised) : 0.0f;
    }
}

/* Wider scales than the best, and floors that put 0 in the middle. */
static void widen(const edgepack_refine_matrix *m, problem *p, const int affine) {
    static const float factors[2][AT_ONCE] = {{1.06f, 1.12f, 1.25f, 1.5f}, {1.0f, 1.12f, 1.3f, 1.12f}};
    float scale[LANES], floor[LANES];
    tries t;
    for (int c = 0; c < AT_ONCE; c++) {
        const float factor = factors[affine][c];
        const int central = affine && c < AT_ONCE - 1;
        EACH_LANE {
            const float now = p->scale[lane] * p->step[lane];
            scale[lane] = now * factor;
            floor[lane] = p->floor[lane] * p->floor_step[lane] - 0.5f * m->highest * (scale[lane] - now);
            if (central) floor[lane] = -m->zero * scale[lane];
        }
        set_try(m, p, &t, c, scale, floor, 1.0f, 0.0f, 0.0f, affine);
    }
    attempt(m, p, &t, 0);
}

/* Scales of `tried` about those that `p` came with. */
static void search(const edgepack_refine_matrix *m, problem *p, const int affine) {
    float scale[LANES], floor[LANES];
    tries t;
    EACH_LANE {
        scale[lane] = p->scale[lane] * p->step[lane];
        floor[lane] = p->floor[lane] * p->floor_step[lane];
        p->cost[lane] = INFINITY;
    }
    memset(p->q, 0, sizeof p->q); /* what remains where no try has a finite cost: a caller refuses such rows */
    memset(p->errors, 0, sizeof p->errors);
    for (int batch = 0; batch < 4; batch++) {
        for (int c = 0; c < AT_ONCE; c++) {
            const float factor = 1.0f + 0.025f * (float)(c * 4 + batch - 9);
            set_try(m, p, &t, c, scale, floor, factor, 0.0f, 0.0f, affine);
        }
        attempt(m, p, &t, 0);
    }
}

/* Scales and floors about the least squares of the best, then about the best. */
static void settle(const edgepack_refine_matrix *m, problem *p, const int affine, const int kept) {
    float scale[LANES], floor[LANES];
    tries t;
    if (kept) {
        EACH_LANE {
            scale[lane] = p->scale[lane] * p->step[lane];
            floor[lane] = p->floor[lane] * p->floor_step[lane];
            t.scale[0][lane] = p->scale[lane];
            t.floor[0][lane] = p->floor[lane];
            p->cost[lane] = INFINITY;
        }
        set_try(m, p, &t, 1, scale, floor, 1.0f, 0.0f, 0.0f, affine);
        set_try(m, p, &t, 2, scale, floor, 1.0f, 1.0f, 0.0f, affine);
        set_try(m, p, &t, 3, scale, floor, 1.0f, -1.0f, 0.0f, affine);
        attempt(m, p, &t, 1);
    }
    memcpy(scale, p->fit_scale, sizeof scale);
    memcpy(floor, p->fit_floor, sizeof floor);
    set_try(m, p, &t, 0, scale, floor, 1.0f, 0.0f, 0.0f, affine);
    set_try(m, p, &t, 1, scale, floor, 1.0f, affine ? 0.0f : 2.0f, 1.0f, affine);
    set_try(m, p, &t, 2, scale, floor, 1.0f, affine ? 0.0f : -2.0f, -1.0f, affine);
    set_try(m, p, &t, 3, scale, floor, affine ? 1.02f : 0.995f, 0.0f, 0.0f, affine);
    attempt(m, p, &t, 0);
    memcpy(scale, p->fit_scale, sizeof scale);
    memcpy(floor, p->fit_floor, sizeof floor);
    set_try(m, p, &t, 0, scale, floor, 1.0f, 0.0f, 0.0f, affine);
    set_try(m, p, &t, 1, scale, floor, 1.0f, 1.0f, 0.0f, affine);
    set_try(m, p, &t, 2, scale, floor, 1.0f, -1.0f, 0.0f, affine);
    set_try(m, p, &t, 3, scale, floor, affine ? 1.0f : 1.005f, 0.0f, affine ? 2.0f : 0.0f, affine);
    attempt(m, p, &t, 0);
    if (m->rated) widen(m, p, affine);
}

static void take_group(const tile *t, problem *p, int64_t g) {
    const int64_t unit = t->m->unit_of[g];
    p->rate = t->rate;
    p->linear = t->linear;
    p->square = t->square;
    EACH_LANE {
        p->step[lane] = t->steps[unit * LANES + lane];
        p->floor_step[lane] = t->floor_steps[unit * LANES + lane];
        p->scale[lane] = t->scales[g * LANES + lane];
        p->floor[lane] = t->floors[g * LANES + lane];
        p->fit_scale[lane] = p->scale[lane] * p->step[lane];
        p->fit_floor[lane] = p->floor[lane] * p->floor_step[lane];
    }
}

static void put_group(const tile *t, const problem *p, int64_t g, const int size) {
    memcpy(t->scales + g * LANES, p->scale, sizeof p->scale);
    memcpy(t->floors + g * LANES, p->floor, sizeof p->floor);
    memcpy(t->quants + g * size * LANES, p->q, sizeof(float) * (size_t)(size * LANES));
}

static void feedback(const tile *t, const int size, const int affine) {
    const edgepack_refine_matrix *m = t->m;
    problem p;
    for (int64_t g = 0; g < m->columns / size; g++) {
        const int64_t first = g * size;
        float moved[SIZE * LANES] = {0};
        take_group(t, &p, g);
        p.upper = panel_of(m, m->upper, g) + first * size;
        gather(panel_of(m, m->upper, g), t->errors, 0, first, size, moved);
        for (int i = 0; i < size * LANES; i++) p.x[i] = t->weights[first * LANES + i] - moved[i];
        whiten(&p, size);
        search(m, &p, affine);
        settle(m, &p, affine, 0);
        put_group(t, &p, g, size);
        memcpy(t->errors + first * LANES, p.errors, sizeof(float) * (size_t)(size * LANES));
    }
}

/* Errors of a group from its weights and what they have become. */
EDGEPACK_CLONES static void measure(const tile *t, int64_t g, const int size) {
    const int64_t unit = t->m->unit_of[g];
    for (int64_t j = g * size; j < (g + 1) * size; j++) {
        EACH_LANE {
            const float scale = t->scales[g * LANES + lane] * t->steps[unit * LANES + lane];
            const float floor = t->floors[g * LANES + lane] * t->floor_steps[unit * LANES + lane];
            t->errors[j * LANES + lane] = t->weights[j * LANES + lane] - (scale * t->quants[j * LANES + lane] + floor);
        }
    }
}

/* x = w + UᵀU pull. */
EDGEPACK_CLONES static void aim(problem *p, const float *weights, const float *pull, const int size) {
    float turned[SIZE * LANES];
    for (int i = 0; i < size; i++) {
        float sum[LANES] = {0};
        for (int j = i; j < size; j++) EACH_LANE sum[lane] += p->upper[i * size + j] * pull[j * LANES + lane];
        EACH_LANE turned[i * LANES + lane] = sum[lane];
    }
    for (int j = 0; j < size; j++) {
        float sum[LANES];
        EACH_LANE sum[lane] = weights[j * LANES + lane];
        for (int i = 0; i <= j; i++) EACH_LANE sum[lane] += p->upper[i * size + j] * turned[i * LANES + lane];
        EACH_LANE p->x[j * LANES + lane] = sum[lane];
    }
}

/* Solve every group once more, the others as they are; whether one became better. */
static int descend(const tile *t, const int size, const int affine) {
    const edgepack_refine_matrix *m = t->m;
    int better = 0;
    problem p;
    for (int64_t g = 0; g < m->columns / size; g++) {
        const int64_t first = g * size;
        float pull[SIZE * LANES] = {0};
        take_group(t, &p, g);
        p.upper = m->local + first * size;
        gather(panel_of(m, m->curvature, g), t->errors, 0, first, size, pull);
        gather(panel_of(m, m->curvature, g), t->errors, first + size, m->columns, size, pull);
        aim(&p, t->weights + first * LANES, pull, size);
        memcpy(p.q, t->quants + first * LANES, sizeof(float) * (size_t)(size * LANES));
        whiten(&p, size);
        settle(m, &p, affine, 1);
        for (int i = 0; i < size * LANES; i++) better |= p.q[i] != t->quants[first * LANES + i];
        put_group(t, &p, g, size);
        measure(t, g, size);
    }
    return better;
}

/* Products under H of a unit's directions: a (its scales times integers), b (its floors), e. */
typedef struct {
    float aa[LANES], ab[LANES], bb[LANES], ae[LANES], be[LANES];
} products;

EDGEPACK_CLONES static void add_products(const float *a, const float *b, const float *ha, const float *hb, const float *he,
                                  const int size, products *s) {
    for (int i = 0; i < size; i++) {
        EACH_LANE {
            const int at = i * LANES + lane;
            s->aa[lane] += a[at] * ha[at];
            s->ab[lane] += b[at] * ha[at];
            s->bb[lane] += b[at] * hb[at];
            s->ae[lane] += a[at] * he[at];
            s->be[lane] += b[at] * he[at];
        }
    }
}

/* The steps of a unit by least squares, as halves; 1 where a row's became better. */
static int new_steps(const products *s, float *step, float *floor_step, const int affine,
                     const edgepack_refine_matrix *m) {
    int better = 0;
    EACH_LANE {
        const float k = inverse(affine ? s->aa[lane] * s->bb[lane] - s->ab[lane] * s->ab[lane] : s->aa[lane]);
        const float grown = (affine ? s->bb[lane] * s->ae[lane] - s->ab[lane] * s->be[lane] : s->ae[lane]) * k;
        const float raised = affine ? (s->aa[lane] * s->be[lane] - s->ab[lane] * s->ae[lane]) * k : 0.0f;
        const float wanted = step[lane] + grown, deeper = floor_step[lane] + raised;
        const float now = m->rated ? short_half(wanted, m->digits) : as_half(wanted);
        const float low = least(m->rated ? short_half(deeper, m->digits) : as_half(deeper), 0.0f);
        const float d = now - step[lane], f = affine ? low - floor_step[lane] : 0.0f;
        const float change = d * (d * s->aa[lane] - 2.0f * s->ae[lane]) +
                             f * (f * s->bb[lane] + 2.0f * d * s->ab[lane] - 2.0f * s->be[lane]);
        const int found = change < 0.0f;
        step[lane] = found ? now : step[lane];
        floor_step[lane] = found && affine ? low : floor_step[lane];
        better |= found;
    }
    return better;
}

static void refit_unit(const tile *t, int64_t unit, const int size, const int affine) {
    const edgepack_refine_matrix *m = t->m;
    const int64_t groups = m->columns / size;
    float *a = t->weights + m->columns * LANES, *b = a + m->columns * LANES; /* only this unit's columns are used */
    products s;
    memset(&s, 0, sizeof s);
    for (int64_t g = 0; g < groups; g++) {
        if (m->unit_of[g] != unit) continue;
        for (int64_t j = g * size; j < (g + 1) * size; j++) {
            EACH_LANE a[j * LANES + lane] = t->scales[g * LANES + lane] * t->quants[j * LANES + lane];
            EACH_LANE b[j * LANES + lane] = t->floors[g * LANES + lane];
        }
    }
    for (int64_t g = 0; g < groups; g++) {
        if (m->unit_of[g] != unit) continue;
        const int64_t first = g * size;
        const float *panel = panel_of(m, m->curvature, g);
        float ha[SIZE * LANES] = {0}, hb[SIZE * LANES] = {0}, he[SIZE * LANES] = {0};
        for (int64_t o = 0; o < groups; o++) {
            if (m->unit_of[o] != unit) continue;
            gather(panel, a, o * size, (o + 1) * size, size, ha);
            if (affine) gather(panel, b, o * size, (o + 1) * size, size, hb);
        }
        gather(panel, t->errors, 0, m->columns, size, he);
        add_products(a + first * LANES, b + first * LANES, ha, hb, he, size, &s);
    }
    if (!new_steps(&s, t->steps + unit * LANES, t->floor_steps + unit * LANES, affine, m)) return;
    for (int64_t g = 0; g < groups; g++) {
        if (m->unit_of[g] == unit) measure(t, g, size);
    }
}

/* The density of a row's integers by the sum of their magnitudes. */
static void model(tile *t, const float *sum) {
    EACH_LANE {
        const float scale = most(sum[lane] / (MEAN * (float)t->m->columns), LEAST_SCALE);
        t->linear[lane] = LINEAR / scale;
        t->square[lane] = SQUARE / (scale * scale);
    }
}

/* Before anything is rounded: short steps, and integers about 0. */
static void begin(tile *t, const int size) {
    float sum[LANES] = {0};
    for (int64_t i = 0; t->m->scale_high != 0.0f && i < t->m->units * LANES; i++) {
        t->steps[i] = short_half(t->steps[i], t->m->digits);
        t->floor_steps[i] = short_half(t->floor_steps[i], t->m->digits);
    }
    for (int64_t j = 0; j < t->m->columns; j++) {
        const int64_t g = j / size, unit = t->m->unit_of[g];
        EACH_LANE {
            const float scale = t->scales[g * LANES + lane] * t->steps[unit * LANES + lane];
            sum[lane] += fabsf(t->weights[j * LANES + lane] * inverse(scale));
        }
    }
    model(t, sum);
}

/* As integers have become. */
static void look(tile *t) {
    float sum[LANES] = {0};
    for (int64_t i = 0; i < t->m->columns * LANES; i++) sum[i % LANES] += fabsf(t->quants[i] - t->m->zero);
    model(t, sum);
}

static void refine(tile *t, const int size, const int affine) {
    const int64_t groups = t->m->columns / size;
    if (t->m->rated) begin(t, size);
    feedback(t, size, affine);
    for (int64_t g = 0; g < groups; g++) measure(t, g, size);
    for (int64_t sweep = 0; sweep < t->m->sweeps; sweep++) {
        if (t->m->scale_high != 0.0f && sweep == 0) {
            for (int64_t unit = 0; unit < t->m->units; unit++) refit_unit(t, unit, size, affine);
        }
        if (t->m->rated) look(t);
        if (!descend(t, size, affine)) return;
    }
}

/* [rows, width] from row `first` on into [width][lane], and back; lanes past the last row repeat the first. */
static void load_lanes(const float *from, int64_t width, int64_t first, int count, float *to) {
    for (int64_t k = 0; k < width; k++) {
        for (int lane = 0; lane < LANES; lane++) to[k * LANES + lane] = from[(first + (lane < count ? lane : 0)) * width + k];
    }
}

static void store_lanes(const float *from, int64_t width, int64_t first, int count, float *to) {
    for (int64_t k = 0; k < width; k++) {
        for (int lane = 0; lane < count; lane++) to[(first + lane) * width + k] = from[k * LANES + lane];
    }
}

int64_t edgepack_refine_scratch(int64_t columns, int64_t group, int64_t units) {
    return LANES * (5 * columns + 2 * (columns / group) + 2 * units);
}

int32_t edgepack_refine_rows(const edgepack_refine_matrix *m, int64_t first, int64_t count, float *scratch) {
    if ((m->group != 16 && m->group != 32) || m->columns < m->group || m->columns % m->group || m->units < 1) return -1;
    const int64_t groups = m->columns / m->group;
    tile t = {.m = m, .weights = scratch};
    t.errors = t.weights + 3 * LANES * m->columns;
    t.quants = t.errors + LANES * m->columns;
    t.scales = t.quants + LANES * m->columns;
    t.floors = t.scales + LANES * groups;
    t.steps = t.floors + LANES * groups;
    t.floor_steps = t.steps + LANES * m->units;
    for (int64_t row = first; row < first + count; row += LANES) {
        const int some = first + count - row < LANES ? (int)(first + count - row) : LANES;
        load_lanes(m->weights, m->columns, row, some, t.weights);
        load_lanes(m->scales, groups, row, some, t.scales);
        load_lanes(m->floors, groups, row, some, t.floors);
        load_lanes(m->steps, m->units, row, some, t.steps);
        load_lanes(m->floor_steps, m->units, row, some, t.floor_steps);
        if (m->rated) load_lanes(m->rates, 1, row, some, t.rate);
        refine(&t, (int)m->group, (int)m->affine);
        store_lanes(t.scales, groups, row, some, m->scales);
        store_lanes(t.floors, groups, row, some, m->floors);
        store_lanes(t.steps, m->units, row, some, m->steps);
        store_lanes(t.floor_steps, m->units, row, some, m->floor_steps);
        for (int lane = 0; lane < some; lane++) {
            for (int64_t j = 0; j < m->columns; j++) {
                m->quants[(row + lane) * m->columns + j] = (int8_t)(int)t.quants[j * LANES + lane];
            }
        }
    }
    return 0;
}
