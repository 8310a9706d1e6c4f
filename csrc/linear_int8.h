// The fused linear layer: quantize activations, multiply in int8, scale, add the bias. The kernel only multiplies.
#pragma once

#include <cstdint>

#include "packed_weight.h"
#include "parallel.h"
#include "problem.h"

namespace ao_arm {

struct LinearInt8 {
    PackedWeight weight;
    const float* weight_scale;  // n
    const void* bias;           // n, or null
    DType bias_dtype;
    const void* input;  // (m, k), contiguous
    void* output;       // (m, n), contiguous, of the input's type
    DType dtype;
    int64_t m;
    bool activation_symmetric;
    bool per_token;  // one scale for each token, or one for the whole input
};

// Threads that this much work can repay.
Parallel worthwhile(const LinearInt8& layer, const Parallel& parallel);

int64_t scratch_bytes(const LinearInt8& layer, const Parallel& parallel);

// `scratch` is 64-byte aligned. False if the kernel's library failed; the output is then unspecified.
bool run_linear(const LinearInt8& layer, uint8_t* scratch, const Parallel& parallel);

int64_t matmul_scratch_bytes(const PackedWeight& weight, const Parallel& parallel);

// The kernel alone: output = qdata @ weight^T in int32, for (m, k) int8 values. Shows that accumulation is exact.
bool run_matmul(const PackedWeight& weight, const int8_t* qdata, int64_t m, int32_t* output, uint8_t* scratch,
                const Parallel& parallel);

}  // namespace ao_arm
