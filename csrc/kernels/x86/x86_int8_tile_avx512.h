// How CPUs with AVX-512 VNNI multiply a tile of int8 sums; for x86_int8_gemm.cpp. Local to the including file (see
// rows/element_types.h).
#pragma once

#include <immintrin.h>

#include "core/instruction_set.h"
#include "kernels/x86/x86_int8_gemm.h"

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

using LhsValue = int8_t;
constexpr int kMostTileRows = 8;
constexpr int kStripColumns = 16;  // of a vector of sums

inline int32_t sum_of_row(const LhsValue* row, int64_t count) {
    __m512i sums = _mm512_setzero_si512();
    const __m512i ones = _mm512_set1_epi8(1);
    for (int64_t i = 0; i < count; i += 64) sums = _mm512_dpbusd_epi32(sums, ones, _mm512_loadu_si512(row + i));
    int32_t parts[16], sum = 0;
    _mm512_storeu_si512(parts, sums);
    for (const int32_t part : parts) sum += part;
    return sum;
}

// Bytes that the weight is asked for ahead of its use: what comes from memory is not fast enough for few rows.
constexpr int64_t kPrefetched = 1024;

// Strips that a tile of so many rows takes at once: 24 of the 32 registers hold sums or, of few rows, as many as are
// needed for no multiplication to wait for an earlier one.
constexpr int most_strips(int rows) { return rows > 6 ? 3 : rows > 2 ? 4 : 8; }

template <int kRows, int kStrips>
class Tile {
   public:
    void start(const int32_t* of_rows) {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
            for (int s = 0; s < kStrips; ++s) sums_[r][s] = _mm512_set1_epi32(of_rows[r]);
    }

    // `strips` lie strip_bytes apart.
    void add_step(const LhsValue* lhs, int64_t lhs_stride, const uint8_t* strips, int64_t strip_bytes) {
        __m512i columns[kStrips];
#pragma GCC unroll 8
        for (int s = 0; s < kStrips; ++s) {
            _mm_prefetch(strips + s * strip_bytes + kPrefetched, _MM_HINT_T0);
            columns[s] = _mm512_loadu_si512(strips + s * strip_bytes);
        }
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            int32_t four;
            __builtin_memcpy(&four, lhs + r * lhs_stride, sizeof four);
            const __m512i row = _mm512_set1_epi32(four);
#pragma GCC unroll 8
            for (int s = 0; s < kStrips; ++s) sums_[r][s] = _mm512_dpbusd_epi32(sums_[r][s], columns[s], row);
        }
    }

    void store(int32_t* to, int64_t stride) const {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
            for (int s = 0; s < kStrips; ++s) _mm512_storeu_si512(to + r * stride + s * kStripColumns, sums_[r][s]);
    }

   private:
    __m512i sums_[kRows][kStrips];
};

}  // namespace
}  // namespace AO_ARM_ISA
}  // namespace ao_arm
