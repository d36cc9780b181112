/* The archive's coder of integers on grids: interleaved rANS with tables that learn (FORMAT.md, codec 16).

   Symbol i of a matrix [rows, columns], row-major, is in lane i mod `lanes`; it is index + reach, 0 … 2 reach. Its table
   is class + 48 q: class = row class + column class - 40 held to 0 … 47, q the quantiser of its column's state. A row
   class of 128 and more, where there are paths, is that of a row that stands aside (q is 0, states pass it by). Integer
   state only: the same bytes on every machine. Tables change after 2048 symbols, then whenever half as many as before
   were added, always at a multiple of the lanes.

   Sources: Duda, arXiv 1311.2540 (rANS); Giesen, arXiv 1402.3392 (interleaving). */
#ifndef EDGEPACK_GRID_CODER_H
#define EDGEPACK_GRID_CODER_H

#include <stdint.h>

#define EDGEPACK_GRID_CLASSES 48
#define EDGEPACK_GRID_OFFSET 40
#define EDGEPACK_GRID_ASIDE 128

/* Whether an odd number of bits is set. */
static inline uint8_t edgepack_parity(uint8_t bits) {
    bits = (uint8_t)(bits ^ bits >> 4);
    bits = (uint8_t)(bits ^ bits >> 2);
    return (uint8_t)((bits ^ bits >> 1) & 1);
}

/* cffi */
/* A matrix that is coded, its tables and its trellis. Pointers: `first` [2, 48, 2 reach + 1] frequencies that tables
   begin with, each at least 1, together 65536 (the second half is read only where there are paths); `row_classes`
   [rows]; `column_classes` [columns]. Of a trellis (states > 1, a power of two) a state's quantiser is the parity of its
   bits in `quantiser_mask`, its tap that of those in `tap_mask`.
   1 ≤ lanes ≤ 256, 1 ≤ reach ≤ 128, 1 ≤ states ≤ 256, path_rows ≥ 1. */
typedef struct {
    int64_t rows, columns;
    int32_t lanes, reach, learns, states, path_rows, quantiser_mask, tap_mask;
    const uint16_t *first;
    const uint8_t *row_classes, *column_classes;
} edgepack_grid;

/* Decode `rows` × `columns` bytes into `out`, row-major: integer × multiples[column] + zero, modulo 256.
   `lane_states` [lanes] and `words` [n_words] are read. 0: done; 1: words end too early; 2: states do not end where
   they began or words are left over; -1: no memory. */
int32_t edgepack_grid_decode(const edgepack_grid *grid, const uint8_t *multiples, int32_t zero,
                             const uint32_t *lane_states, const uint16_t *words, int64_t n_words, uint8_t *out);

/* The inverse: `indices` [rows, columns] within ±reach, `quantisers` [rows, columns] (read where there are paths).
   Fills `lane_states` [lanes] and the END of `words` [rows × columns]; returns how many words, -1 for no memory. */
int64_t edgepack_grid_encode(const edgepack_grid *grid, const int16_t *indices, const uint8_t *quantisers,
                             uint32_t *lane_states, uint16_t *words);
/* cffi */

#endif
