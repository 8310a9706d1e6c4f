// Accesses to memory that QEMU tells its plugins nothing of: those of SVE, and `dc zva`. Which bytes they touch follows
// from the instruction and from registers.
#pragma once

#include <stdbool.h>
#include <stdint.h>

typedef enum Visibility {
    SEEN,     // by QEMU's own means, if it touches memory at all
    HIDDEN,   // but described
    UNKNOWN,  // hidden and not described, as gathers are
} Visibility;

enum { NONE = 255, STACK_POINTER = 31 };

// Elements at base + (index << shift) + offset, in bytes: from the first that the predicate has to the last.
typedef struct Hidden {
    uint8_t base;  // numbers of X registers
    uint8_t index;
    uint8_t shift;
    uint8_t predicate;   // number, or all elements
    uint8_t lane_bytes;  // of an element in a register, and so bits from one to the next in the predicate; 0: no lanes
    uint8_t bytes;       // of an element in memory, of all registers that the instruction names
    uint16_t lanes;      // how many; 0: as many as a vector has
    bool repeated;       // there is one, for all lanes
    int16_t offset;      // in bytes, or in as many as all elements have
    bool offset_in_bytes;
    uint8_t aligned;  // what the address is rounded down to
} Hidden;

static uint32_t field(uint32_t word, int high, int low) { return word >> low & ((2u << (high - low)) - 1); }

static int16_t signed_field(uint32_t value, int bits) {
    return (int16_t)((int32_t)(value ^ 1u << (bits - 1)) - (1 << (bits - 1)));
}

static Visibility predicated(uint32_t word, Hidden* hidden, uint32_t lane_log, uint32_t memory_log,
                             uint32_t registers) {
    hidden->predicate = (uint8_t)field(word, 12, 10);
    hidden->lane_bytes = (uint8_t)(1u << lane_log);
    hidden->bytes = (uint8_t)(registers << memory_log);
    return HIDDEN;
}

static Visibility indexed(uint32_t word, Hidden* hidden, uint32_t lane_log, uint32_t memory_log, uint32_t registers) {
    hidden->index = (uint8_t)field(word, 20, 16);
    hidden->shift = (uint8_t)memory_log;
    return predicated(word, hidden, lane_log, memory_log, registers);
}

static Visibility displaced(uint32_t word, Hidden* hidden, uint32_t lane_log, uint32_t memory_log, uint32_t registers) {
    hidden->offset = signed_field(field(word, 19, 16), 4);
    return predicated(word, hidden, lane_log, memory_log, registers);
}

// ldr and str of a vector, or of a predicate, which has a bit for each byte of a vector: one lane for each byte, or for
// each eight.
static Visibility whole_register(uint32_t word, Hidden* hidden) {
    hidden->lane_bytes = field(word, 14, 14) ? 1 : 8;
    hidden->bytes = 1;
    hidden->offset = signed_field(field(word, 21, 16) << 3 | field(word, 12, 10), 9);
    return HIDDEN;
}

// By the field dtype: the sizes of an element in memory and in a register, as powers of two.
static const uint8_t memory_logs[16] = {0, 0, 0, 0, 2, 1, 1, 1, 1, 1, 2, 2, 0, 0, 0, 3};
static const uint8_t lane_logs[16] = {0, 1, 2, 3, 3, 1, 2, 3, 3, 2, 2, 3, 3, 2, 1, 3};

static Visibility contiguous_load(uint32_t word, Hidden* hidden) {
    const uint32_t type = field(word, 24, 21), size = field(word, 24, 23), registers = field(word, 22, 21) + 1;
    const uint32_t kind = field(word, 15, 13);
    const bool bit20 = field(word, 20, 20);
    if (kind <= 1) {  // ld1rq, ld1ro: a part of 16 or 32 bytes, repeated
        const uint32_t part = 16 * registers;
        if (registers > 2) return UNKNOWN;
        hidden->lanes = (uint16_t)(part >> size);
        return kind == 0 ? indexed(word, hidden, size, size, 1) : displaced(word, hidden, size, size, 1);
    }
    if (kind == 2 || kind == 3) return indexed(word, hidden, lane_logs[type], memory_logs[type], 1);
    if (kind == 5) return displaced(word, hidden, lane_logs[type], memory_logs[type], 1);
    if (kind == 6) return indexed(word, hidden, size, size, registers);
    if (kind == 7 && !bit20) return displaced(word, hidden, size, size, registers);
    return UNKNOWN;
}

static Visibility store(uint32_t word, Hidden* hidden) {
    const uint32_t size = field(word, 24, 23), other = field(word, 22, 21), kind = field(word, 15, 13);
    const bool bit20 = field(word, 20, 20);
    if (field(word, 24, 22) == 6 && (kind == 0 || kind == 2)) return whole_register(word, hidden);
    if (kind == 2) return indexed(word, hidden, other, size, 1);
    if (kind == 3) return indexed(word, hidden, size, size, other + 1);
    if (kind == 7)
        return bit20 ? displaced(word, hidden, size, size, other + 1) : displaced(word, hidden, other, size, 1);
    return UNKNOWN;
}

static Visibility gather_or_register(uint32_t word, Hidden* hidden) {
    const uint32_t kind = field(word, 15, 13);
    if (field(word, 24, 22) == 6 && (kind == 0 || kind == 2)) return whole_register(word, hidden);
    if (field(word, 22, 22) && field(word, 15, 15)) {  // ld1r
        const uint32_t type = field(word, 24, 23) << 2 | field(word, 14, 13);
        hidden->repeated = true;
        hidden->offset = (int16_t)(field(word, 21, 16) << memory_logs[type]);
        hidden->offset_in_bytes = true;
        return predicated(word, hidden, lane_logs[type], memory_logs[type], 1);
    }
    // Prefetches, which are left out as all others are.
    if (field(word, 24, 22) == 7 || (field(word, 22, 21) == 0 && kind >= 6)) return SEEN;
    return UNKNOWN;
}

static Visibility visibility(uint32_t word, Hidden* hidden) {
    *hidden = (Hidden){.base = (uint8_t)field(word, 9, 5), .index = NONE, .predicate = NONE, .aligned = 1};
    switch (field(word, 31, 25)) {
        case 0x42:
            return gather_or_register(word, hidden);
        case 0x52:
            return contiguous_load(word, hidden);
        case 0x62:
            return UNKNOWN;
        case 0x72:
            return store(word, hidden);
    }
    if ((word & ~31u) != 0xD50B7420) return SEEN;
    *hidden =
        (Hidden){.base = (uint8_t)field(word, 4, 0), .index = NONE, .predicate = NONE, .bytes = 64, .aligned = 64};
    return HIDDEN;
}
