// The fused linear layer: quantize activations, multiply in int8, scale, add the bias. The kernel only multiplies.
#pragma once

#include <cstdint>

#include "packed_weight.h"
#include "parallel.h"
#include "problem.h"

namespace ao_arm {

enum class ActivationScale {
    kPerToken,   // each token's own
    kPerTensor,  // the whole input's own
    kStatic,     // given
};

struct LinearInt8 {
    PackedWeight weight;
    const float* weight_scale;  // n
    const void* bias;           // n floats, or null
    DType bias_dtype;
    const void* input;  // (m, k), contiguous; int8 and uint8 with static activations only
    DType input_dtype;
    void* output;  // (m, n), contiguous; int8 and uint8 with static activations only
    DType output_dtype;
    int64_t m;
    ActivationScale activation_scale;
    bool activation_symmetric;  // unless kStatic
    float input_scale;          // these two only if kStatic
    int32_t input_zero_point;   // of activations as int8; uint8 ones are moved by 128
    float output_scale;         // these two only for int8 and uint8 outputs
    int32_t output_zero_point;
    float least;  // outputs are clamped to these two; infinite if they are not
    float greatest;
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
