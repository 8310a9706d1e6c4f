// Work on single rows around the integer GEMM: quantizing activations before it, scaling accumulators after it.
// Plain loops that the compiler vectorises; row_routines.cpp is compiled once per instruction set.
#pragma once

#include <cstdint>

#include "problem.h"

namespace ao_arm {

struct RowRange {
    float minimum;
    float maximum;
    bool finite;  // false if the row holds a NaN or an infinity; the other two are then meaningless
};

// One token's output: out[j] = token_scale * weight_scale[j] * (acc[j] - zero_point * column_sums[j]) + bias[j].
struct EpilogueRow {
    const int32_t* accumulators;
    const int32_t* column_sums;
    const float* weight_scale;
    const float* bias;  // null for none
    float token_scale;
    int32_t zero_point;
};

// Arrays are indexed by DType.
struct RowRoutines {
    // Largest magnitude of k elements, in both fields.
    RowRange (*absolute_range[kDTypes])(const void* row, int64_t k);
    // Least and greatest of k elements.
    RowRange (*range[kDTypes])(const void* row, int64_t k);
    // q = clamp(round_half_to_even(x * inverse_scale) + zero_point, -128, 127).
    void (*quantize[kDTypes])(const void* row, int64_t k, float inverse_scale, int32_t zero_point, int8_t* q);
    // Writes n elements in the given type, rounded once from float.
    void (*epilogue[kDTypes])(const EpilogueRow& row, int64_t n, void* out);
    // n elements of the given type as floats.
    void (*to_float[kDTypes])(const void* row, int64_t n, float* out);
    // n elements set to NaN.
    void (*fill_nan[kDTypes])(int64_t n, void* out);
};

// The routines for this CPU.
const RowRoutines& row_routines();

namespace isa_baseline {
extern const RowRoutines kRowRoutines;
}
#if defined(__x86_64__)
namespace isa_avx2 {
extern const RowRoutines kRowRoutines;
}
namespace isa_avx512 {
extern const RowRoutines kRowRoutines;
}
#endif

}  // namespace ao_arm
