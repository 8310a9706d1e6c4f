// A tile of sums in registers and how CPUs with i8mm and SVE vectors of 256 bits add to it; for neon_int8_gemm.cpp,
// which says what the functions do. It reads the same bytes as Neon's tile: a vector is two consecutive ones of those.
#pragma once

#include <arm_sve.h>

#include "core/instruction_set.h"
#include "kernels/neon/neon_int8_step_i8mm.h"

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

constexpr bool kLoneRowInVectors = false;

static_assert(__ARM_FEATURE_SVE_BITS == 256);
using Bytes = svint8_t __attribute__((arm_sve_vector_bits(256)));
using Sums = svint32_t __attribute__((arm_sve_vector_bits(256)));
using Halves = svint64_t __attribute__((arm_sve_vector_bits(256)));

// smmla and usmmla multiply two rows by two columns in each half of a vector:
// {row 0 x column 0, row 0 x column 1, row 1 x column 0, row 1 x column 1, row 0 x column 2, ...}.
struct SignedLhs {
    static inline Sums multiply(Sums sums, Bytes rows, Bytes columns) { return svmmla_s32(sums, rows, columns); }
};
struct UnsignedLhs {
    static inline Sums multiply(Sums sums, Bytes rows, Bytes columns) {
        return svusmmla_s32(sums, svreinterpret_u8_s8(rows), columns);
    }
};

template <class Lhs, int kRows, int kTiles>
struct Tile {
    static constexpr int kPairs = (kRows + 1) / 2;
    static constexpr int kTileVectors = kNeonTileColumns / 4;
    static constexpr int kVectors = kTiles * kTileVectors;
    Sums sums[kPairs][kVectors];

    inline void clear() {
#pragma GCC unroll 4
        for (int pair = 0; pair < kPairs; ++pair)
#pragma GCC unroll 12
            for (int vector = 0; vector < kVectors; ++vector) sums[pair][vector] = svdup_s32(0);
    }

    // Eight columns of a row that come from or go to memory, or the last four.
    static inline svbool_t columns_from(int vector) {
        return vector + 1 < kVectors ? svptrue_b32() : svptrue_pat_b32(SV_VL4);
    }

    inline void keep(int32_t* to, int64_t stride) const {
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row) store_row(row, to + row * stride);
    }

    inline void resume(const int32_t* from, int64_t stride) {
#pragma GCC unroll 4
        for (int pair = 0; pair < kPairs; ++pair)
#pragma GCC unroll 12
            for (int vector = 0; vector < kVectors; vector += 2) {
                const int32_t* row = from + 2 * pair * stride + 4 * vector;
                const Halves upper = svreinterpret_s64_s32(svld1_s32(columns_from(vector), row));
                const Halves lower = 2 * pair + 1 < kRows
                                         ? svreinterpret_s64_s32(svld1_s32(columns_from(vector), row + stride))
                                         : svdup_s64(0);
                sums[pair][vector] = svreinterpret_s32_s64(svzip1_s64(upper, lower));
                if (vector + 1 < kVectors) sums[pair][vector + 1] = svreinterpret_s32_s64(svzip2_s64(upper, lower));
            }
    }

    inline void add_step(const int8_t* lhs, const int8_t* rhs, int64_t tile_bytes) {
        Bytes rows[kPairs];
#pragma GCC unroll 4
        for (int pair = 0; pair < kPairs; ++pair) {
            if constexpr (kRows == 1) {
                // Both places of a pair, by way of a general register: loads of vectors are what this waits for.
                int64_t step;
                __builtin_memcpy(&step, lhs, kStep);
                __asm__("" : "+r"(step));
                rows[pair] = svreinterpret_s8_s64(svdup_s64(step));
            } else {
                rows[pair] = svld1rq_s8(svptrue_b8(), lhs + 16 * pair);
            }
        }
#pragma GCC unroll 12
        for (int vector = 0; vector < kVectors; ++vector) {
            const Bytes columns =
                svld1_s8(svptrue_b8(), rhs + vector / kTileVectors * tile_bytes + 32 * (vector % kTileVectors));
#pragma GCC unroll 4
            for (int pair = 0; pair < kPairs; ++pair)
                sums[pair][vector] = Lhs::multiply(sums[pair][vector], rows[pair], columns);
        }
    }

    // A row is every other half of half a vector, from the first one or the second one on.
    inline void store_row(int row, int32_t* to) const {
#pragma GCC unroll 12
        for (int vector = 0; vector < kVectors; vector += 2) {
            const Halves left = svreinterpret_s64_s32(sums[row / 2][vector]);
            const Halves right = svreinterpret_s64_s32(sums[row / 2][vector + 1 < kVectors ? vector + 1 : vector]);
            const Halves values = row % 2 == 0 ? svuzp1_s64(left, right) : svuzp2_s64(left, right);
            svst1_s32(columns_from(vector), to + 4 * vector, svreinterpret_s32_s64(values));
        }
    }
};

}  // namespace
}  // namespace AO_ARM_ISA
}  // namespace ao_arm
