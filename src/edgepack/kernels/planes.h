/* Splits raw blocks into planes of one distribution and joins them again, by rows of a layout (packaging/coding).

   A block of `block_bytes` has fields; a column takes `count` symbols from a block, symbol i out of byte i of one or
   several fields, and writes the symbols of all blocks one behind the other. A part moves `width` bits, from bit `shift`
   of the field's byte to bit `position` of the symbol. Where it has a flip, the bits are inverted wherever bit
   `flip_bit` of byte i of the field at `flip_offset` is set; an earlier column holds that field whole. Every bit of a
   block is in one part. Eight bytes are moved at once, as a number: masks keep neighbours apart. */
#ifndef EDGEPACK_PLANES_H
#define EDGEPACK_PLANES_H

#include <stdint.h>

/* cffi */
/* One part. `stream` numbers the column's stream, `before` counts the symbols of a block in earlier columns of it;
   `first`: whether it is the first of its column, `opens`: the first of its field. Fields that share bytes share all of
   them. flip_offset is -1 where there is no flip. Blocks have at most 512 bytes. */
typedef struct {
    int32_t stream, before, count, offset, shift, width, position, flip_offset, flip_bit, first, opens;
} edgepack_part;

/* `raw` [blocks, block_bytes] to `streams`, each with blocks × its symbols a block. */
void edgepack_planes_split(const uint8_t *raw, int64_t blocks, int32_t block_bytes, const edgepack_part *parts,
                           int32_t n_parts, uint8_t *const *streams);

/* The inverse. */
void edgepack_planes_join(uint8_t *raw, int64_t blocks, int32_t block_bytes, const edgepack_part *parts,
                          int32_t n_parts, const uint8_t *const *streams);
/* cffi */

#endif
