// The fused linear layer: quantize activations, multiply in int8, scale, add the bias. The kernel
// multiplies, and may scale whole blocks of rows.
#pragma once

#include <cstdint>

#include "core/cut.h"
#include "core/parallel.h"
#include "core/problem.h"
#include "layer/packed_weight.h"

namespace ao_arm {

// Where the scales and zero points of activations come from.
enum class ActivationScale {
    kPerToken,   // each token's own range
    kPerTensor,  // the whole input's own range
    kStatic,     // one is given for all
    kGiven,      // one is given for each token
};

struct Linear {
    PackedWeight weight;
    const float* weight_scale;  // n, of int8 weights
    const void* bias;           // n floats, or null
    DType bias_dtype;
    const void* input;  // (m, k), contiguous; int8 and uint8 are quantized already, by what is given
    DType input_dtype;
    void* output;        // (m, n), contiguous
    DType output_dtype;  // of int8 weights also int8 and uint8, from static activations, and int32: the sums themselves
    int64_t m;
    ActivationScale activation_scale;
    bool activation_symmetric;        // if kPerToken or kPerTensor
    float input_scale;                // these two only if kStatic
    int32_t input_zero_point;         // of activations as int8; uint8 ones are moved by 128
    const float* token_scale;         // these two only if kGiven: m
    const int32_t* token_zero_point;  // m, or null for zeros
    float output_scale;               // these two only for int8 and uint8 outputs
    int32_t output_zero_point;
    float least;  // outputs are clamped to these two; infinite if they are not
    float greatest;

    // Whether the kernel gets uint8 activations as they are. Others get them less 128.
    bool multiplies_uint8() const { return input_dtype == DType::kUInt8 && weight.kernel->serves_unsigned_lhs; }
    // The static zero point of the bytes that the kernel multiplies.
    int32_t multiplied_zero_point() const { return input_zero_point + (multiplies_uint8() ? 128 : 0); }
};

// Layers of one call: one, or several that multiply the same activations. All but the weight, its scales, the bias and
// the output is the same in each, and any two share_activations.
struct Linears {
    const Linear* first;
    int64_t count;

    const Linear* begin() const { return first; }
    const Linear* end() const { return first + count; }
};

// Whether layers with the same input can be in one call: their kernels multiply the same lhs blocks.
bool share_activations(const Linear& a, const Linear& b);

// How many of the threads a call of the layers is quickest with.
Team best_team(const Linears& layers, int64_t threads);

// A call of layers, which it refers to, planned for a team of threads, of which there are `parallel.threads()` at most.
// Activations are quantized once.
class LinearCall {
   public:
    LinearCall(const Linear& layer, const Parallel& parallel) : LinearCall({&layer, 1}, parallel) {}
    LinearCall(const Linears& layers, const Parallel& parallel)
        : LinearCall(layers, parallel, best_team(layers, parallel.threads())) {}
    LinearCall(const Linears& layers, const Parallel& parallel, const Team& team);

    int64_t scratch_bytes() const;

    // `scratch` is 64-byte aligned. False if the kernel's library failed; the outputs are then unspecified.
    bool run(uint8_t* scratch) const;

   private:
    struct Scratch;

    bool multiply_share(const Scratch& scratch, const Cut& cut, int64_t share, int64_t begin,
                        bool has_zero_points) const;
    bool multiply_part(const Linear& layer, const Rectangle& part, const Scratch& scratch, uint8_t* own, int64_t begin,
                       bool has_zero_points) const;

    Linears layers_;
    Parallel parallel_;
    Team team_;
    int64_t stretch_rows_;  // rows are taken in stretches whose quantized form stays small
    TileSize tile_;
};

}  // namespace ao_arm
