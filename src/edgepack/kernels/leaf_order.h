/* Vectors in an order in which those that follow one another lie close together. */
#ifndef EDGEPACK_LEAF_ORDER_H
#define EDGEPACK_LEAF_ORDER_H

#include <stdint.h>

/* cffi */
/* Halve the vectors at the median of their widest coordinate, and the halves again, down to 64 (a k-d tree's leaves, of
   which all but the last are full). vectors: [n, length], finite, length at most 16; order: [n], numbers of vectors. */
void edgepack_leaf_order(const float *vectors, int64_t n, int64_t length, int32_t *order);
/* cffi */

#endif
