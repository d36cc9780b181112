#include "grid_coder.h"

#include <stdlib.h>
#include <string.h>

#include "abi.h"

enum {
    TOTAL = 1 << 16,     /* a table's frequencies add up to this; lane states lie in [TOTAL, 2^32) */
    FIRST_LESSON = 2048, /* symbols before tables first learn */
    COUNTED = 64,        /* what a symbol adds to its count: a table begins as TOTAL / 64 symbols seen before */
    BUCKET_BITS = 10,    /* of a slot: its bucket names the first symbol that reaches into it */
    BUCKET_SHIFT = 16 - BUCKET_BITS,
    MOST_SYMBOLS = 257,
    TABLES = 2 * EDGEPACK_GRID_CLASSES,
};

/* Symbol s of a table has the slots [start, start + frequency); `found` counts it since the last lesson. */
typedef struct {
    uint16_t start, frequency;
    uint32_t found;
} Cell;

/* Frequencies of one class and quantiser. A bucket holds a byte, so symbol 256 is found from 255 on. */
typedef struct {
    uint8_t bucket[1 << BUCKET_BITS];
    Cell cells[MOST_SYMBOLS];
    uint64_t seen[MOST_SYMBOLS];
    uint8_t used;
} Table;

/* Coding in progress: `next` counts symbols. */
typedef struct {
    const edgepack_grid *grid;
    Table *tables;
    uint8_t *classes, *keys, *symbols, *states; /* of the row at hand, [columns]; a key is the number of a table */
    int64_t lesson_end, next, row, column;
    int32_t lane, lessons;
} Coder;

static void set_frequencies(Table *table, int32_t length, const uint64_t *counts) {
    uint32_t at = 0, round_up = (1u << BUCKET_SHIFT) - 1;
    for (int32_t symbol = 0; symbol < length; symbol++) {
        uint32_t stop = at + (uint32_t)counts[symbol];
        table->cells[symbol] = (Cell){(uint16_t)at, (uint16_t)counts[symbol], 0};
        /* buckets whose first slot lies in [at, stop) */
        uint32_t from = (at + round_up) >> BUCKET_SHIFT, to = (stop + round_up) >> BUCKET_SHIFT;
        if (to > from) memset(table->bucket + from, symbol < 255 ? symbol : 255, to - from);
        at = stop;
    }
}

/* Frequencies out of counts: count × (TOTAL - n) / all, rounded down, + 1; what is missing to TOTAL goes to the middle.
   A table that was not used since its last lesson would come out as it is. */
static void relearn(Table *table, int32_t length, int32_t middle, int first_lesson) {
    uint64_t all = 0, free = TOTAL - (uint64_t)length, left = TOTAL, found = 0, counts[MOST_SYMBOLS];
    for (int32_t symbol = 0; symbol < length; symbol++) {
        found += table->cells[symbol].found;
        table->seen[symbol] += (uint64_t)table->cells[symbol].found * COUNTED;
        all += table->seen[symbol];
    }
    if (!found && !first_lesson) return;
    for (int32_t symbol = 0; symbol < length; symbol++) {
        counts[symbol] = table->seen[symbol] * free / all + 1;
        left -= counts[symbol];
    }
    counts[middle] += left;
    set_frequencies(table, length, counts);
}

static int is_aside(const edgepack_grid *grid, int64_t row) {
    return grid->states > 1 && grid->row_classes[row] >= EDGEPACK_GRID_ASIDE;
}

static int32_t row_class(const edgepack_grid *grid, int64_t row) {
    int32_t stored = grid->row_classes[row];
    return grid->states > 1 ? stored % EDGEPACK_GRID_ASIDE : stored;
}

static uint8_t class_of(int32_t row, int32_t column) {
    int32_t sum = row + column - EDGEPACK_GRID_OFFSET;
    return (uint8_t)(sum < 0 ? 0 : sum >= EDGEPACK_GRID_CLASSES ? EDGEPACK_GRID_CLASSES - 1 : sum);
}

/* Marks the tables that any symbol may have: the others are never made. */
static void mark_used(const edgepack_grid *grid, Table *tables) {
    uint8_t rows[256] = {0}, columns[256] = {0};
    for (int64_t row = 0; row < grid->rows; row++) rows[row_class(grid, row)] = 1;
    for (int64_t column = 0; column < grid->columns; column++) columns[grid->column_classes[column]] = 1;
    for (int32_t row = 0; row < 256; row++)
        for (int32_t column = 0; rows[row] && column < 256; column++)
            if (columns[column]) tables[class_of(row, column)].used = 1;
    for (int32_t class = 0; grid->states > 1 && class < EDGEPACK_GRID_CLASSES; class++)
        tables[EDGEPACK_GRID_CLASSES + class].used = tables[class].used;
}

static Table *make_tables(const edgepack_grid *grid) {
    int32_t length = 2 * grid->reach + 1;
    Table *tables = calloc(TABLES, sizeof *tables);
    if (!tables) return NULL;
    mark_used(grid, tables);
    for (int32_t number = 0; number < TABLES; number++) {
        Table *table = tables + number;
        const uint16_t *first = grid->first + (int64_t)number * length;
        for (int32_t symbol = 0; table->used && symbol < length; symbol++) table->seen[symbol] = first[symbol];
        if (table->used) set_frequencies(table, length, table->seen);
    }
    return tables;
}

static int begin(Coder *coder, const edgepack_grid *grid) {
    *coder = (Coder){.grid = grid, .tables = make_tables(grid), .classes = malloc(4 * (size_t)grid->columns)};
    coder->keys = coder->classes + grid->columns;
    coder->symbols = coder->keys + grid->columns;
    coder->states = coder->symbols + grid->columns;
    return coder->tables && coder->classes;
}

static void end(Coder *coder) {
    free(coder->tables);
    free(coder->classes);
}

EDGEPACK_CLONES
static void set_classes(int32_t row, const uint8_t *restrict columns, int64_t count, uint8_t *restrict classes) {
    for (int64_t column = 0; column < count; column++) {
        int16_t sum = (int16_t)(row + columns[column] - EDGEPACK_GRID_OFFSET);
        sum = sum < 0 ? 0 : sum;
        classes[column] = (uint8_t)(sum > EDGEPACK_GRID_CLASSES - 1 ? EDGEPACK_GRID_CLASSES - 1 : sum);
    }
}

EDGEPACK_CLONES
static void add_quantisers(const uint8_t *restrict classes, const uint8_t *restrict states, int64_t count, uint8_t mask,
                           uint8_t *restrict keys) {
    for (int64_t column = 0; column < count; column++)
        keys[column] = (uint8_t)(classes[column] + EDGEPACK_GRID_CLASSES * edgepack_parity(states[column] & mask));
}

/* Tables of the row at hand. */
static void begin_row(Coder *coder) {
    const edgepack_grid *grid = coder->grid;
    int32_t class = row_class(grid, coder->row);
    if (!coder->row || class != row_class(grid, coder->row - 1))
        set_classes(class, grid->column_classes, grid->columns, coder->classes);
    if (grid->states > 1 && coder->row % grid->path_rows == 0)
        for (int64_t column = 0; column < grid->columns; column++)
            coder->states[column] = (uint8_t)(column & (grid->states - 1));
    if (grid->states > 1 && !is_aside(grid, coder->row))
        add_quantisers(coder->classes, coder->states, grid->columns, (uint8_t)grid->quantiser_mask, coder->keys);
    else
        memcpy(coder->keys, coder->classes, (size_t)grid->columns);
}

static void learn(Coder *coder, int first_lesson) {
    const edgepack_grid *grid = coder->grid;
    for (int32_t number = 0; number < TABLES; number++)
        if (coder->tables[number].used)
            relearn(coder->tables + number, 2 * grid->reach + 1, grid->reach, first_lesson);
}

/* The place of the next lesson, after `from` symbols. */
static int64_t lesson_after(const edgepack_grid *grid, int64_t from) {
    int64_t count = grid->rows * grid->columns, after = from * 3 / 2;
    if (!grid->learns) return count;
    if (after < FIRST_LESSON) after = FIRST_LESSON;
    after = (after + grid->lanes - 1) / grid->lanes * grid->lanes;
    return after < count ? after : count;
}

/* How many symbols follow that share row, tables and a run of lanes; 0 at the end of the matrix. */
static int64_t next_run(Coder *coder) {
    const edgepack_grid *grid = coder->grid;
    if (coder->next == grid->rows * grid->columns) return 0;
    if (coder->next == coder->lesson_end) {
        if (coder->next) learn(coder, coder->lessons++ == 0);
        coder->lesson_end = lesson_after(grid, coder->next);
    }
    int64_t run = coder->lesson_end - coder->next;
    if (run > grid->columns - coder->column) run = grid->columns - coder->column;
    if (run > grid->lanes - coder->lane) run = grid->lanes - coder->lane;
    return run;
}

/* Whether the row is at its end. */
static int move_on(Coder *coder, int64_t run) {
    coder->next += run;
    coder->lane += (int32_t)run;
    if (coder->lane == coder->grid->lanes) coder->lane = 0;
    coder->column += run;
    if (coder->column < coder->grid->columns) return 0;
    coder->column = 0;
    coder->row++;
    return 1;
}

/* Takes `run` symbols from as many lanes. Words behind `word` must be readable for one a symbol. */
static inline const uint16_t *take(Table *restrict tables, int64_t run, uint32_t *restrict lanes,
                                   const uint16_t *restrict word, const uint8_t *restrict keys,
                                   uint8_t *restrict symbols) {
    for (int64_t i = 0; i < run; i++) {
        Table *table = tables + keys[i];
        uint32_t x = lanes[i], slot = x & 0xFFFF;
        Cell *cell = table->cells + table->bucket[slot >> BUCKET_SHIFT];
        while (slot - cell->start >= cell->frequency) cell++;
        x = cell->frequency * (x >> 16) + slot - cell->start;
        cell->found++;
        symbols[i] = (uint8_t)(cell - table->cells); /* 256 becomes 0: bytes are counted modulo 256 */
        uint32_t needy = x < TOTAL; /* no branch: whether a lane needs a word is as good as random */
        lanes[i] = x << (needy << 4) | (*word & (0 - needy));
        word += needy;
    }
    return word;
}

EDGEPACK_CLONES
static void write_row(const uint8_t *restrict symbols, int64_t count, uint8_t reach, const uint8_t *restrict multiples,
                      uint8_t zero, uint8_t *restrict out) {
    for (int64_t column = 0; column < count; column++)
        out[column] = (uint8_t)((uint8_t)(symbols[column] - reach) * multiples[column] + zero);
}

EDGEPACK_CLONES
static void write_row_of_paths(const uint8_t *restrict symbols, int64_t count, uint8_t reach,
                               const uint8_t *restrict multiples, uint8_t zero, uint8_t mask,
                               const uint8_t *restrict states, uint8_t *restrict out) {
    for (int64_t column = 0; column < count; column++) {
        uint8_t integer = (uint8_t)(2 * (uint8_t)(symbols[column] - reach) + edgepack_parity(states[column] & mask));
        out[column] = (uint8_t)(integer * multiples[column] + zero);
    }
}

EDGEPACK_CLONES
static void step_states(const uint8_t *restrict symbols, int64_t count, uint8_t reach, uint8_t tap_mask, uint8_t last,
                        uint8_t *restrict states) {
    for (int64_t column = 0; column < count; column++) {
        uint8_t step = (uint8_t)((symbols[column] ^ reach) & 1) ^ edgepack_parity(states[column] & tap_mask);
        states[column] = (uint8_t)((states[column] << 1 | step) & last);
    }
}

/* Integers of the row that was taken, and the states behind it. */
static void end_row(Coder *coder, int64_t row, const uint8_t *multiples, uint8_t zero, uint8_t *out) {
    const edgepack_grid *grid = coder->grid;
    uint8_t reach = (uint8_t)grid->reach, mask = is_aside(grid, row) ? 0 : (uint8_t)grid->quantiser_mask;
    if (grid->states <= 1) {
        write_row(coder->symbols, grid->columns, reach, multiples, zero, out);
        return;
    }
    write_row_of_paths(coder->symbols, grid->columns, reach, multiples, zero, mask, coder->states, out);
    if (!is_aside(grid, row))
        step_states(coder->symbols, grid->columns, reach, (uint8_t)grid->tap_mask, (uint8_t)(grid->states - 1),
                    coder->states);
}

static int32_t decode_all(Coder *coder, const uint8_t *multiples, int32_t zero, uint32_t *lanes, const uint16_t *word,
                          const uint16_t *words_end, uint8_t *out) {
    const edgepack_grid *grid = coder->grid;
    for (int64_t run; (run = next_run(coder)) > 0;) {
        int64_t row = coder->row, column = coder->column;
        if (column == 0) begin_row(coder);
        word = take(coder->tables, run, lanes + coder->lane, word, coder->keys + column, coder->symbols + column);
        if (word > words_end) return 1;
        if (move_on(coder, run)) end_row(coder, row, multiples, (uint8_t)zero, out + row * grid->columns);
    }
    for (int32_t lane = 0; lane < grid->lanes; lane++)
        if (lanes[lane] != TOTAL) return 2;
    return word == words_end ? 0 : 2;
}

int32_t edgepack_grid_decode(const edgepack_grid *grid, const uint8_t *multiples, int32_t zero,
                             const uint32_t *lane_states, const uint16_t *words, int64_t n_words, uint8_t *out) {
    Coder coder;
    int32_t problem = -1;
    /* Zeros behind the words: a run takes at most a word a lane before their end is checked. */
    uint16_t *padded = calloc((size_t)(n_words + grid->lanes + 1), sizeof *padded);
    uint32_t *lanes = malloc((size_t)grid->lanes * sizeof *lanes);
    if (begin(&coder, grid) && padded && lanes) {
        if (n_words) memcpy(padded, words, (size_t)n_words * sizeof *padded);
        memcpy(lanes, lane_states, (size_t)grid->lanes * sizeof *lanes);
        problem = decode_all(&coder, multiples, zero, lanes, padded, padded + n_words, out);
    }
    end(&coder);
    free(padded);
    free(lanes);
    return problem;
}

/* Start and frequency (start | frequency << 16) of every symbol under the tables of its time. */
static void look_up_all(Coder *coder, const int16_t *indices, const uint8_t *quantisers, uint32_t *found) {
    const edgepack_grid *grid = coder->grid;
    for (int64_t run; (run = next_run(coder)) > 0; move_on(coder, run)) {
        if (coder->column == 0 && (!coder->row || row_class(grid, coder->row) != row_class(grid, coder->row - 1)))
            set_classes(row_class(grid, coder->row), grid->column_classes, grid->columns, coder->classes);
        const uint8_t *classes = coder->classes + coder->column;
        for (int64_t i = 0; i < run; i++) {
            int64_t at = coder->next + i;
            int32_t key = classes[i] + (grid->states > 1 ? quantisers[at] * EDGEPACK_GRID_CLASSES : 0);
            Cell *cell = coder->tables[key].cells + indices[at] + grid->reach;
            found[at] = cell->start | (uint32_t)cell->frequency << 16;
            cell->found++;
        }
    }
}

/* Codes symbols from the last to the first; words are written from `word` downwards. Returns where they begin. */
static uint16_t *put_all(const edgepack_grid *grid, const uint32_t *found, uint32_t *lanes, uint16_t *word) {
    int64_t count = grid->rows * grid->columns;
    int32_t lane = (int32_t)(count % grid->lanes);
    for (int64_t at = count; at-- > 0;) {
        lane = lane ? lane - 1 : grid->lanes - 1;
        uint32_t start = found[at] & 0xFFFF, frequency = found[at] >> 16, x = lanes[lane];
        if (x >= frequency << 16) {
            *--word = (uint16_t)x;
            x >>= 16;
        }
        uint32_t quotient = x / frequency;
        lanes[lane] = (quotient << 16) + (x - quotient * frequency) + start;
    }
    return word;
}

int64_t edgepack_grid_encode(const edgepack_grid *grid, const int16_t *indices, const uint8_t *quantisers,
                             uint32_t *lane_states, uint16_t *words) {
    Coder coder;
    int64_t count = grid->rows * grid->columns, n_words = -1;
    uint32_t *found = malloc((size_t)count * sizeof *found);
    if (begin(&coder, grid) && found) {
        look_up_all(&coder, indices, quantisers, found);
        for (int32_t lane = 0; lane < grid->lanes; lane++) lane_states[lane] = TOTAL;
        n_words = words + count - put_all(grid, found, lane_states, words + count);
    }
    end(&coder);
    free(found);
    return n_words;
}
