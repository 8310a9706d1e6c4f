// Work on rows around the integer GEMM: quantizing activations before it, scaling accumulators after it.
// Plain loops that the compiler vectorises; row_routines.cpp is compiled once per instruction set.
#pragma once

#include <cstdint>

#include "core/problem.h"

namespace ao_arm {

struct RowRange {
    float minimum;
    float maximum;
    bool finite;  // false if the row holds a NaN or an infinity; the other two are then meaningless
};

// A tile of sums, and of the output that is made of them: some rows by some columns. What belongs to the columns is
// loaded once for two rows.
template <class Sum>
struct SumsTile {
    int64_t rows;
    int64_t columns;
    const Sum* sums;
    int64_t sums_stride;
    void* out;
    int64_t out_stride;  // both strides in elements
};

// out[i][j] = token_scale[i] * weight_scale[j] * (sums[i][j] - zero_point[i] * column_sums[j]) + bias[j], clamped to
// [least, greatest] if these are not infinite; a NaN stays one.
struct ScaledTile : SumsTile<int32_t> {
    const float* weight_scale;
    const int32_t* column_sums;  // null if all zero points are 0
    const float* bias;           // null for none
    const float* token_scale;
    const int32_t* zero_point;
    float least;
    float greatest;
};

// The same of sums over groups that their own scales were multiplied into: out[i][j] = token_scale[i] * (sums[i][j] -
// zero_point[i] * column_sums[j]) + bias[j], clamped likewise.
struct Int4Tile : SumsTile<float> {
    const float* column_sums;
    const float* bias;  // null for none
    const float* token_scale;
    const float* zero_point;
    float least;
    float greatest;
};

// What all rows of a requantized output have in common, for each column: multiplier = input_scale * weight_scale
// * (1 / output_scale), and offset = bias / (input_scale * weight_scale), rounded half to even, - zero_point *
// column_sum, of which both parts saturate to int32. A multiplier is finite, and 0 in place of a NaN: so that no
// product is a NaN, which each instruction set would clamp in its own way.
struct FoldedColumns {
    const float* weight_scale;
    const int32_t* column_sums;
    const float* bias;  // null for none
    float input_scale;
    int32_t input_zero_point;
    float output_scale;
    int32_t* offsets;
    float* multipliers;
};

// out[i][j] = clamp(round_half_to_even((sums[i][j] + offsets[j]) * multipliers[j]) + zero_point, least, greatest). The
// sum saturates to int32.
struct RequantizedTile : SumsTile<int32_t> {
    const int32_t* offsets;
    const float* multipliers;
    int32_t zero_point;
    int32_t least;
    int32_t greatest;
};

// Arrays are indexed by DType.
struct RowRoutines {
    // Largest magnitude of k elements, in both fields.
    RowRange (*absolute_range[kFloatTypes])(const void* row, int64_t k);
    // Least and greatest of k elements.
    RowRange (*range[kFloatTypes])(const void* row, int64_t k);
    // q = clamp(round_half_to_even(x * inverse_scale) + zero_point, -128, 127). Infinities saturate; a NaN counts as 0.
    void (*quantize[kFloatTypes])(const void* row, int64_t k, float inverse_scale, int32_t zero_point, int8_t* q);
    // The same for rows of which each x * inverse_scale lies within [-2^15, 2^15 - 256].
    void (*quantize_fitting[kFloatTypes])(const void* row, int64_t k, float inverse_scale, int32_t zero_point,
                                          int8_t* q);
    // Write elements of the given type, rounded once from float.
    void (*scale[kFloatTypes])(const ScaledTile& tile);
    void (*scale_int4[kFloatTypes])(const Int4Tile& tile);
    // Fills in offsets and multipliers of n columns.
    void (*fold_columns)(const FoldedColumns& columns, int64_t n);
    // Write bytes: int8 or, with bounds within [0, 255], uint8.
    void (*requantize_int8)(const RequantizedTile& tile);
    void (*requantize_uint8)(const RequantizedTile& tile);
    // n uint8 values less 128.
    void (*shift_uint8)(const uint8_t* row, int64_t n, int8_t* out);
    // n elements of the given type as floats.
    void (*to_float[kFloatTypes])(const void* row, int64_t n, float* out);
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
