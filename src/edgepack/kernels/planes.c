#include "planes.h"

#include <string.h>

#include "abi.h"

#define BYTES 0x0101010101010101ull
#define TILE_BYTES (16 << 10) /* of blocks: they and their symbols stay in the first cache for all parts */
#define INLINE static inline __attribute__((always_inline))
#if defined(_MSC_VER)
#undef INLINE
#define INLINE static __forceinline
#endif

/* `size` is 1, 4 or 8. Byte order does not matter: shifts stay inside bytes. */
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
        for (int at = 0; at < count; at += size) {
            uint64_t word = load(symbols + at, size);
            if (flip) word ^= flips(&part, raw, at, size);
            uint8_t *to = raw + part.offset + at;
            word = ((word >> part.position) & mask) << part.shift;
            store(to, opens ? word : word | load(to, size), size);
        }
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

/* Bits of contiguous bytes, (byte >> right & mask) << left, put over or added to `to`. */
INLINE void move_bits(uint8_t *restrict to, const uint8_t *restrict from, int64_t count, int right, uint8_t mask,
                      int left, int first) {
    for (int64_t i = 0; i < count; i++) {
        uint8_t bits = (uint8_t)((from[i] >> right & mask) << left);
        to[i] = first ? bits : to[i] | bits;
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

INLINE void split_single(const edgepack_part *part, const uint8_t *raw, int64_t blocks, int32_t step, uint8_t *symbols,
                         uint8_t *field) {
    if (part->opens && step == 2)
        gather(field, raw + part->offset, blocks, 2);
    else if (part->opens && step == 4)
        gather(field, raw + part->offset, blocks, 4);
    else if (part->opens)
        gather(field, raw + part->offset, blocks, step);
    move_bits(symbols, field, blocks, part->shift, (uint8_t)((1u << part->width) - 1), part->position, part->first);
}

INLINE void join_single(const edgepack_part *part, int64_t blocks, const uint8_t *symbols, uint8_t *field) {
    move_bits(field, symbols, blocks, part->position, (uint8_t)((1u << part->width) - 1), part->shift, part->opens);
}

INLINE void put_singles(const edgepack_part *parts, int32_t n_parts, uint8_t *raw, int64_t blocks, int32_t step,
                        const uint8_t *fields) {
    if (step == 2 || step == 4) {
        if (step == 2)
            interleave(raw, fields, blocks, 2);
        else
            interleave(raw, fields, blocks, 4);
        return;
    }
    for (const edgepack_part *part = parts; part < parts + n_parts; part++)
        if (is_single(part) && part->opens) scatter(raw + part->offset, step, fields + part->offset * blocks, blocks);
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
        split_single(part, raw, blocks, step, symbols, fields + part->offset * blocks);
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

EDGEPACK_CLONES
static void put_singles_of_tile(const edgepack_part *parts, int32_t n_parts, uint8_t *raw, int64_t blocks, int32_t step,
                                const uint8_t *fields) {
    put_singles(parts, n_parts, raw, blocks, step, fields);
}

static int64_t tile_blocks(int32_t block_bytes) { return TILE_BYTES / block_bytes; }

/* Where the symbols of a part's column begin, from block `first` on. */
static int64_t place(const edgepack_part *part, int64_t blocks, int64_t first) {
    return blocks * part->before + first * part->count;
}

void edgepack_planes_split(const uint8_t *raw, int64_t blocks, int32_t block_bytes, const edgepack_part *parts,
                           int32_t n_parts, uint8_t *const *streams) {
    uint8_t fields[TILE_BYTES];
    int64_t step = tile_blocks(block_bytes);
    for (int64_t first = 0; first < blocks; first += step) {
        int64_t some = blocks - first < step ? blocks - first : step;
        for (const edgepack_part *part = parts; part < parts + n_parts; part++)
            split_part_of_tile(raw + first * block_bytes, some, block_bytes, part,
                               streams[part->stream] + place(part, blocks, first), fields);
    }
}

void edgepack_planes_join(uint8_t *raw, int64_t blocks, int32_t block_bytes, const edgepack_part *parts,
                          int32_t n_parts, const uint8_t *const *streams) {
    uint8_t fields[TILE_BYTES];
    int64_t step = tile_blocks(block_bytes);
    int singles = 0;
    for (const edgepack_part *part = parts; part < parts + n_parts; part++) singles |= is_single(part);
    for (int64_t first = 0; first < blocks; first += step) {
        int64_t some = blocks - first < step ? blocks - first : step;
        uint8_t *tile = raw + first * block_bytes;
        for (const edgepack_part *part = parts; part < parts + n_parts; part++)
            join_part_of_tile(tile, some, block_bytes, part, streams[part->stream] + place(part, blocks, first), fields);
        if (singles) put_singles_of_tile(parts, n_parts, tile, some, block_bytes, fields);
    }
}
