/* Error feedback onto a grid that is known: GPTQ's inner loop for ggml's types. */
#ifndef EDGEPACK_FEEDBACK_GRID_H
#define EDGEPACK_FEEDBACK_GRID_H

#include <stdint.h>

/* cffi */
/* Round columns first … last - 1 of a block of columns, from left to right, each error made good by the columns of the block
   to its right:

       q = round((w - offset) / scale), e = (w - (scale q + offset)) / U[j, j], w_k -= e U[j, k] for k > j.

   tile: [rows, width], fed back in place, the rounded columns left as feedback made them. upper: [width, width], of the
   factor. scale, offset: [rows, groups], `group` columns each from `first` on; a scale of 0 has only its offset.
   quants: [rows, width]; errors: [rows, width]; both written in those columns only. */
void edgepack_feedback_grid(float *tile, int64_t rows, int64_t width, int64_t first, int64_t last, const float *upper,
                            const float *scale, const float *offset, int64_t group, float lowest, float highest,
                            int8_t *quants, float *errors);
/* cffi */

#endif
