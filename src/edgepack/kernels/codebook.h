/* Vectors and their nearest centroids: VPTQ's k-means, its sweep with error feedback, and its normal equations. */
#ifndef EDGEPACK_CODEBOOK_H
#define EDGEPACK_CODEBOOK_H

#include <stdint.h>

/* cffi */
/* The nearest of `count` centroids for each vector: the least |c|² / 2 - x·c, the first of equals.
   vectors: [n, length], length at most 16; centroids: [count, length + 1], the last number of each |c|² / 2; index: [n],
   written. */
void edgepack_nearest(const float *vectors, int64_t n, int64_t length, const float *centroids, int64_t count,
                      int32_t *index);

/* The same for vectors of which each 64 that follow one another lie close together (edgepack_leaf_order): centroids too far
   from all of them are left out before. scratch: [count, length + 2]. */
void edgepack_nearest_leaves(const float *vectors, int64_t n, int64_t length, const float *centroids, int64_t count,
                             float *scratch, int32_t *index);

/* Sums over the vectors of each centroid: mass Σw [count], sums Σw x [count, length], distortion Σw |x - c|² [count].
   All three are written; vectors in their order, in double precision. */
void edgepack_centroid_sums(const float *vectors, const float *weights, int64_t n, int64_t length, const float *centroids,
                            int64_t count, const int32_t *index, double *mass, double *sums, double *distortion);

/* Round the columns of a block from left to right, each error made good by the columns of the block to its right.

   A vector is `length` consecutive rows of one column. tile: [groups * length, width]; upper: [width, width], of
   the factor, or NULL for no feedback. main, residual, own: centroids as above; residual, or NULL, rounds what
   main leaves; own, or NULL, in place of both in columns whose `outlier` [width] is not 0.
   scratch: 2 · length · width · 16 floats. rounded, errors: [groups * length, width]; index, residual_index: [groups, width] (residual_index 0 where there is no
   residual); left: [groups, width, length], what the first book left. All written. */
void edgepack_feedback_book(const float *tile, int64_t groups, int64_t length, int64_t width, const float *upper,
                            const float *main, int64_t count, const float *residual, int64_t residual_count,
                            const float *own, int64_t own_count, const uint8_t *outlier, float *scratch, float *rounded,
                            float *errors, int32_t *index, int32_t *residual_index, float *left);

/* normal[a, b] = Σ weight · H[i, j] over all columns i with index a and j with index b to normal[a, b], over all groups.
   index: [groups, columns], below `count`; weights: [groups]; hessian: [columns, columns], symmetric;
   normal: [count, count], zeros before. Sums are of doubles. */
void edgepack_normal_equations(const int32_t *index, int64_t groups, int64_t columns, const double *weights,
                               const float *hessian, int64_t count, double *normal);
/* cffi */

#endif
