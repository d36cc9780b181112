/* Encoders of ggml's types whose weights are scale times one of 16 uneven levels: IQ4_NL, IQ4_XS. */
#ifndef EDGEPACK_ENCODE_TABLE_H
#define EDGEPACK_ENCODE_TABLE_H

#include <stdint.h>

/* cffi */
/* As the functions of encode_affine.h. */
void edgepack_encode_iq4_nl(const float *rows, int64_t blocks, int64_t columns, const float *importance, uint8_t *out);
void edgepack_encode_iq4_xs(const float *rows, int64_t blocks, int64_t columns, const float *importance, uint8_t *out);
/* cffi */

#endif
