/* What the archive's grid coder must know of a matrix of integers before it codes it: divisors, paths, magnitudes.

   Matrices are [rows, columns], row-major. A trellis is given by masks, as in grid_coder.h; paths begin at rows that are
   multiples of `path_rows`. */
#ifndef EDGEPACK_GRID_SYMBOLS_H
#define EDGEPACK_GRID_SYMBOLS_H

#include <stdint.h>

/* cffi */
/* `divisors` [columns]: the greatest common divisor of each column, 0 where all its integers are 0. */
void edgepack_grid_divisors(const int16_t *integers, int64_t rows, int64_t columns, int16_t *divisors);

/* `aside` [rows]: 1 where a row has no odd integer among the columns with asked[column] = 1. */
void edgepack_grid_aside(const int16_t *integers, int64_t rows, int64_t columns, const uint8_t *asked, uint8_t *aside);

/* Follow the paths of integers divided by divisors[column] ≥ 1, which divides them. Fills `quantisers` [rows, columns],
   `indices` [rows, columns] = (integer - quantiser) >> 1, and `keeps` [columns]: 1 where a column keeps to the code.
   `states_of` [columns] is room. */
void edgepack_trellis_follow(const int16_t *integers, int64_t rows, int64_t columns, const int16_t *divisors,
                             const uint8_t *aside, const uint8_t *first_states, int32_t path_rows,
                             int32_t quantiser_mask, int32_t tap_mask, int32_t last_state, uint8_t *states_of,
                             uint8_t *quantisers, int16_t *indices, uint8_t *keeps);

/* Sums of |scale × index + quantiser| by row and by column; returns the greatest |index|. `quantisers` may be null. */
int32_t edgepack_grid_magnitudes(const int16_t *indices, const uint8_t *quantisers, int64_t rows, int64_t columns,
                                 int32_t scale, int64_t *row_sums, int64_t *column_sums);

/* Adds to `counts` [2, 48, 2 reach + 1] every symbol of the rows 0, step, 2 step … by quantiser and class. */
void edgepack_grid_count(const int16_t *indices, const uint8_t *quantisers, int64_t rows, int64_t columns, int64_t step,
                         const uint8_t *row_classes, const uint8_t *column_classes, int32_t reach, int64_t *counts);
/* cffi */

#endif
