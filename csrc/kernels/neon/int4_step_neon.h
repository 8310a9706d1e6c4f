// How AArch64 CPUs without dot products multiply a step of 4-bit weights; for portable_int4_gemm.cpp, which says
// what it computes. Local to the including file (see rows/element_types.h).
#pragma once

#include <arm_neon.h>

#include "core/instruction_set.h"
#include "kernels/portable/portable_int4_gemm.h"

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

template <int kRows>
inline void multiply_step(const int8_t* lhs, int64_t lhs_stride, const uint8_t* weight,
                          int32_t (*acc)[kPortableInt4Columns]) {
    for (int four = 0; four < kPortableInt4Columns; four += 4) {
        int16x8_t sums[kRows][2];  // of two columns each: at most 8 times 15 * 128
        for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = vdupq_n_s16(0);
        for (int v = 0; v < kInt4StepVectors; ++v) {
            const uint8x16_t bytes = vld1q_u8(weight + v * kInt4VectorBytes + four * 4);
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

}  // namespace
}  // namespace AO_ARM_ISA
}  // namespace ao_arm
