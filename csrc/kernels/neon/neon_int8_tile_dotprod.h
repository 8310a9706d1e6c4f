// A tile of sums in registers and how CPUs with dotprod add to it; for neon_int8_gemm.cpp, which says what the
// functions do.
#pragma once

#include <arm_neon.h>

#include "core/instruction_set.h"
#include "kernels/neon/neon_int8_gemm.h"

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

constexpr int64_t kStep = kDotprodStep;
constexpr bool kServesUnsignedLhs = false;  // usdot comes with i8mm

struct SignedLhs {};
using UnsignedLhs = SignedLhs;

// sdot multiplies four columns by one row, which is a quarter of a vector.
inline int32x4_t add_product(int32x4_t sums, int8x16_t columns, int8x16_t rows, int row) {
    switch (row % 4) {
        case 0:
            return vdotq_laneq_s32(sums, columns, rows, 0);
        case 1:
            return vdotq_laneq_s32(sums, columns, rows, 1);
        case 2:
            return vdotq_laneq_s32(sums, columns, rows, 2);
        default:
            return vdotq_laneq_s32(sums, columns, rows, 3);
    }
}

template <class, int kRows, int kTiles>
struct Tile {
    static constexpr bool kLoneRowInVectors = true;
    static constexpr int kTileVectors = kNeonTileColumns / 4;
    static constexpr int kVectors = kTiles * kTileVectors;
    int32x4_t sums[kRows][kVectors];

    inline void clear() {
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 12
            for (int vector = 0; vector < kVectors; ++vector) sums[row][vector] = vdupq_n_s32(0);
    }

    inline void keep(int32_t* to, int64_t stride) const {
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row) store_row(row, to + row * stride);
    }

    inline void resume(const int32_t* from, int64_t stride) {
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 12
            for (int vector = 0; vector < kVectors; ++vector)
                sums[row][vector] = vld1q_s32(from + row * stride + 4 * vector);
    }

    inline void add_step(const int8_t* lhs, const int8_t* rhs, int64_t tile_bytes) {
        constexpr int kQuads = (kRows + 3) / 4;
        int8x16_t rows[kQuads];
#pragma GCC unroll 2
        for (int quad = 0; quad < kQuads; ++quad) rows[quad] = vld1q_s8(lhs + 16 * quad);
#pragma GCC unroll 12
        for (int vector = 0; vector < kVectors; ++vector) {
            const int8x16_t columns = vld1q_s8(rhs + vector / kTileVectors * tile_bytes + 16 * (vector % kTileVectors));
#pragma GCC unroll 8
            for (int row = 0; row < kRows; ++row)
                sums[row][vector] = add_product(sums[row][vector], columns, rows[row / 4], row);
        }
    }

    template <int kPart>
    inline void add_part(int8x16_t row, const int8_t* rhs, int64_t tile_bytes) {
#pragma GCC unroll 12
        for (int vector = 0; vector < kVectors; ++vector) {
            const int8x16_t columns = vld1q_s8(rhs + vector / kTileVectors * tile_bytes + 16 * (vector % kTileVectors));
            sums[0][vector] = vdotq_laneq_s32(sums[0][vector], columns, row, kPart);
        }
    }

    inline int32x4_t sums_of(int row, int vector) const { return sums[row][vector]; }

    inline void store_row(int row, int32_t* to) const {
#pragma GCC unroll 12
        for (int vector = 0; vector < kVectors; ++vector) vst1q_s32(to + 4 * vector, sums[row][vector]);
    }
};

template <class Lhs, int kRows, int kTiles>
using TileOf = Tile<Lhs, kRows, kTiles>;

inline void interleave_rows(const int8_t* const (&rows)[16 / kStep], int64_t bytes, int8_t* to, int64_t to_stride) {
    int64_t i = 0;
    for (; i + 16 <= bytes; i += 16) {
        int32x4_t part[4];
#pragma GCC unroll 4
        for (int row = 0; row < 4; ++row) part[row] = vreinterpretq_s32_s8(vld1q_s8(rows[row] + i));
        const int64x2_t low[] = {vreinterpretq_s64_s32(vzip1q_s32(part[0], part[1])),
                                 vreinterpretq_s64_s32(vzip1q_s32(part[2], part[3]))};
        const int64x2_t high[] = {vreinterpretq_s64_s32(vzip2q_s32(part[0], part[1])),
                                  vreinterpretq_s64_s32(vzip2q_s32(part[2], part[3]))};
        vst1q_s8(to, vreinterpretq_s8_s64(vzip1q_s64(low[0], low[1])));
        vst1q_s8(to + to_stride, vreinterpretq_s8_s64(vzip2q_s64(low[0], low[1])));
        vst1q_s8(to + 2 * to_stride, vreinterpretq_s8_s64(vzip1q_s64(high[0], high[1])));
        vst1q_s8(to + 3 * to_stride, vreinterpretq_s8_s64(vzip2q_s64(high[0], high[1])));
        to += 4 * to_stride;
    }
    for (; i < bytes; i += kStep, to += to_stride)
        for (int row = 0; row < 4; ++row) __builtin_memcpy(to + kStep * row, rows[row] + i, kStep);
}

}  // namespace
}  // namespace AO_ARM_ISA
}  // namespace ao_arm
