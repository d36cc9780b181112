/* 16 vectors side by side, one centroid after the other. */
#include "codebook.h"

#include "lanes.h"

#define MOST_LENGTH 16

/* Keep centroid `c` for the lanes that it is nearer to than the best so far. */
EDGEPACK_INLINE void keep_nearer(const float *restrict x, const int length, const float *restrict centroid, int32_t c,
                                 int lane, float *restrict best, int32_t *restrict at) {
    float cost = centroid[length];
    for (int r = 0; r < length; r++) cost -= x[r * LANES + lane] * centroid[r];
    const int better = cost < *best;
    *best = better ? cost : *best;
    *at = better ? c : *at;
}

#define TOGETHER 8

/* The nearest centroid of 16 vectors, x [length][lane]; several centroids for each look at the best so far. */
EDGEPACK_INLINE void nearest_sixteen(const float *restrict x, const int length, const float *restrict centroids,
                                     const int64_t count, int32_t *restrict index) {
    float best[LANES];
    int32_t at[LANES];
    EACH_LANE best[lane] = INFINITY;
    EACH_LANE at[lane] = 0;
    int64_t c = 0;
    for (; c + TOGETHER <= count; c += TOGETHER) {
        const float *some = centroids + c * (length + 1);
        EACH_LANE {
            float least_cost = best[lane];
            int32_t place = at[lane];
            for (int k = 0; k < TOGETHER; k++) {
                keep_nearer(x, length, some + k * (length + 1), (int32_t)c + k, lane, &least_cost, &place);
            }
            best[lane] = least_cost;
            at[lane] = place;
        }
    }
    for (; c < count; c++) {
        EACH_LANE keep_nearer(x, length, centroids + c * (length + 1), (int32_t)c, lane, best + lane, at + lane);
    }
    EACH_LANE index[lane] = at[lane];
}

/* The same with the lengths that occur as constants. */
EDGEPACK_INLINE void nearest_of(const float *x, int64_t length, const float *centroids, int64_t count, int32_t *index) {
    switch (length) {
        case 1: nearest_sixteen(x, 1, centroids, count, index); return;
        case 2: nearest_sixteen(x, 2, centroids, count, index); return;
        case 3: nearest_sixteen(x, 3, centroids, count, index); return;
        case 4: nearest_sixteen(x, 4, centroids, count, index); return;
        case 5: nearest_sixteen(x, 5, centroids, count, index); return;
        case 6: nearest_sixteen(x, 6, centroids, count, index); return;
        case 8: nearest_sixteen(x, 8, centroids, count, index); return;
        default: nearest_sixteen(x, (int)length, centroids, count, index);
    }
}

EDGEPACK_INLINE void nearest_of_all(const float *vectors, int64_t n, int64_t length, const float *centroids,
                                    int64_t count, int32_t *index) {
    float x[MOST_LENGTH * LANES];
    int32_t found[LANES];
    for (int64_t first = 0; first < n; first += LANES) {
        for (int lane = 0; lane < LANES; lane++) {
            const float *from = vectors + (first + lane < n ? first + lane : n - 1) * length;
            for (int64_t r = 0; r < length; r++) x[r * LANES + lane] = from[r];
        }
        nearest_of(x, length, centroids, count, found);
        for (int lane = 0; lane < LANES && first + lane < n; lane++) index[first + lane] = found[lane];
    }
}

EDGEPACK_CLONES void edgepack_nearest(const float *vectors, int64_t n, int64_t length, const float *centroids,
                                      int64_t count, int32_t *index) {
    nearest_of_all(vectors, n, length, centroids, count, index);
}

#define LEAF 64
#define LEAF_LISTED 512

/* A box around vectors [n, length]: its middle, and half of its width in each coordinate. */
EDGEPACK_INLINE void box_around(const float *vectors, int64_t n, int64_t length, float *middle, float *half) {
    for (int64_t r = 0; r < length; r++) {
        float low = vectors[r], high = vectors[r];
        for (int64_t i = 1; i < n; i++) {
            low = least(low, vectors[i * length + r]);
            high = most(high, vectors[i * length + r]);
        }
        middle[r] = 0.5f * low + 0.5f * high;
        half[r] = most(high - middle[r], middle[r] - low);
    }
}

/* Squares of the distances of all centroids, which lie one coordinate after the other, from the nearest point of a box;
   the least square of those from its farthest point, within which every vector has a centroid. far: [count]. */
EDGEPACK_INLINE float squares_from_box(const float *middle, const float *half, int64_t length,
                                       const float *restrict coordinates, int64_t count, float *restrict near,
                                       float *restrict far) {
    memset(near, 0, (size_t)count * sizeof *near);
    memset(far, 0, (size_t)count * sizeof *far);
    for (int64_t r = 0; r < length; r++) {
        const float *of = coordinates + r * count, from = middle[r], wide = half[r];
        for (int64_t c = 0; c < count; c++) {
            const float away = fabsf(of[c] - from), inside = most(away - wide, 0.0f), outside = away + wide;
            near[c] += inside * inside;
            far[c] += outside * outside;
        }
    }
    float best[LANES];
    EACH_LANE best[lane] = INFINITY;
    int64_t c = 0;
    for (; c + LANES <= count; c += LANES) EACH_LANE best[lane] = least(best[lane], far[c + lane]);
    for (; c < count; c++) best[0] = least(best[0], far[c]);
    for (int lane = 1; lane < LANES; lane++) best[0] = least(best[0], best[lane]);
    return best[0];
}

/* The nearest centroid of a vector is no farther than any other from the farthest point of the vector's box: a little
   more is allowed for rounding. */
EDGEPACK_CLONES void edgepack_nearest_leaves(const float *vectors, int64_t n, int64_t length, const float *centroids,
                                             int64_t count, float *scratch, int32_t *index) {
    float *coordinates = scratch, *near = scratch + length * count, *far = near + count;
    float middle[MOST_LENGTH], half[MOST_LENGTH], kept[LEAF_LISTED * (MOST_LENGTH + 1)];
    int32_t places[LEAF_LISTED];
    for (int64_t c = 0; c < count; c++) {
        for (int64_t r = 0; r < length; r++) coordinates[r * count + c] = centroids[c * (length + 1) + r];
    }
    for (int64_t first = 0; first < n; first += LEAF) {
        const float *leaf = vectors + first * length;
        const int64_t size = n - first < LEAF ? n - first : LEAF;
        box_around(leaf, size, length, middle, half);
        const float limit = 1.0001f * squares_from_box(middle, half, length, coordinates, count, near, far);
        int64_t listed = 0;
        for (int64_t c = 0; c < count && listed <= LEAF_LISTED; c++) {
            if (near[c] > limit) continue;
            if (listed < LEAF_LISTED) {
                memcpy(kept + listed * (length + 1), centroids + c * (length + 1), (size_t)(length + 1) * sizeof *kept);
                places[listed] = (int32_t)c;
            }
            listed++;
        }
        if (listed > LEAF_LISTED) {
            nearest_of_all(leaf, size, length, centroids, count, index + first);
            continue;
        }
        nearest_of_all(leaf, size, length, kept, listed, index + first);
        for (int64_t i = 0; i < size; i++) index[first + i] = places[index[first + i]];
    }
}

void edgepack_centroid_sums(const float *vectors, const float *weights, int64_t n, int64_t length, const float *centroids,
                            int64_t count, const int32_t *index, double *mass, double *sums, double *distortion) {
    memset(mass, 0, (size_t)count * sizeof *mass);
    memset(sums, 0, (size_t)(count * length) * sizeof *sums);
    memset(distortion, 0, (size_t)count * sizeof *distortion);
    for (int64_t i = 0; i < n; i++) {
        const float *x = vectors + i * length, *c = centroids + index[i] * (length + 1);
        double gap = 0.0;
        for (int64_t r = 0; r < length; r++) {
            const double d = (double)x[r] - (double)c[r];
            gap += d * d;
            sums[index[i] * length + r] += (double)weights[i] * (double)x[r];
        }
        mass[index[i]] += (double)weights[i];
        distortion[index[i]] += (double)weights[i] * gap;
    }
}

/* Take the nearest centroids off x [length][lane], in place, and give their indices. */
EDGEPACK_INLINE void take_nearest(const float *centroids, int64_t count, int64_t length, float *x, int32_t *index) {
    nearest_of(x, length, centroids, count, index);
    for (int64_t r = 0; r < length; r++) {
        for (int lane = 0; lane < LANES; lane++) x[r * LANES + lane] -= centroids[index[lane] * (length + 1) + r];
    }
}

/* w of columns `from` … `until` - 1 less e · u, one row of 16 vectors: w and e are [column][lane]. */
EDGEPACK_INLINE void feed_back(float *restrict w, const float *restrict e, const float *restrict upper, int64_t width,
                               int64_t start, int64_t stop, int64_t from, int64_t until) {
    for (int64_t k = from; k < until; k++) {
        EACH_LANE {
            float sum = 0.0f;
            for (int64_t j = start; j < stop; j++) sum += e[j * LANES + lane] * upper[j * width + k];
            w[k * LANES + lane] -= sum;
        }
    }
}

#define RUN 16

/* One block of columns and its codebooks, as the header has them. */
typedef struct {
    int64_t groups, length, width;
    const float *upper, *main, *residual, *own;
    int64_t count, residual_count, own_count;
    const uint8_t *outlier;
    float *w, *e; /* [row of a vector][column][lane] */
} task;

EDGEPACK_INLINE void load_vectors(const task *t, const float *tile, int64_t first) {
    for (int64_t r = 0; r < t->length; r++) {
        for (int lane = 0; lane < LANES; lane++) {
            const int64_t group = first + lane < t->groups ? first + lane : t->groups - 1;
            const float *from = tile + (group * t->length + r) * t->width;
            for (int64_t k = 0; k < t->width; k++) t->w[(r * t->width + k) * LANES + lane] = from[k];
        }
    }
}

/* What rounding column `j` gives: indices, what the first book left and what is left in the end, [row][lane]. */
typedef struct {
    int32_t index[LANES], second[LANES];
    float after_first[MOST_LENGTH * LANES], x[MOST_LENGTH * LANES];
} column;

EDGEPACK_INLINE void round_column(const task *t, int64_t j, column *c) {
    const int is_own = t->own && t->outlier[j];
    const size_t bytes = (size_t)(t->length * LANES) * sizeof *c->x;
    for (int64_t r = 0; r < t->length; r++) {
        memcpy(c->x + r * LANES, t->w + (r * t->width + j) * LANES, LANES * sizeof *c->x);
    }
    take_nearest(is_own ? t->own : t->main, is_own ? t->own_count : t->count, t->length, c->x, c->index);
    memcpy(c->after_first, c->x, bytes);
    memset(c->second, 0, sizeof c->second);
    if (t->residual && !t->outlier[j]) take_nearest(t->residual, t->residual_count, t->length, c->x, c->second);
    const float pivot = t->upper ? t->upper[j * t->width + j] : 1.0f;
    for (int64_t r = 0; r < t->length; r++) {
        EACH_LANE t->e[(r * t->width + j) * LANES + lane] = c->x[r * LANES + lane] / pivot;
    }
}

EDGEPACK_INLINE void feed_back_rows(const task *t, int64_t start, int64_t stop, int64_t from, int64_t until) {
    const int64_t plane = t->width * LANES;
    for (int64_t r = 0; r < t->length; r++) {
        feed_back(t->w + r * plane, t->e + r * plane, t->upper, t->width, start, stop, from, until);
    }
}

EDGEPACK_CLONES void edgepack_feedback_book(const float *tile, int64_t groups, int64_t length, int64_t width,
                                            const float *upper, const float *main, int64_t count,
                                            const float *residual, int64_t residual_count, const float *own,
                                            int64_t own_count, const uint8_t *outlier, float *scratch, float *rounded,
                                            float *errors, int32_t *index, int32_t *residual_index, float *left) {
    const task t = {groups, length, width, upper, main, residual, own, count, residual_count, own_count, outlier,
                    scratch, scratch + length * width * LANES};
    column c;
    for (int64_t first = 0; first < groups; first += LANES) {
        load_vectors(&t, tile, first);
        for (int64_t start = 0; start < width; start += RUN) {
            const int64_t stop = start + RUN < width ? start + RUN : width;
            for (int64_t j = start; j < stop; j++) {
                round_column(&t, j, &c);
                for (int lane = 0; lane < LANES && first + lane < groups; lane++) {
                    const int64_t at = (first + lane) * width + j;
                    index[at] = c.index[lane];
                    residual_index[at] = c.second[lane];
                    for (int64_t r = 0; r < length; r++) {
                        const int64_t cell = ((first + lane) * length + r) * width + j, from = r * width + j;
                        left[at * length + r] = c.after_first[r * LANES + lane];
                        rounded[cell] = t.w[from * LANES + lane] - c.x[r * LANES + lane];
                        errors[cell] = t.e[from * LANES + lane];
                    }
                }
                if (upper) feed_back_rows(&t, j, j + 1, j + 1, stop);
            }
            if (upper) feed_back_rows(&t, start, stop, stop, width);
        }
    }
}

#define WIDENED 512

/* Pairs i < j once, and both orders from the sum; a piece of a row of H serves all groups while it is in cache. */
void edgepack_normal_equations(const int32_t *index, int64_t groups, int64_t columns, const double *weights,
                               const float *hessian, int64_t count, double *normal) {
    double h[WIDENED];
    for (int64_t i = 0; i < columns; i++) {
        for (int64_t start = i; start < columns; start += WIDENED) {
            const int64_t width = columns - start < WIDENED ? columns - start : WIDENED;
            for (int64_t j = 0; j < width; j++) h[j] = (double)hessian[i * columns + start + j];
            if (start == i) h[0] *= 0.5;
            for (int64_t g = 0; g < groups; g++) {
                const int32_t *at = index + g * columns + start;
                double *row = normal + index[g * columns + i] * count;
                const double weight = weights[g];
                for (int64_t j = 0; j < width; j++) row[at[j]] += weight * h[j];
            }
        }
    }
    for (int64_t a = 0; a < count; a++) {
        for (int64_t b = a; b < count; b++) {
            const double sum = normal[a * count + b] + normal[b * count + a];
            normal[a * count + b] = sum;
            normal[b * count + a] = sum;
        }
    }
}
