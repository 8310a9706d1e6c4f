// A tile of sums in registers and how CPUs with i8mm add to it; for neon_int8_gemm.cpp, which says what the functions
// do.
#pragma once

#include <arm_neon.h>

#include "core/instruction_set.h"
#include "kernels/neon/neon_int8_gemm.h"

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

constexpr int64_t kStep = kI8mmStep;
constexpr bool kServesUnsignedLhs = true;

// smmla and usmmla multiply two rows by two columns: {row 0 x column 0, row 0 x column 1, row 1 x column 0, ...}.
struct SignedLhs {
    static inline int32x4_t multiply(int32x4_t sums, int8x16_t rows, int8x16_t columns) {
        return vmmlaq_s32(sums, rows, columns);
    }
};
struct UnsignedLhs {
    static inline int32x4_t multiply(int32x4_t sums, int8x16_t rows, int8x16_t columns) {
        return vusmmlaq_s32(sums, vreinterpretq_u8_s8(rows), columns);
    }
};

template <class Lhs, int kRows, int kTiles>
struct Tile {
    static constexpr int kPairs = (kRows + 1) / 2;
    static constexpr bool kLoneRowInVectors = true;
    static constexpr int kColumns = kTiles * kNeonTileColumns;
    static constexpr int kTileVectors = kNeonTileColumns / 2;
    static constexpr int kVectors = kTiles * kTileVectors;
    int32x4_t sums[kPairs][kVectors];

    inline void clear() {
#pragma GCC unroll 4
        for (int pair = 0; pair < kPairs; ++pair)
#pragma GCC unroll 24
            for (int vector = 0; vector < kVectors; ++vector) sums[pair][vector] = vdupq_n_s32(0);
    }

    // A pair's vectors take the places of its two rows.
    static inline int32_t* place(int32_t* rows, int64_t stride, int pair, int vector) {
        return rows + (2 * pair + vector / (kVectors / 2)) * stride + 4 * (vector % (kVectors / 2));
    }

    inline void keep(int32_t* to, int64_t stride) const {
#pragma GCC unroll 4
        for (int pair = 0; pair < kPairs; ++pair)
#pragma GCC unroll 24
            for (int vector = 0; vector < kVectors; ++vector)
                vst1q_s32(place(to, stride, pair, vector), sums[pair][vector]);
    }

    inline void resume(int32_t* from, int64_t stride) {
#pragma GCC unroll 4
        for (int pair = 0; pair < kPairs; ++pair)
#pragma GCC unroll 24
            for (int vector = 0; vector < kVectors; ++vector)
                sums[pair][vector] = vld1q_s32(place(from, stride, pair, vector));
    }

    inline void add_step(const int8_t* lhs, const int8_t* rhs, int64_t tile_bytes) {
        int8x16_t rows[kPairs];
#pragma GCC unroll 4
        for (int pair = 0; pair < kPairs; ++pair) rows[pair] = vld1q_s8(lhs + 16 * pair);
#pragma GCC unroll 24
        for (int vector = 0; vector < kVectors; ++vector) {
            const int8x16_t columns = vld1q_s8(rhs + vector / kTileVectors * tile_bytes + 16 * (vector % kTileVectors));
#pragma GCC unroll 4
            for (int pair = 0; pair < kPairs; ++pair)
                sums[pair][vector] = Lhs::multiply(sums[pair][vector], rows[pair], columns);
        }
    }

    template <int kPart>
    inline void add_part(int8x16_t row, const int8_t* rhs, int64_t tile_bytes) {
        const int8x16_t both = vreinterpretq_s8_s64(vdupq_laneq_s64(vreinterpretq_s64_s8(row), kPart));
#pragma GCC unroll 24
        for (int vector = 0; vector < kVectors; ++vector) {
            const int8x16_t columns = vld1q_s8(rhs + vector / kTileVectors * tile_bytes + 16 * (vector % kTileVectors));
            sums[0][vector] = Lhs::multiply(sums[0][vector], both, columns);
        }
    }

    // A row is the lower halves of a pair's sums, or the upper ones.
    inline int32x4_t sums_of(int row, int vector) const {
        const int64x2_t left = vreinterpretq_s64_s32(sums[row / 2][2 * vector]);
        const int64x2_t right = vreinterpretq_s64_s32(sums[row / 2][2 * vector + 1]);
        return vreinterpretq_s32_s64(row % 2 == 0 ? vzip1q_s64(left, right) : vzip2q_s64(left, right));
    }

    inline void store_row(int row, int32_t* to) const {
#pragma GCC unroll 12
        for (int vector = 0; vector < kColumns / 4; ++vector) vst1q_s32(to + 4 * vector, sums_of(row, vector));
    }
};

#if !defined(__ARM_FEATURE_SVE_MATMUL_INT8)
template <class Lhs, int kRows, int kTiles>
using TileOf = Tile<Lhs, kRows, kTiles>;
#endif

inline void interleave_rows(const int8_t* const (&rows)[16 / kStep], int64_t bytes, int8_t* to, int64_t to_stride) {
    int64_t i = 0;
    for (; i + 16 <= bytes; i += 16) {
        const int64x2_t one = vreinterpretq_s64_s8(vld1q_s8(rows[0] + i));
        const int64x2_t two = vreinterpretq_s64_s8(vld1q_s8(rows[1] + i));
        vst1q_s8(to, vreinterpretq_s8_s64(vzip1q_s64(one, two)));
        vst1q_s8(to + to_stride, vreinterpretq_s8_s64(vzip2q_s64(one, two)));
        to += 2 * to_stride;
    }
    if (i < bytes) vst1q_s8(to, vcombine_s8(vld1_s8(rows[0] + i), vld1_s8(rows[1] + i)));
}

}  // namespace
}  // namespace AO_ARM_ISA
}  // namespace ao_arm
