// What a layer asks of a kernel. Plain data: no torch type, no owner.
#pragma once

#include <cstdint>

namespace ao_arm {

// Element type of activations, bias and output; the floats come first, so that they can index tables.
enum class DType : int32_t { kFloat32, kBFloat16, kFloat16, kInt8, kUInt8 };
constexpr int kFloatTypes = 3;

inline bool is_float(DType dtype) { return static_cast<int>(dtype) < kFloatTypes; }
inline int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : is_float(dtype) ? 2 : 1; }

// How a weight is quantized. The values are stored in packed weights: do not reorder.
enum class Scheme : int32_t { kInt8 = 0, kInt4Grouped = 16 };

// A linear layer as far as it is known when its weight is packed: weight is (n, k), activations are (m, k) for any m.
struct Problem {
    Scheme scheme = Scheme::kInt8;
    int64_t n = 0;
    int64_t k = 0;
};

// Above this k a sum of (activation - zero_point) * weight, at most 255 * 127 each, may not fit in int32.
constexpr int64_t kMaxK = INT32_MAX / (255 * 127);

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace ao_arm
