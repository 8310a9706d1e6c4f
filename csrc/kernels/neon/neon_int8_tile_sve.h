// Tiles of sums where SVE's vectors have 256 bits: Neon's, but for calls of one and two rows, which wait for loads of
// the weight and take 256 bits of it at a time. Such a vector is two consecutive ones of Neon's.
#pragma once

#include <arm_sve.h>

#include <type_traits>

#include "core/instruction_set.h"
#include "kernels/neon/neon_int8_tile_i8mm.h"

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

static_assert(__ARM_FEATURE_SVE_BITS == 256);
using SveBytes = svint8_t __attribute__((arm_sve_vector_bits(256)));
using SveSums = svint32_t __attribute__((arm_sve_vector_bits(256)));
using SveHalves = svint64_t __attribute__((arm_sve_vector_bits(256)));

// smmla and usmmla multiply two rows by two columns in each half of a vector:
// {row 0 x column 0, row 0 x column 1, row 1 x column 0, row 1 x column 1, row 0 x column 2, ...}.
inline SveSums multiply(SignedLhs, SveSums sums, SveBytes rows, SveBytes columns) {
    return svmmla_s32(sums, rows, columns);
}
inline SveSums multiply(UnsignedLhs, SveSums sums, SveBytes rows, SveBytes columns) {
    return svusmmla_s32(sums, svreinterpret_u8_s8(rows), columns);
}

// One or two rows by an even number of tiles.
template <class Lhs, int kRows, int kTiles>
struct SveTile {
    static_assert(kRows <= 2 && kTiles % 2 == 0);
    static constexpr bool kLoneRowInVectors = false;
    static constexpr int kTileVectors = kNeonTileColumns / 4;
    static constexpr int kVectors = kTiles * kTileVectors;
    SveSums sums[kVectors];

    inline void clear() {
#pragma GCC unroll 12
        for (int vector = 0; vector < kVectors; ++vector) sums[vector] = svdup_s32(0);
    }

    inline void add_step(const int8_t* lhs, const int8_t* rhs, int64_t tile_bytes) {
        SveBytes rows;
        if constexpr (kRows == 1) {
            // Both places of a pair, by way of a general register: loads of vectors are what this waits for.
            int64_t step;
            __builtin_memcpy(&step, lhs, kStep);
            __asm__("" : "+r"(step));
            rows = svreinterpret_s8_s64(svdup_s64(step));
        } else {
            rows = svld1rq_s8(svptrue_b8(), lhs);
        }
#pragma GCC unroll 12
        for (int vector = 0; vector < kVectors; ++vector) {
            const SveBytes columns =
                svld1_s8(svptrue_b8(), rhs + vector / kTileVectors * tile_bytes + 32 * (vector % kTileVectors));
            sums[vector] = multiply(Lhs(), sums[vector], rows, columns);
        }
    }

    // A row is every other half of half a vector, from the first one or the second one on.
    inline void store_row(int row, int32_t* to) const {
#pragma GCC unroll 12
        for (int vector = 0; vector < kVectors; vector += 2) {
            const SveHalves left = svreinterpret_s64_s32(sums[vector]);
            const SveHalves right = svreinterpret_s64_s32(sums[vector + 1]);
            const SveHalves values = row == 0 ? svuzp1_s64(left, right) : svuzp2_s64(left, right);
            svst1_s32(svptrue_b32(), to + 4 * vector, svreinterpret_s32_s64(values));
        }
    }
};

template <class Lhs, int kRows, int kTiles>
using TileOf = std::conditional_t<kTiles == 4, SveTile<Lhs, kRows, kTiles>, Tile<Lhs, kRows, kTiles>>;

}  // namespace
}  // namespace AO_ARM_ISA
}  // namespace ao_arm
