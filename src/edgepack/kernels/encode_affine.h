/* Encoders of ggml's types whose weights are scale · q + floor with q from 0: Q2_K, Q4_K, Q5_K, Q4_1, Q5_1. */
#ifndef EDGEPACK_ENCODE_AFFINE_H
#define EDGEPACK_ENCODE_AFFINE_H

#include <stdint.h>

/* cffi */
/* Rows to blocks of one type, as ggml-common.h lays them out.
   rows: [blocks · size of a block], whole rows of `columns` weights; importance: [columns] or NULL; out: blocks of the
   type's bytes. */
void edgepack_encode_q2_k(const float *rows, int64_t blocks, int64_t columns, const float *importance, uint8_t *out);
void edgepack_encode_q4_k(const float *rows, int64_t blocks, int64_t columns, const float *importance, uint8_t *out);
void edgepack_encode_q5_k(const float *rows, int64_t blocks, int64_t columns, const float *importance, uint8_t *out);
void edgepack_encode_q4_1(const float *rows, int64_t blocks, int64_t columns, const float *importance, uint8_t *out);
void edgepack_encode_q5_1(const float *rows, int64_t blocks, int64_t columns, const float *importance, uint8_t *out);
/* cffi */

#endif
