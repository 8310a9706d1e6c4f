// A kernel for weights in groups along k: a row of a table of its own. It multiplies int8 activations by 4-bit weights
// that it packed itself, adds up each group in int32 and the scaled groups in float.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cpu_features.h"
#include "problem.h"

namespace ao_arm {

// Padding of k in packed activations and weights: what the widest step of a kernel takes.
constexpr int64_t kGroupedStep = 32;

// Rows of a block of activations, at most.
constexpr int64_t kMaxRowStep = 16;

// Below this many values a group's sum of (activation) * (16 * weight) stays within 2^22 in magnitude.
constexpr int64_t kLongGroup = 256;

// A layer whose 4-bit weight (n, k) has a scale for each `group` values along k. k is a multiple of group; group is a
// multiple of kGroupedStep or k itself.
struct GroupedProblem {
    int64_t n = 0;
    int64_t k = 0;
    int64_t group = 0;
    DType scale_type = DType::kBFloat16;  // or kFloat32
    bool zero_points = false;             // one for each scale

    int64_t groups() const { return k / group; }
    int64_t padded_group() const { return round_up(group, kGroupedStep); }
    int64_t padded_k() const { return groups() * padded_group(); }
    int64_t scale_bytes() const { return element_size(scale_type); }
};

// A weight as users give it: (q - zero_point) * scale.
struct GroupedValues {
    int8_t* q;           // (n, k), in [-8, 7]
    void* scale;         // (n, k / group), of scale_type
    int8_t* zero_point;  // (n, k / group), in [-8, 7]; null if the problem has none
};

// One call: dst[i][j] = 1 / unit * sum over groups of scale[j][g] * (sum over l in g of lhs[i][l] * (q[j][l] -
// zero_point[j][g])), the inner sum exact in int32, the outer one in float, in the order of the groups.
struct GroupedGemm {
    const GroupedProblem* problem;
    const int8_t* lhs;  // blocks of row_step rows, lhs_bytes apart, the last one with m % row_step rows
    int64_t m;
    const uint8_t* blocks;  // of column_step columns each, block_bytes apart
    int64_t columns;
    float* dst;  // room for m and columns rounded up to row_step and column_step
    int64_t dst_stride;
};

// Stateless. `reject_reasons` is called before anything else; the other functions only for problems it accepts.
// None throws, none starts a thread, and `gemm` may run on many threads at once.
struct GroupedKernel {
    const char* id;
    const char* summary;
    uint32_t features;  // CPU features it cannot run without
    // Appends each reason why it cannot serve the problem here, other than missing CPU features.
    void (*reject_reasons)(const GroupedProblem& problem, std::vector<std::string>& reasons);
    // Estimated cycles of one call with m = 16; of the kernels that fit, the cheapest is taken.
    double (*cost)(const GroupedProblem& problem, const CpuFeatures& cpu);
    // Name of the arrangement of the packed bytes, stored with them.
    std::string (*packing_format)(const GroupedProblem& problem);
    int64_t row_step;
    int64_t column_step;
    int64_t (*block_bytes)(const GroupedProblem& problem);
    // Between a block's columns, from first_column on, and its packed bytes.
    void (*pack)(const GroupedProblem& problem, const GroupedValues& values, int64_t first_column, uint8_t* block);
    void (*unpack)(const GroupedProblem& problem, const uint8_t* block, int64_t first_column,
                   const GroupedValues& values);
    // Bytes of a whole block of row_step rows of padded_k activations.
    int64_t (*lhs_bytes)(int64_t padded_k);
    // Arranges `count` rows of padded_k quantized values each, row_step rows at most, as a block.
    void (*pack_lhs)(const int8_t* const* rows, int64_t count, int64_t padded_k, int8_t* block);
    void (*gemm)(const GroupedGemm& call);
    // What the results of `gemm` are to be multiplied by, a power of two: kernels that shift nibbles into the upper
    // half of a byte multiply by 16 on the way.
    float (*unit)(const GroupedProblem& problem);
};

}  // namespace ao_arm
