#include "grid_symbols.h"

#include <stdlib.h>
#include <string.h>

#include "abi.h"
#include "grid_coder.h"

static int32_t gcd(int32_t a, int32_t b) {
    while (b) {
        int32_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

void edgepack_grid_divisors(const int16_t *integers, int64_t rows, int64_t columns, int16_t *divisors) {
    memset(divisors, 0, (size_t)columns * sizeof *divisors);
    for (int64_t row = 0; row < rows; row++) {
        const int16_t *values = integers + row * columns;
        for (int64_t column = 0; column < columns; column++)
            if (divisors[column] != 1) divisors[column] = (int16_t)gcd(abs(values[column]), divisors[column]);
    }
}

EDGEPACK_CLONES
void edgepack_grid_aside(const int16_t *integers, int64_t rows, int64_t columns, const uint8_t *asked, uint8_t *aside) {
    for (int64_t row = 0; row < rows; row++) {
        const int16_t *values = integers + row * columns;
        int16_t odd = 0;
        for (int64_t column = 0; column < columns; column++) odd |= (int16_t)(values[column] & asked[column]);
        aside[row] = !(odd & 1);
    }
}

EDGEPACK_CLONES
static void follow_row(const int16_t *restrict integers, int64_t columns, const int16_t *restrict divisors, uint8_t mask,
                       const uint8_t *restrict states, uint8_t *restrict quantisers, int16_t *restrict indices,
                       uint8_t *restrict keeps) {
    for (int64_t column = 0; column < columns; column++) {
        int16_t value = divisors[column] == 1 ? integers[column] : (int16_t)(integers[column] / divisors[column]);
        uint8_t quantiser = edgepack_parity(states[column] & mask);
        keeps[column] &= ((uint8_t)value ^ quantiser ^ 1) & 1;
        quantisers[column] = quantiser;
        indices[column] = (int16_t)((value - quantiser) >> 1);
    }
}

EDGEPACK_CLONES
static void step_row(const int16_t *restrict indices, int64_t columns, uint8_t tap_mask, uint8_t last,
                     uint8_t *restrict states) {
    for (int64_t column = 0; column < columns; column++) {
        uint8_t step = (uint8_t)(indices[column] & 1) ^ edgepack_parity(states[column] & tap_mask);
        states[column] = (uint8_t)((states[column] << 1 | step) & last);
    }
}

void edgepack_trellis_follow(const int16_t *integers, int64_t rows, int64_t columns, const int16_t *divisors,
                             const uint8_t *aside, const uint8_t *first_states, int32_t path_rows,
                             int32_t quantiser_mask, int32_t tap_mask, int32_t last_state, uint8_t *states_of,
                             uint8_t *quantisers, int16_t *indices, uint8_t *keeps) {
    memset(keeps, 1, (size_t)columns);
    for (int64_t row = 0; row < rows; row++) {
        int64_t at = row * columns;
        if (row % path_rows == 0) memcpy(states_of, first_states, (size_t)columns);
        /* A row that stands aside has quantiser 0 throughout; its states are not needed behind it, but kept. */
        follow_row(integers + at, columns, divisors, aside[row] ? 0 : (uint8_t)quantiser_mask, states_of,
                   quantisers + at, indices + at, keeps);
        if (!aside[row]) step_row(indices + at, columns, (uint8_t)tap_mask, (uint8_t)last_state, states_of);
    }
}

EDGEPACK_CLONES
int32_t edgepack_grid_magnitudes(const int16_t *indices, const uint8_t *quantisers, int64_t rows, int64_t columns,
                                 int32_t scale, int64_t *row_sums, int64_t *column_sums) {
    int32_t reach = 0;
    memset(column_sums, 0, (size_t)columns * sizeof *column_sums);
    for (int64_t row = 0; row < rows; row++) {
        const int16_t *values = indices + row * columns;
        const uint8_t *chosen = quantisers ? quantisers + row * columns : NULL;
        int64_t sum = 0;
        for (int64_t column = 0; column < columns; column++) {
            int32_t magnitude = abs(scale * values[column] + (chosen ? chosen[column] : 0)), index = abs(values[column]);
            sum += magnitude;
            column_sums[column] += magnitude;
            reach = index > reach ? index : reach;
        }
        row_sums[row] = sum;
    }
    return reach;
}

void edgepack_grid_count(const int16_t *indices, const uint8_t *quantisers, int64_t rows, int64_t columns, int64_t step,
                         const uint8_t *row_classes, const uint8_t *column_classes, int32_t reach, int64_t *counts) {
    int64_t length = 2 * (int64_t)reach + 1;
    for (int64_t row = 0; row < rows; row += step) {
        for (int64_t column = 0; column < columns; column++) {
            int64_t at = row * columns + column;
            int32_t class = row_classes[row] + column_classes[column] - EDGEPACK_GRID_OFFSET;
            class = class < 0 ? 0 : class >= EDGEPACK_GRID_CLASSES ? EDGEPACK_GRID_CLASSES - 1 : class;
            if (quantisers) class += quantisers[at] * EDGEPACK_GRID_CLASSES;
            counts[class * length + indices[at] + reach]++;
        }
    }
}
