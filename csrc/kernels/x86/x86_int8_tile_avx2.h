// How CPUs with AVX2 multiply a tile of int8 sums, by pairs of int16 as pairs of bytes would saturate; for
// x86_int8_gemm.cpp. Local to the including file (see rows/element_types.h).
#pragma once

#include <immintrin.h>

#include "core/instruction_set.h"
#include "kernels/x86/x86_int8_gemm.h"

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

using LhsValue = int16_t;
constexpr int kMostTileRows = 6;
constexpr int kStripColumns = 8;

inline int32_t sum_of_row(const LhsValue* row, int64_t count) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += row[i];
    return sum;
}

// Strips that a tile of so many rows takes at once: 12 of the 16 registers hold sums.
constexpr int most_strips(int rows) { return rows > 3 ? 1 : 2; }

template <int kRows, int kStrips>
class Tile {
   public:
    void start(const int32_t* of_rows) {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v)
                // The sums of a column are two, of one half of each step of k each.
                sums_[r][v] = _mm256_set1_epi64x(static_cast<uint32_t>(of_rows[r]));
    }

    void add_step(const LhsValue* lhs, int64_t lhs_stride, const uint8_t* strips, int64_t) {
        __m256i columns[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v)
            columns[v] = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(strips + v * 16)));
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            int64_t four;
            __builtin_memcpy(&four, lhs + r * lhs_stride, sizeof four);
            const __m256i row = _mm256_set1_epi64x(four);
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v)
                sums_[r][v] = _mm256_add_epi32(sums_[r][v], _mm256_madd_epi16(columns[v], row));
        }
    }

    void store(int32_t* to, int64_t stride) const {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; v += 2) {
                // Of columns 0, 1, 4, 5, 2, 3, 6, 7.
                const __m256i both = _mm256_hadd_epi32(sums_[r][v], sums_[r][v + 1]);
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + r * stride + v * 4),
                                    _mm256_permute4x64_epi64(both, _MM_SHUFFLE(3, 1, 2, 0)));
            }
    }

   private:
    static_assert(kStrips <= 2, "strips of one block");
    static constexpr int kVectors = 2 * kStrips;  // of 4 columns
    __m256i sums_[kRows][kVectors];
};

}  // namespace
}  // namespace AO_ARM_ISA
}  // namespace ao_arm
