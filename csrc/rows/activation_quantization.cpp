#include "rows/activation_quantization.h"

#include <cmath>
#include <cstring>

#include "rows/element_types.h"

namespace ao_arm {
namespace {

constexpr float kLeastScale = 1.1920929e-07f;  // float32's epsilon, 2^-23: exact in all three types

float rounded_to(DType dtype, float value) {
    switch (dtype) {
        case DType::kBFloat16:
            return BFloat16::load(BFloat16::store(value));
        case DType::kFloat16:
            return Float16::load(Float16::store(value));
        default:
            return value;
    }
}

}  // namespace

TokenQuantization choose_quantization(const RowRange& range, bool symmetric, DType dtype) {
    if (!range.finite) return {std::nanf(""), 0};
    if (symmetric) {
        const float scale = rounded_to(dtype, range.maximum / 127.5f);
        return {scale < kLeastScale ? kLeastScale : scale, 0, true};
    }
    const float low = range.minimum < 0 ? range.minimum : 0;
    const float high = range.maximum > 0 ? range.maximum : 0;
    float scale = (high - low) / 255.0f;
    if (std::isinf(scale)) scale = high / 255.0f - low / 255.0f;
    if (scale < kLeastScale) scale = kLeastScale;
    const float zero_point = -128.0f - std::nearbyint(low / scale);
    return {scale, static_cast<int32_t>(zero_point > 127.0f ? 127.0f : zero_point), true};
}

RowRange range_of_row(const void* row, int64_t k, bool symmetric, DType dtype) {
    const RowRoutines& routines = row_routines();
    return (symmetric ? routines.absolute_range : routines.range)[static_cast<int>(dtype)](row, k);
}

void quantize_row(const void* row, int64_t k, int64_t padded_k, const TokenQuantization& token, DType dtype,
                  int8_t* q) {
    if (std::isnan(token.scale)) {
        std::memset(q, 0, padded_k);
        return;
    }
    const RowRoutines& routines = row_routines();
    (token.fits ? routines.quantize_fitting : routines.quantize)[static_cast<int>(dtype)](row, k, 1.0f / token.scale,
                                                                                          token.zero_point, q);
    if (k < padded_k) std::memset(q + k, 0, padded_k - k);  // it would be called for nothing as well
}

}  // namespace ao_arm
