// What the 4-bit micro-kernels for AArch64 have in common. Everything is local to the including file, as each is
// compiled for another instruction set (see element_types.h).
//
// A group's sums are collected in int32 registers that start at the bits of 1.5 * 2^23: read as floats they are that
// number plus the sum, exact for sums up to 2^22, and a subtraction takes it off. That is cheaper than a conversion,
// which few of the pipelines can do. Sums of low nibbles start at the bits of 1.5 * 2^27 and come out 16 times as
// large, as those of high ones are.
#pragma once

#include <arm_neon.h>

#include "kernels/neon/neon_int4_gemm.h"
#include "rows/element_types.h"

namespace ao_arm {
namespace {

constexpr int64_t kColumns = kNeonInt4Columns;
constexpr int64_t kChunk = 16;       // values along k that are multiplied in one go
constexpr int64_t kResident = 1024;  // values along k for which a block of rows stays in the first-level cache

// Kinds of groups, a template argument.
enum Kind {
    k32,    // of 32: unrolled
    kAny,   // of up to 256
    kLong,  // whose sums may leave the range of the trick above
};

// A part of k of one lhs block and some column blocks.
struct Part {
    const int8_t* lhs;
    int64_t lhs_stride;     // between rows, where they are not interleaved
    const int32_t* starts;  // of the part's first group
    const uint8_t* weight;  // of the first column block, in the part's first group
    const uint8_t* scales;  // of the same
    const uint8_t* zeros;
    int64_t vector_bytes;  // of all vectors of the same columns in a group, of the first half and the second
    int64_t group_bytes;
    int64_t block_bytes;  // between column blocks
    int64_t blocks;
    int64_t groups;
    int64_t chunks;  // of a group
    float* to;
    int64_t to_stride;
    bool first;
};

// Loads that stay in the order in which they are written: compilers would load what several
// multiplications share once and early, and then find too few registers.
template <class Vector>
inline Vector load_vector_here(const void* from) {
    Vector value;
    asm volatile("ldr %q0, %1" : "=w"(value) : "m"(*static_cast<const Vector*>(from)));
    return value;
}

inline int8x16_t load_here(const int8_t* from) { return load_vector_here<int8x16_t>(from); }
inline uint8x16_t load_here(const uint8_t* from) { return load_vector_here<uint8x16_t>(from); }
inline int32x4_t load_here(const int32_t* from) { return load_vector_here<int32x4_t>(from); }

// What a vector of nibbles is masked with, by half; in memory, for tiles that have no register left for both.
alignas(16) constexpr uint8_t kMasks[2][16] = {
    {0x0F, 0x0F, 0x0F, 0x0F, 0x0F, 0x0F, 0x0F, 0x0F, 0x0F, 0x0F, 0x0F, 0x0F, 0x0F, 0x0F, 0x0F, 0x0F},
    {0xF0, 0xF0, 0xF0, 0xF0, 0xF0, 0xF0, 0xF0, 0xF0, 0xF0, 0xF0, 0xF0, 0xF0, 0xF0, 0xF0, 0xF0, 0xF0}};

// The values of a vector's low (0) or high (1) nibbles: q; without zero points q + 8 of the low ones and 16 * q of the
// high ones. `mask`: that half's.
template <int kHalf, bool kZeros>
inline int8x16_t values_of(uint8x16_t bytes, uint8x16_t mask, int8x16_t zeros) {
    if (kZeros && kHalf == 1) return vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4)), zeros);
    const int8x16_t values = vreinterpretq_s8_u8(vandq_u8(bytes, mask));
    return kZeros ? vsubq_s8(values, zeros) : values;
}

// body(0), body(1) ... for the chunks of a group, of which there is an even number.
template <Kind kKind, class Body>
__attribute__((always_inline)) inline void each_chunk(int64_t chunks, const Body& body) {
    if (kKind == k32) {
        body(0);
        body(1);
    } else {
        for (int64_t i = 0; i < chunks; i += 2) {
            body(i);
            body(i + 1);
        }
    }
}

inline float32x4_t load_scales(const uint8_t* at, int64_t first, float) {
    return vld1q_f32(reinterpret_cast<const float*>(at) + first);
}

inline float32x4_t load_scales(const uint8_t* at, int64_t first, uint16_t) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(at) + first), 16));
}

template <Kind kKind>
inline int32x4_t start() {
    return vdupq_n_s32(kKind == kLong ? 0 : kMagicBits);
}

// Of sums that may have wrapped around, as magic bits are large: what is left did not.
inline int32x4_t less(int32x4_t sum, int32x4_t other) {
    return vreinterpretq_s32_u32(vsubq_u32(vreinterpretq_u32_s32(sum), vreinterpretq_u32_s32(other)));
}

// kLow: of low nibbles without zero points.
template <Kind kKind, bool kLow>
inline float32x4_t to_float(int32x4_t sum) {
    if (kKind == kLong) return vcvtq_f32_s32(kLow ? vshlq_n_s32(sum, 4) : sum);
    return vsubq_f32(vreinterpretq_f32_s32(sum), vdupq_n_f32(kLow ? kMagicOf16 : kMagic));
}

// body(Constant<0>), body(Constant<1>) ... body(Constant<kCount - 1>): a loop that is gone before the compiler decides
// which arrays to keep in registers.
template <int kValue>
struct Constant {
    constexpr operator int() const { return kValue; }
};

template <int kCount, int kFirst = 0, class Body>
__attribute__((always_inline)) inline void unrolled(const Body& body) {
    if constexpr (kFirst < kCount) {
        body(Constant<kFirst>());
        unrolled<kCount, kFirst + 1>(body);
    }
}
#define AO_ARM_UNROLLED(index) [&](auto index) __attribute__((always_inline))

// Multiplies one lhs block by some column blocks.
using MultiplyPart = void (*)(const Part&);

// kTile takes the first column block only. It is inlined here, as saving registers for each block takes time.
template <MultiplyPart kTile>
void each_column_block(const Part& given) {
    Part part = given;
    for (; part.blocks > 0; --part.blocks) {
        kTile(part);
        part.weight += part.block_bytes;
        part.scales += part.block_bytes;
        part.zeros += part.block_bytes;
        part.to += kColumns;
    }
}
#define AO_ARM_TILE __attribute__((always_inline)) inline void

// Tiles::multiply_part<kind, whether there are zero points, type of scales>(rows) for a problem.
template <class Tiles, Kind kKind>
MultiplyPart part_of_kind(const Problem& problem, int64_t rows) {
    if (problem.scale_type == DType::kFloat32)
        return problem.zero_points ? Tiles::template multiply_part<kKind, true, float>(rows)
                                   : Tiles::template multiply_part<kKind, false, float>(rows);
    return problem.zero_points ? Tiles::template multiply_part<kKind, true, uint16_t>(rows)
                               : Tiles::template multiply_part<kKind, false, uint16_t>(rows);
}

template <class Tiles>
MultiplyPart part_for(const Problem& problem, int64_t rows) {
    if (problem.padded_group() == 32) return part_of_kind<Tiles, k32>(problem, rows);
    return problem.group <= kLongInt4Group ? part_of_kind<Tiles, kAny>(problem, rows)
                                           : part_of_kind<Tiles, kLong>(problem, rows);
}

template <class Tiles>
bool multiply_blocks(const Multiplication& call) {
    const Problem& problem = *call.problem;
    const int64_t padded_group = problem.padded_group(), groups = problem.groups(), padded_k = problem.padded_k();
    const int64_t nibble_bytes = kColumns * padded_group / 2, scale_bytes = kColumns * problem.scale_bytes();
    Part part = {};
    part.vector_bytes = Tiles::kVectorColumns * padded_group;
    part.group_bytes = nibble_bytes + scale_bytes + (problem.zero_points ? kColumns : 0);
    part.chunks = padded_group / kChunk;
    part.block_bytes = groups * part.group_bytes;
    part.blocks = (call.columns + kColumns - 1) / kColumns;
    part.lhs_stride = padded_k;
    part.to_stride = call.sums_stride;
    const int64_t lhs_bytes = neon_int4_lhs_bytes(problem, Tiles::kRows);
    const int64_t resident = padded_group < kResident ? kResident / padded_group : 1;
    for (int64_t row = 0; row < call.m; row += Tiles::kRows) {
        const int64_t rows = call.m - row < Tiles::kRows ? call.m - row : Tiles::kRows;
        const MultiplyPart multiply = part_for<Tiles>(problem, rows);
        const int8_t* const block = call.lhs + row / Tiles::kRows * lhs_bytes;
        const auto* const starts = reinterpret_cast<const int32_t*>(block + Tiles::kRows * padded_k);
        for (int64_t group = 0; group < groups; group += part.groups) {
            part.groups = groups - group < resident || rows == 1 ? groups - group : resident;
            part.first = group == 0;
            part.lhs = block + group * padded_group * Tiles::interleaved_rows(rows);
            part.starts = starts + group * int4_start_vectors(rows) * 4;
            part.weight = call.weight + group * part.group_bytes;
            part.scales = part.weight + nibble_bytes;
            part.zeros = part.scales + scale_bytes;
            part.to = static_cast<float*>(call.sums) + row * call.sums_stride;
            multiply(part);
        }
    }
    return true;
}

}  // namespace
}  // namespace ao_arm
