// From a token's float activations to int8: the choice of scale and zero point, and the quantization itself.
#pragma once

#include <cstdint>

#include "core/problem.h"
#include "rows/row_routines.h"

namespace ao_arm {

struct TokenQuantization {
    float scale;  // NaN if the token holds a NaN or an infinity: so its outputs are NaN
    int32_t zero_point;
    // The scale was chosen for the values that it is used for: divided by it they stay within a few hundred.
    bool fits = false;
};

// Symmetric: scale = largest magnitude / 127.5 in the activations' own type, at least 2^-23 (torchao's default for
// int8 dynamic activations). Asymmetric: scale = (max - min) / 255 in float, with 0 inside [min, max], at least 2^-23;
// zero_point = -128 - round_half_to_even(min / scale).
TokenQuantization choose_quantization(const RowRange& range, bool symmetric, DType dtype);

RowRange range_of_row(const void* row, int64_t k, bool symmetric, DType dtype);

// Writes k values and zeros up to padded_k. A token that is not finite becomes zeros.
void quantize_row(const void* row, int64_t k, int64_t padded_k, const TokenQuantization& token, DType dtype, int8_t* q);

}  // namespace ao_arm
