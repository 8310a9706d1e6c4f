// How CPUs with AVX-512 VNNI multiply a tile of a group of 4-bit weights; for x86_int4_gemm.cpp. Local to the including
// file (see rows/element_types.h).
#pragma once

#include <immintrin.h>

#include "core/instruction_set.h"
#include "kernels/x86/x86_int4_gemm.h"

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

constexpr int kMostTileRows = 8;
constexpr int kStripColumns = 16;  // of a vector of sums

// Bytes that the weight is asked for ahead of its use: what comes from memory is not fast enough for few rows.
constexpr int64_t kPrefetched = 2048;

// Strips that a tile of so many rows takes at once: beside 16 vectors of sums there is room for expanded nibbles.
constexpr int most_strips(int rows) { return rows > 2 ? 2 : 4; }

template <int kRows, int kStrips>
class Tile {
   public:
    // From each row's sums before and after the group, and the columns' zeros, strip_bytes apart; null if all are 8.
    void start(const int32_t* before, const int32_t* after, int64_t stride, const uint8_t* zeros, int64_t strip_bytes) {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const __m512i row =
                _mm512_sub_epi32(_mm512_set1_epi32(before[r * stride]), _mm512_set1_epi32(after[r * stride]));
#pragma GCC unroll 8
            for (int s = 0; s < kStrips; ++s)
                sums_[r][s] = zeros == nullptr ? _mm512_slli_epi32(row, 3)
                                               : _mm512_mullo_epi32(row, columns_of(zeros + s * strip_bytes));
        }
    }

    void add_steps(const int8_t* lhs, int64_t lhs_stride, const uint8_t* strips, int64_t strip_bytes, int64_t steps) {
        const __m512i mask = _mm512_set1_epi8(15);
        for (int64_t l = 0; l < steps * kGroupStep; l += 8) {
            __m512i halves[2][kStrips];
#pragma GCC unroll 8
            for (int s = 0; s < kStrips; ++s) {
                _mm_prefetch(strips + s * strip_bytes + kPrefetched, _MM_HINT_T0);
                const __m512i bytes = _mm512_loadu_si512(strips + s * strip_bytes);
                halves[0][s] = _mm512_and_si512(bytes, mask);
                halves[1][s] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask);
            }
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 8
                for (int r = 0; r < kRows; ++r) {
                    const __m512i row = four_of(lhs + r * lhs_stride + l + half * 4);
#pragma GCC unroll 8
                    for (int s = 0; s < kStrips; ++s)
                        sums_[r][s] = _mm512_dpbusd_epi32(sums_[r][s], halves[half][s], row);
                }
            }
            strips += kX86Int4VectorBytes;
        }
    }

    // Adds the group's sums, scaled, to those of the groups before. A strip's scales are strip_bytes apart.
    void finish(const uint8_t* scales, int64_t scale_bytes, int64_t strip_bytes, float* to, int64_t to_stride) const {
#pragma GCC unroll 8
        for (int s = 0; s < kStrips; ++s) {
            const __m512 scale = scales_of(scales + s * strip_bytes, scale_bytes);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
                float* at = to + r * to_stride + s * kStripColumns;
                const __m512 scaled = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sums_[r][s]));
                _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), scaled));
            }
        }
    }

   private:
    static __m512i four_of(const int8_t* values) {
        int32_t four;
        __builtin_memcpy(&four, values, sizeof four);
        return _mm512_set1_epi32(four);
    }

    static __m512i columns_of(const uint8_t* bytes) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    }

    static __m512 scales_of(const uint8_t* scales, int64_t scale_bytes) {
        if (scale_bytes == 4) return _mm512_loadu_ps(scales);
        const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
    }

    __m512i sums_[kRows][kStrips];
};

}  // namespace
}  // namespace AO_ARM_ISA
}  // namespace ao_arm
