// How x86 CPUs with AVX-512 VNNI or AVX2 multiply a step of 4-bit weights; for portable_int4_gemm.cpp, which says what
// it computes. Local to the including file (see rows/element_types.h).
#pragma once

#include <immintrin.h>

#include "core/instruction_set.h"
#include "kernels/portable/portable_int4_gemm.h"

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

#if defined(__AVX512VNNI__)
template <int kRows>
inline void multiply_step(const int8_t* lhs, int64_t lhs_stride, const uint8_t* weight,
                          int32_t (*acc)[kPortableInt4Columns]) {
    __m512i sums[kRows];
    for (int r = 0; r < kRows; ++r) sums[r] = _mm512_loadu_si512(acc[r]);
    const __m512i mask = _mm512_set1_epi8(15);
    for (int v = 0; v < kInt4StepVectors; ++v) {
        const __m512i bytes = _mm512_loadu_si512(weight + v * kInt4VectorBytes);
        const __m512i low = _mm512_and_si512(bytes, mask);
        const __m512i high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask);
        for (int r = 0; r < kRows; ++r) {
            int32_t four[2];
            __builtin_memcpy(four, lhs + r * lhs_stride + v * 8, sizeof four);
            sums[r] = _mm512_dpbusd_epi32(sums[r], low, _mm512_set1_epi32(four[0]));
            sums[r] = _mm512_dpbusd_epi32(sums[r], high, _mm512_set1_epi32(four[1]));
        }
    }
    for (int r = 0; r < kRows; ++r) _mm512_storeu_si512(acc[r], sums[r]);
}
#else
template <int kRows>
inline void multiply_step(const int8_t* lhs, int64_t lhs_stride, const uint8_t* weight,
                          int32_t (*acc)[kPortableInt4Columns]) {
    const __m256i mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    for (int half = 0; half < 2; ++half) {
        __m256i sums[kRows];  // of int16: at most 8 times 2 * 15 * 128
        for (int r = 0; r < kRows; ++r) sums[r] = _mm256_setzero_si256();
        for (int v = 0; v < kInt4StepVectors; ++v) {
            const auto* at = reinterpret_cast<const __m256i*>(weight + v * kInt4VectorBytes + half * 32);
            const __m256i bytes = _mm256_loadu_si256(at);
            const __m256i low = _mm256_and_si256(bytes, mask);
            const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
            for (int r = 0; r < kRows; ++r) {
                int32_t four[2];
                __builtin_memcpy(four, lhs + r * lhs_stride + v * 8, sizeof four);
                sums[r] = _mm256_add_epi16(sums[r], _mm256_maddubs_epi16(low, _mm256_set1_epi32(four[0])));
                sums[r] = _mm256_add_epi16(sums[r], _mm256_maddubs_epi16(high, _mm256_set1_epi32(four[1])));
            }
        }
        for (int r = 0; r < kRows; ++r) {
            auto* to = reinterpret_cast<__m256i*>(acc[r] + half * 8);
            _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), _mm256_madd_epi16(sums[r], ones)));
        }
    }
}
#endif

}  // namespace
}  // namespace AO_ARM_ISA
}  // namespace ao_arm
