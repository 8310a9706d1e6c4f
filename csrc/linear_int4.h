// The fused linear layer on 4-bit weights in groups: quantize activations, multiply, scale, add the bias, clamp.
#pragma once

#include <cstdint>

#include "packed_grouped_weight.h"
#include "parallel.h"

namespace ao_arm {

struct LinearInt4 {
    PackedGroupedWeight weight;
    const void* bias;  // n, or null
    DType bias_dtype;
    const void* input;          // (m, k), contiguous, of `dtype`; null if qdata is given
    const int8_t* qdata;        // (m, k), contiguous, quantized with the tokens' scales and zero points
    const float* token_scale;   // m, or null to choose them from the input
    const int32_t* token_zero;  // m, or null for zeros; only with token_scale
    void* output;               // (m, n), contiguous
    DType dtype;                // of input and output
    int64_t m;
    float least;  // outputs are clamped to [least, greatest]
    float greatest;
};

// Threads that this much work can repay.
Parallel worthwhile(const LinearInt4& layer, const Parallel& parallel);

int64_t scratch_bytes(const LinearInt4& layer, const Parallel& parallel);

// `scratch` is 64-byte aligned.
void run_linear(const LinearInt4& layer, uint8_t* scratch, const Parallel& parallel);

}  // namespace ao_arm
