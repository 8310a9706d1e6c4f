// Compiled once per instruction set, with AO_ARM_ISA naming the namespace. Everything but the entry point is local.
//
// Nibbles hold q + 8, in [0, 15], and multiply-accumulate instructions of x86 take them as they are, unsigned. What is
// too much, (zero_point + 8) * (sum of the activations), is taken off each group's sum.
#include "portable_grouped_gemm.h"

#include "element_types.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

constexpr int kColumns = 16;  // of a block (grouped_block.h)
constexpr int kVector = 64;   // bytes: 16 columns by 8 values along k
constexpr int kVectors = kGroupedStep / 8;

// acc[r][j] += sum over kGroupedStep values of row r times column j.
#if defined(__AVX512VNNI__)
template <int kRows>
inline void multiply_step(const int8_t* lhs, int64_t lhs_stride, const uint8_t* weight, int32_t (*acc)[kColumns]) {
    __m512i sums[kRows];
    for (int r = 0; r < kRows; ++r) sums[r] = _mm512_loadu_si512(acc[r]);
    const __m512i mask = _mm512_set1_epi8(15);
    for (int v = 0; v < kVectors; ++v) {
        const __m512i bytes = _mm512_loadu_si512(weight + v * kVector);
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
#elif defined(__AVX2__)
template <int kRows>
inline void multiply_step(const int8_t* lhs, int64_t lhs_stride, const uint8_t* weight, int32_t (*acc)[kColumns]) {
    const __m256i mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    for (int half = 0; half < 2; ++half) {
        __m256i sums[kRows];  // of int16: at most 8 times 2 * 15 * 128
        for (int r = 0; r < kRows; ++r) sums[r] = _mm256_setzero_si256();
        for (int v = 0; v < kVectors; ++v) {
            const auto* at = reinterpret_cast<const __m256i*>(weight + v * kVector + half * 32);
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
#elif defined(__aarch64__)
template <int kRows>
inline void multiply_step(const int8_t* lhs, int64_t lhs_stride, const uint8_t* weight, int32_t (*acc)[kColumns]) {
    for (int four = 0; four < kColumns; four += 4) {
        int16x8_t sums[kRows][2];  // of two columns each: at most 8 times 15 * 128
        for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = vdupq_n_s16(0);
        for (int v = 0; v < kVectors; ++v) {
            const uint8x16_t bytes = vld1q_u8(weight + v * kVector + four * 4);
            const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
            const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
            for (int r = 0; r < kRows; ++r) {
                int32_t values[2];
                __builtin_memcpy(values, lhs + r * lhs_stride + v * 8, sizeof values);
                const int8x16_t first = vreinterpretq_s8_s32(vdupq_n_s32(values[0]));
                const int8x16_t second = vreinterpretq_s8_s32(vdupq_n_s32(values[1]));
                sums[r][0] = vmlal_s8(sums[r][0], vget_low_s8(low), vget_low_s8(first));
                sums[r][1] = vmlal_high_s8(sums[r][1], low, first);
                sums[r][0] = vmlal_s8(sums[r][0], vget_low_s8(high), vget_low_s8(second));
                sums[r][1] = vmlal_high_s8(sums[r][1], high, second);
            }
        }
        for (int r = 0; r < kRows; ++r) {
            const int32x4_t columns = vpaddq_s32(vpaddlq_s16(sums[r][0]), vpaddlq_s16(sums[r][1]));
            vst1q_s32(acc[r] + four, vaddq_s32(vld1q_s32(acc[r] + four), columns));
        }
    }
}
#else
// Products and their sums over 8 values fit in int16, of which vectors hold twice as many.
template <int kRows>
inline void multiply_step(const int8_t* lhs, int64_t lhs_stride, const uint8_t* weight, int32_t (*acc)[kColumns]) {
    for (int v = 0; v < kVectors; ++v) {
        int16_t values[8][kColumns];
        for (int j = 0; j < kColumns; ++j) {
            for (int l = 0; l < 4; ++l) {
                const uint8_t byte = weight[v * kVector + j * 4 + l];
                values[l][j] = static_cast<int16_t>(byte & 15);
                values[4 + l][j] = static_cast<int16_t>(byte >> 4);
            }
        }
        for (int r = 0; r < kRows; ++r) {
            int16_t sums[kColumns] = {};
            for (int l = 0; l < 8; ++l) {
                const int16_t activation = lhs[r * lhs_stride + v * 8 + l];
                for (int j = 0; j < kColumns; ++j)
                    sums[j] = static_cast<int16_t>(sums[j] + static_cast<int16_t>(activation * values[l][j]));
            }
            for (int j = 0; j < kColumns; ++j) acc[r][j] += sums[j];
        }
    }
}
#endif

// One block of columns.
struct Columns {
    const uint8_t* block;
    int64_t groups;
    int64_t padded_group;
    int64_t scale_bytes;
    bool zero_points;
};

template <int kRows>
void tile(const int8_t* lhs, int64_t padded_k, const int32_t* step_sums, const Columns& columns, float* dst,
          int64_t dst_stride) {
    const int64_t steps = columns.padded_group / kGroupedStep, all_steps = padded_k / kGroupedStep;
    const uint8_t* weight = columns.block;
    float sums[kRows][kColumns] = {};
    for (int64_t g = 0; g < columns.groups; ++g) {
        int32_t acc[kRows][kColumns] = {};
        int32_t activations[kRows] = {};
        for (int64_t step = 0; step < steps; ++step) {
            multiply_step<kRows>(lhs, padded_k, weight, acc);
            for (int r = 0; r < kRows; ++r) activations[r] += step_sums[r * all_steps];
            lhs += kGroupedStep;
            weight += kVectors * kVector;
            ++step_sums;
        }
        float scales[kColumns];
        int32_t zeros[kColumns];
        for (int j = 0; j < kColumns; ++j) {
            uint16_t half;
            __builtin_memcpy(&half, weight + 2 * j, sizeof half);
            scales[j] = BFloat16::load(half);
        }
        if (columns.scale_bytes == 4) __builtin_memcpy(scales, weight, sizeof scales);
        weight += kColumns * columns.scale_bytes;
        for (int j = 0; j < kColumns; ++j) zeros[j] = columns.zero_points ? weight[j] : 8;
        weight += columns.zero_points ? kColumns : 0;
        for (int r = 0; r < kRows; ++r)
            for (int j = 0; j < kColumns; ++j)
                sums[r][j] += scales[j] * static_cast<float>(acc[r][j] - zeros[j] * activations[r]);
    }
    for (int r = 0; r < kRows; ++r)
        for (int j = 0; j < kColumns; ++j) dst[r * dst_stride + j] = sums[r][j];
}

}  // namespace

void grouped_gemm(const GroupedGemm& call) {
    const GroupedProblem& problem = *call.problem;
    const int64_t padded_k = problem.padded_k(), steps = padded_k / kGroupedStep;
    Columns columns = {call.blocks, problem.groups(), problem.padded_group(), problem.scale_bytes(),
                       problem.zero_points};
    const int64_t block_bytes =
        kColumns * (padded_k / 2 + problem.groups() * (columns.scale_bytes + (problem.zero_points ? 1 : 0)));
    for (int64_t column = 0; column < call.columns; column += kColumns, columns.block += block_bytes) {
        const int8_t* block = call.lhs;
        for (int64_t row = 0; row < call.m; row += kPortableGroupedRows, block += portable_lhs_bytes(padded_k)) {
            const int64_t rows = call.m - row < kPortableGroupedRows ? call.m - row : kPortableGroupedRows;
            const int32_t* step_sums = portable_lhs_sums(block, padded_k);
            float* dst = call.dst + row * call.dst_stride + column;
            int64_t r = 0;
            for (; r + 4 <= rows; r += 4)
                tile<4>(block + r * padded_k, padded_k, step_sums + r * steps, columns, dst + r * call.dst_stride,
                        call.dst_stride);
            for (; r < rows; ++r)
                tile<1>(block + r * padded_k, padded_k, step_sums + r * steps, columns, dst + r * call.dst_stride,
                        call.dst_stride);
        }
    }
}

}  // namespace AO_ARM_ISA
}  // namespace ao_arm
