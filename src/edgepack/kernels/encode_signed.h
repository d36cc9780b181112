/* Encoders of ggml's types whose weights are scale · q with signed q: Q3_K, Q6_K, Q4_0, Q5_0, Q8_0. */
#ifndef EDGEPACK_ENCODE_SIGNED_H
#define EDGEPACK_ENCODE_SIGNED_H

#include <stdint.h>

/* cffi */
/* As the functions of encode_affine.h. */
void edgepack_encode_q3_k(const float *rows, int64_t blocks, int64_t columns, const float *importance, uint8_t *out);
void edgepack_encode_q6_k(const float *rows, int64_t blocks, int64_t columns, const float *importance, uint8_t *out);
void edgepack_encode_q4_0(const float *rows, int64_t blocks, int64_t columns, const float *importance, uint8_t *out);
void edgepack_encode_q5_0(const float *rows, int64_t blocks, int64_t columns, const float *importance, uint8_t *out);
void edgepack_encode_q8_0(const float *rows, int64_t blocks, int64_t columns, const float *importance, uint8_t *out);
/* cffi */

#endif
