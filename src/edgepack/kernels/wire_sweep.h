/* Puts the rows of a matrix on a lattice, column after column, with errors fed back: one tile of rows a call.

   Column j of row r becomes  n · step,  step = steps[r] · factors[r][j / group] · multiples[j],  where n is the nearest
   integer or the cheapest path's of a trellis along the rows of a lane. Its error e = (w - n · step) / U[j][j] moves
   every later column k by -e · U[j][k], H⁻¹ = UᵀU (see edgepack.quant.feedback).

   e and U are rounded to 12 significant bits before they are multiplied. Their product is then exact in float32, so that
   a fused multiply-add and a product followed by a sum give the same bits: results depend neither on the instruction
   set nor on how loops are cut. What the twelve bits cost, errors at the optimum of a quadratic form, is second order.

   Before a panel of columns is rounded, the factor of each group becomes the one that costs least of those on its ladder,
   given the values that earlier errors have left:  Σ c · (r² - 2 ln r) + Σ max(0, |x| - r · limit)²,  r the factor over
   the one that was asked for, x the values in the steps asked for, c the error of a rounding; the logarithm is what the
   larger steps save in bits, so that r = 1 is best where all fits. Values that errors within the panel push more than a
   step beyond their limit raise it further.

   A tile has 16 lanes side by side and `length` positions; slot [position][lane]. 64 slots are a panel. */
#ifndef EDGEPACK_WIRE_SWEEP_H
#define EDGEPACK_WIRE_SWEEP_H

#include <stdint.h>

/* cffi */
typedef struct {
    int32_t columns;             /* of the matrix */
    int32_t group;               /* columns that share a factor: divides 32 and columns */
    int32_t states;              /* of the trellis; 0: any integers; 1: even ones, for rows that stand aside */
    int32_t index_mask;          /* parity of state & mask: what turns an index's lowest bit into the step taken */
    int32_t quantiser_mask;      /* parity of state & mask: a state's quantiser */
    int32_t most_factor;         /* the greatest factor that the host holds */
    int32_t rungs;               /* of a factor's ladder in an octave: 1 for powers of two, 8 for 8, 9 … 16, 18 … */
    float rounding;              /* mean squared error of a weight, in squared steps: 1/12, of a trellis .264 */
    float slope;                 /* squared steps that a bit is worth; 0 where only errors count */
    float pull;                  /* towards zero, see edgepack.quant.wire.grid */
    const float *feedback;       /* panel p = 0 …, [32 · (p + 1)][32]: -U[j][32 · p + c] of 12 bits; 0 beyond */
    const float *diagonal;       /* [columns]: U[j][j] */
    const int32_t *multiples;    /* [columns] */
    const int32_t *limits;       /* [columns]: greatest |n|, 1 to 32767 / multiple */
    const float *levels;         /* [columns / group]: one over the mean of costs · (steps · factors)² */
    const float *rate_columns;   /* [columns]: square of a column's relative scale */
    const float *rate_noise;     /* [columns]: squares that feedback adds, over those of errors */
    const float *rate_rows;      /* [rows]: mean square of a row, in steps */
    const float *normalisers;    /* [2][121]: bits, for scales 2^-6, 2^(-6 + 1/8) … 2^9 */
    const float *logs;           /* [32768]: ln(1 + n) */
    const float *weights;        /* [rows][columns] */
    const float *steps;          /* [rows] */
    const float *costs;          /* [rows]: of a squared error */
    int32_t *factors;            /* [rows][columns / group]: raised along the ladder where integers pass their limits */
    int16_t *quants;             /* [rows][columns], written: n · multiple */
    double *losses;              /* [rows], written: sum of e² */
} edgepack_wire_matrix;

/* How many instruction sets this processor can choose from; the last is the fastest. */
int32_t edgepack_wire_variants(void);

/* Floats of scratch that a tile needs. */
int64_t edgepack_wire_scratch(int32_t columns, int32_t length, int32_t states);

/* Sweeps a tile; rows [length][16] are numbers of rows, or -1, and `length` is a multiple of 4.
   Of a trellis, a lane's rows come first and -1 behind them. Returns how many rows do not fit even with the greatest
   factor, or -1 for arguments that no caller should give. */
int64_t edgepack_wire_sweep(
    const edgepack_wire_matrix *matrix, const int32_t *rows, int32_t length, float *scratch, int32_t variant);
/* cffi */

#endif
