// A step of both operands as matrix instructions take it, of Neon and of SVE alike; for neon_int8_gemm.cpp, which says
// what the function does.
#pragma once

#include <arm_neon.h>

#include "core/instruction_set.h"
#include "kernels/neon/neon_int8_gemm.h"

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

constexpr int64_t kStep = kI8mmStep;
constexpr bool kServesUnsignedLhs = true;

inline void interleave_rows(const int8_t* const (&rows)[16 / kStep], int64_t bytes, int8_t* to, int64_t to_stride) {
    int64_t i = 0;
    for (; i + 16 <= bytes; i += 16) {
        const int64x2_t one = vreinterpretq_s64_s8(vld1q_s8(rows[0] + i));
        const int64x2_t two = vreinterpretq_s64_s8(vld1q_s8(rows[1] + i));
        vst1q_s8(to, vreinterpretq_s8_s64(vzip1q_s64(one, two)));
        vst1q_s8(to + to_stride, vreinterpretq_s8_s64(vzip2q_s64(one, two)));
        to += 2 * to_stride;
    }
    if (i < bytes) vst1q_s8(to, vcombine_s8(vld1_s8(rows[0] + i), vld1_s8(rows[1] + i)));
}

}  // namespace
}  // namespace AO_ARM_ISA
}  // namespace ao_arm
