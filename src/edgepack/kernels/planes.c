#include "planes.h"

#include <string.h>

#include "abi.h"

#define BYTES 0x0101010101010101ull
#define MOST_BLOCK_BYTES 512
#define TILE_BYTES (16 << 10) /* of blocks: they and their symbols stay in the first cache for all parts */
#define INLINE static inline __attribute__((always_inline))
#if defined(_MSC_VER)
#undef INLINE
#define INLINE static __forceinline
#endif

/* `size` is 1, 4 or 8. Numbers are little-endian, as GGUFs are. */
INLINE uint64_t load(const uint8_t *from, int size) {
    uint64_t word = 0;
    memcpy(&word, from, (size_t)size);
    return word;
}

INLINE void store(uint8_t *to, uint64_t word, int size) { memcpy(to, &word, (size_t)size); }

/* The bits to invert, at bit `position` of each symbol: (2^width - 1) << position where the flip's bit is set. */
INLINE uint64_t flips(const edgepack_part *part, const uint8_t *block, int at, int size) {
    uint64_t set = (load(block + part->flip_offset + at, size) >> part->flip_bit) & BYTES;
    return ((set << part->width) - set) << part->position;
}

/* One part of all blocks of a tile. `count`, `size`, `first` and `flip` are constants where these are called. */
INLINE void split_part(const edgepack_part *shared, const uint8_t *restrict raw, int64_t blocks, int32_t block_bytes,
                       uint8_t *restrict symbols, int count, int size, int first, int flip) {
    const edgepack_part part = *shared; /* bytes that are stored cannot change it */
    const uint64_t mask = BYTES * ((1u << part.width) - 1);
    for (int64_t block = 0; block < blocks; block++, raw += block_bytes, symbols += count) {
        for (int at = 0; at < count; at += size) {
            uint64_t bits = ((load(raw + part.offset + at, size) >> part.shift) & mask) << part.position;
            if (flip) bits ^= flips(&part, raw, at, size);
            store(symbols + at, first ? bits : bits | load(symbols + at, size), size);
        }
    }
}

INLINE void join_part(const edgepack_part *shared, uint8_t *restrict raw, int64_t blocks, int32_t block_bytes,
                      const uint8_t *restrict symbols, int count, int size, int opens, int flip) {
    const edgepack_part part = *shared;
    const uint64_t mask = BYTES * ((1u << part.width) - 1);
    for (int64_t block = 0; block < blocks; block++, raw += block_bytes, symbols += count) {
        uint64_t words[MOST_BLOCK_BYTES]; /* of the whole field, before any is stored: flips are in the block too */
        for (int at = 0; at < count; at += size) {
            uint64_t word = load(symbols + at, size);
            if (flip) word ^= flips(&part, raw, at, size);
            word = ((word >> part.position) & mask) << part.shift;
            words[at / size] = opens ? word : word | load(raw + part.offset + at, size);
        }
        for (int at = 0; at < count; at += size) store(raw + part.offset + at, words[at / size], size);
    }
}

/* A byte of every block, `step` apart, made contiguous, and back. */
INLINE void gather(uint8_t *restrict to, const uint8_t *restrict from, int64_t blocks, int64_t step) {
    for (int64_t block = 0; block < blocks; block++) to[block] = from[block * step];
}

INLINE void scatter(uint8_t *restrict to, int64_t step, const uint8_t *restrict from, int64_t blocks) {
    for (int64_t block = 0; block < blocks; block++) to[block * step] = from[block];
}

/* All bytes of blocks of two or four, the 16- and 32-bit floats; `fields` are contiguous. */
INLINE void interleave(uint8_t *restrict to, const uint8_t *restrict fields, int64_t blocks, int step) {
    for (int64_t block = 0; block < blocks; block++)
        for (int byte = 0; byte < step; byte++) to[step * block + byte] = fields[byte * blocks + block];
}

/* Rows and columns of 8 × 8 bytes change places: byte c of x[r] and byte r of x[c]. */
INLINE void transpose(uint64_t *x) {
    for (int i = 0; i < 4; i++) {
        uint64_t t = ((x[i] >> 32) ^ x[i + 4]) & 0x00000000FFFFFFFFull;
        x[i] ^= t << 32, x[i + 4] ^= t;
    }
    for (int i = 0; i < 8; i += i % 4 == 1 ? 3 : 1) {
        uint64_t t = ((x[i] >> 16) ^ x[i + 2]) & 0x0000FFFF0000FFFFull;
        x[i] ^= t << 16, x[i + 2] ^= t;
    }
    for (int i = 0; i < 8; i += 2) {
        uint64_t t = ((x[i] >> 8) ^ x[i + 1]) & 0x00FF00FF00FF00FFull;
        x[i] ^= t << 8, x[i + 1] ^= t;
    }
}

/* All bytes of all blocks: `fields` [step, blocks] is the transpose of `raw` [blocks, step]. */
INLINE void gather_all(uint8_t *restrict fields, const uint8_t *restrict raw, int64_t blocks, int64_t step) {
    int64_t block = 0, byte = 0;
    for (; block + 8 <= blocks; block += 8) {
        for (byte = 0; byte + 8 <= step; byte += 8) {
            uint64_t x[8];
            for (int i = 0; i < 8; i++) x[i] = load(raw + (block + i) * step + byte, 8);
            transpose(x);
            for (int i = 0; i < 8; i++) store(fields + (byte + i) * blocks + block, x[i], 8);
        }
        for (; byte < step; byte++) gather(fields + byte * blocks + block, raw + block * step + byte, 8, step);
    }
    for (byte = 0; byte < step; byte++)
        gather(fields + byte * blocks + block, raw + block * step + byte, blocks - block, step);
}

INLINE void scatter_all(uint8_t *restrict raw, int64_t step, const uint8_t *restrict fields, int64_t blocks) {
    int64_t block = 0, byte = 0;
    for (; block + 8 <= blocks; block += 8) {
        for (byte = 0; byte + 8 <= step; byte += 8) {
            uint64_t x[8];
            for (int i = 0; i < 8; i++) x[i] = load(fields + (byte + i) * blocks + block, 8);
            transpose(x);
            for (int i = 0; i < 8; i++) store(raw + (block + i) * step + byte, x[i], 8);
        }
        for (; byte < step; byte++) scatter(raw + block * step + byte, step, fields + byte * blocks + block, 8);
    }
    for (byte = 0; byte < step; byte++)
        scatter(raw + block * step + byte, step, fields + byte * blocks + block, blocks - block);
}

/* Bits of contiguous bytes, (byte >> right & mask) << left, put over or added to `to`. */
INLINE void move_bits(uint8_t *restrict to, const uint8_t *restrict from, int64_t count, int right, int width, int left,
                      int first) {
    const uint64_t mask = BYTES * ((1u << width) - 1);
    int64_t at = 0;
    for (; at + 8 <= count; at += 8) {
        uint64_t bits = ((load(from + at, 8) >> right) & mask) << left;
        store(to + at, first ? bits : bits | load(to + at, 8), 8);
    }
    for (; at < count; at++) {
        uint8_t bits = (uint8_t)((from[at] >> right & (uint8_t)mask) << left);
        to[at] = first ? bits : to[at] | bits;
    }
}

/* A field that is a column as it stands. */
INLINE void copy_fields(uint8_t *to, int64_t to_step, const uint8_t *from, int64_t from_step, int64_t blocks,
                        int32_t count) {
    for (int64_t block = 0; block < blocks; block++) memcpy(to + block * to_step, from + block * from_step, (size_t)count);
}

/* Calls `run(…, count, size)` with the counts that layouts have as constants. */
#define FOR_COUNT(run, count)                         \
    switch (count) {                                  \
        case 1: run(1, 1); break;                     \
        case 2: run(2, 1); break;                     \
        case 4: run(4, 4); break;                     \
        case 8: run(8, 8); break;                     \
        case 16: run(16, 8); break;                   \
        case 32: run(32, 8); break;                   \
        case 64: run(64, 8); break;                   \
        case 128: run(128, 8); break;                 \
        default: run(count, 1);                       \
    }

/* Whether a column has one symbol a block: its bytes stand far apart and are brought together for all its parts. */
static int is_single(const edgepack_part *part) { return part->count == 1 && part->flip_offset < 0; }

INLINE void split_single(const edgepack_part *part, int64_t blocks, uint8_t *symbols, const uint8_t *field) {
    if (part->first)
        move_bits(symbols, field, blocks, part->shift, part->width, part->position, 1);
    else
        move_bits(symbols, field, blocks, part->shift, part->width, part->position, 0);
}

INLINE void join_single(const edgepack_part *part, int64_t blocks, const uint8_t *symbols, uint8_t *field) {
    if (part->opens)
        move_bits(field, symbols, blocks, part->position, part->width, part->shift, 1);
    else
        move_bits(field, symbols, blocks, part->position, part->width, part->shift, 0);
}

/* The fields of single columns, out of a tile of blocks and into it. `all`: there are no others. */
EDGEPACK_CLONES
static void take_singles(const edgepack_part *parts, int32_t n_parts, const uint8_t *raw, int64_t blocks, int32_t step,
                         int all, uint8_t *fields) {
    if (all && step == 2)
        for (int byte = 0; byte < 2; byte++) gather(fields + byte * blocks, raw + byte, blocks, 2);
    else if (all && step == 4)
        for (int byte = 0; byte < 4; byte++) gather(fields + byte * blocks, raw + byte, blocks, 4);
    else if (all)
        gather_all(fields, raw, blocks, step);
    else
        for (const edgepack_part *part = parts; part < parts + n_parts; part++)
            if (is_single(part) && part->opens) gather(fields + part->offset * blocks, raw + part->offset, blocks, step);
}

EDGEPACK_CLONES
static void put_singles(const edgepack_part *parts, int32_t n_parts, uint8_t *raw, int64_t blocks, int32_t step, int all,
                        const uint8_t *fields) {
    if (all && step == 2)
        interleave(raw, fields, blocks, 2);
    else if (all && step == 4)
        interleave(raw, fields, blocks, 4);
    else if (all)
        scatter_all(raw, step, fields, blocks);
    else
        for (const edgepack_part *part = parts; part < parts + n_parts; part++)
            if (is_single(part) && part->opens)
                scatter(raw + part->offset, step, fields + part->offset * blocks, blocks);
}

EDGEPACK_CLONES
static void split_part_of_tile(const uint8_t *raw, int64_t blocks, int32_t step, const edgepack_part *part,
                               uint8_t *symbols, uint8_t *fields) {
#define COPY(count, size) copy_fields(symbols, count, raw + part->offset, step, blocks, count)
#define MOVE(count, size)                                                                      \
    if (part->flip_offset >= 0 && part->first)                                                 \
        split_part(part, raw, blocks, step, symbols, count, size, 1, 1);                       \
    else if (part->flip_offset >= 0)                                                           \
        split_part(part, raw, blocks, step, symbols, count, size, 0, 1);                       \
    else if (part->first)                                                                      \
        split_part(part, raw, blocks, step, symbols, count, size, 1, 0);                       \
    else                                                                                       \
        split_part(part, raw, blocks, step, symbols, count, size, 0, 0)
    if (is_single(part))
        split_single(part, blocks, symbols, fields + part->offset * blocks);
    else if (part->width == 8) {
        FOR_COUNT(COPY, part->count)
    } else {
        FOR_COUNT(MOVE, part->count)
    }
#undef COPY
#undef MOVE
}

EDGEPACK_CLONES
static void join_part_of_tile(uint8_t *raw, int64_t blocks, int32_t step, const edgepack_part *part,
                              const uint8_t *symbols, uint8_t *fields) {
#define COPY(count, size) copy_fields(raw + part->offset, step, symbols, count, blocks, count)
#define MOVE(count, size)                                                   \
    if (part->flip_offset >= 0 && part->opens)                              \
        join_part(part, raw, blocks, step, symbols, count, size, 1, 1);     \
    else if (part->flip_offset >= 0)                                        \
        join_part(part, raw, blocks, step, symbols, count, size, 0, 1);     \
    else if (part->opens)                                                   \
        join_part(part, raw, blocks, step, symbols, count, size, 1, 0);     \
    else                                                                    \
        join_part(part, raw, blocks, step, symbols, count, size, 0, 0)
    if (is_single(part))
        join_single(part, blocks, symbols, fields + part->offset * blocks);
    else if (part->width == 8) {
        FOR_COUNT(COPY, part->count)
    } else {
        FOR_COUNT(MOVE, part->count)
    }
#undef COPY
#undef MOVE
}

static int64_t tile_blocks(int32_t block_bytes) { return TILE_BYTES / block_bytes; }

/* Where the symbols of a part's column begin, from block `first` on. */
static int64_t place(const edgepack_part *part, int64_t blocks, int64_t first) {
    return blocks * part->before + first * part->count;
}

/* Whether there are single columns, and whether there are no others. */
static void count_singles(const edgepack_part *parts, int32_t n_parts, int *any, int *all) {
    *any = 0, *all = 1;
    for (const edgepack_part *part = parts; part < parts + n_parts; part++) {
        *any |= is_single(part);
        *all &= is_single(part);
    }
}

void edgepack_planes_split(const uint8_t *raw, int64_t blocks, int32_t block_bytes, const edgepack_part *parts,
                           int32_t n_parts, uint8_t *const *streams) {
    uint8_t fields[TILE_BYTES];
    int64_t step = tile_blocks(block_bytes);
    int any, all;
    count_singles(parts, n_parts, &any, &all);
    for (int64_t first = 0; first < blocks; first += step) {
        int64_t some = blocks - first < step ? blocks - first : step;
        const uint8_t *tile = raw + first * block_bytes;
        if (any) take_singles(parts, n_parts, tile, some, block_bytes, all, fields);
        for (const edgepack_part *part = parts; part < parts + n_parts; part++)
            split_part_of_tile(tile, some, block_bytes, part, streams[part->stream] + place(part, blocks, first),
                               fields);
    }
}

void edgepack_planes_join(uint8_t *raw, int64_t blocks, int32_t block_bytes, const edgepack_part *parts,
                          int32_t n_parts, const uint8_t *const *streams) {
    uint8_t fields[TILE_BYTES];
    int64_t step = tile_blocks(block_bytes);
    int any, all;
    count_singles(parts, n_parts, &any, &all);
    for (int64_t first = 0; first < blocks; first += step) {
        int64_t some = blocks - first < step ? blocks - first : step;
        uint8_t *tile = raw + first * block_bytes;
        for (const edgepack_part *part = parts; part < parts + n_parts; part++)
            join_part_of_tile(tile, some, block_bytes, part, streams[part->stream] + place(part, blocks, first), fields);
        if (any) put_singles(parts, n_parts, tile, some, block_bytes, all, fields);
    }
}
