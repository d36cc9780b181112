/* Rows of a matrix rounded into blocks with scales so that their layer's outputs change least: feedback, then descent. */
#ifndef EDGEPACK_REFINE_ROWS_H
#define EDGEPACK_REFINE_ROWS_H

#include <stdint.h>

/* cffi */
/* What rows are rounded under; columns in the order in which they are rounded, those of a group side by side.

   A weight becomes step · scale · q + floor_step · floor: step and floor_step of its unit (a block), scale and floor of
   its group, q an integer or one of ggml's uneven levels. H = E[x xᵀ], U the upper factor of H⁻¹ = UᵀU.

   columns, group (16 or 32), units (of a row): counts. affine: 1 where there are floors. uneven: 1 for levels.
   lowest, highest: of q. scale_low, scale_high: of scales, integers; both 0 where a scale is a half (its step is 1).
   floor_high: of floors, integers from 0; 0 where a floor is a half. sweeps: of descent, at most.
   rated: 1 where bits count. zero: the q that takes fewest. scale_grain, floor_grain: scales and floors are multiples of
   them, lowest and greatest included; 1 where they are halves. digits: of a half behind its first,
   where bits count; last_digit: 2^-digits.
   rates: of a bit, in e H eᵀ, [rows].
   weights: [rows, columns]. upper, curvature: U and H as panels [groups, columns, group]. local: [groups, group, group], the upper factor
   of the inverse of each group's part of H. unit_of: [groups].
   steps, floor_steps: [rows, units]; scales, floors: [rows, groups]; read and written. quants: [rows, columns], written. */
typedef struct {
    int64_t columns, group, units, affine, uneven, sweeps, rated, digits;
    float lowest, highest, scale_low, scale_high, floor_high, zero, scale_grain, floor_grain, last_digit;
    const float *weights, *upper, *curvature, *local, *rates;
    const int32_t *unit_of;
    float *steps, *floor_steps, *scales, *floors;
    int8_t *quants;
} edgepack_refine_matrix;

/* Floats of scratch that `edgepack_refine_rows` needs. */
int64_t edgepack_refine_scratch(int64_t columns, int64_t group, int64_t units);

/* Round rows `first` … `first` + `count` - 1. A row's result depends on nothing but the row.

   returns: 0; -1 where the sizes do not fit each other. */
int32_t edgepack_refine_rows(const edgepack_refine_matrix *matrix, int64_t first, int64_t count, float *scratch);
/* cffi */

#endif
