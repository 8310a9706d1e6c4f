// How CPUs with AVX2 multiply a tile of a group of 4-bit weights; for x86_int4_gemm.cpp. Local to the including file
// (see rows/element_types.h).
#pragma once

#include <immintrin.h>

#include "core/instruction_set.h"
#include "kernels/x86/x86_int4_gemm.h"

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

constexpr int kMostTileRows = 4;
constexpr int kStripColumns = 8;  // of a vector of sums

// A tile has one strip: of each row and strip two vectors of sums are in use.
constexpr int most_strips(int) { return 1; }

template <int kRows, int kStrips>
class Tile {
    static_assert(kStrips == 1, "as many as most_strips says");

   public:
    // From each row's sums before and after the group, and the columns' zeros; null if all are 8.
    void start(const int32_t* before, const int32_t* after, int64_t stride, const uint8_t* zeros, int64_t) {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const __m256i row =
                _mm256_sub_epi32(_mm256_set1_epi32(before[r * stride]), _mm256_set1_epi32(after[r * stride]));
            sums_[r] = zeros == nullptr ? _mm256_slli_epi32(row, 3) : _mm256_mullo_epi32(row, columns_of(zeros));
        }
    }

    void add_steps(const int8_t* lhs, int64_t lhs_stride, const uint8_t* strip, int64_t, int64_t steps) {
        for (int64_t step = 0; step < steps; ++step)
            add_step(lhs + step * kGroupStep, lhs_stride, strip + step * kX86Int4StepBytes);
    }

    // Adds the group's sums, scaled, to those of the groups before.
    void finish(const uint8_t* scales, int64_t scale_bytes, int64_t, float* to, int64_t to_stride) const {
        const __m256 scale = scales_of(scales, scale_bytes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            float* at = to + r * to_stride;
            const __m256 scaled = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(sums_[r]));
            _mm256_storeu_ps(at, _mm256_add_ps(_mm256_loadu_ps(at), scaled));
        }
    }

   private:
    void add_step(const int8_t* lhs, int64_t lhs_stride, const uint8_t* strip) {
        const __m256i mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
        __m256i pairs[kRows];  // of int16: at most 8 times 2 * 15 * 128
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) pairs[r] = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int l = 0; l < kGroupStep; l += 8) {
            const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(strip));
            const __m256i low = _mm256_and_si256(bytes, mask);
            const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
                const int8_t* row = lhs + r * lhs_stride + l;
                pairs[r] = _mm256_add_epi16(pairs[r], _mm256_maddubs_epi16(low, four_of(row)));
                pairs[r] = _mm256_add_epi16(pairs[r], _mm256_maddubs_epi16(high, four_of(row + 4)));
            }
            strip += kX86Int4VectorBytes;
        }
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) sums_[r] = _mm256_add_epi32(sums_[r], _mm256_madd_epi16(pairs[r], ones));
    }

    static __m256i four_of(const int8_t* values) {
        int32_t four;
        __builtin_memcpy(&four, values, sizeof four);
        return _mm256_set1_epi32(four);
    }

    static __m256i columns_of(const uint8_t* bytes) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
    }

    static __m256 scales_of(const uint8_t* scales, int64_t scale_bytes) {
        if (scale_bytes == 4) return _mm256_loadu_ps(reinterpret_cast<const float*>(scales));
        const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    }

    __m256i sums_[kRows];
};

}  // namespace
}  // namespace AO_ARM_ISA
}  // namespace ao_arm
