// What a layer asks of a kernel. Plain data: no torch type, no owner.
#pragma once

#include <cstdint>

namespace ao_arm {

// Element type of activations, bias and output. The values are part of the op schemas' meaning: do not reorder.
enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };
constexpr int kDTypes = 3;

inline int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// How a scheme quantizes. The values are stored in packed weights: do not reorder.
enum class Scheme : int32_t { kInt8Dynamic = 0 };

// A linear layer as far as it is known when its weight is packed: weight is (n, k), activations are (m, k) for any m.
struct Problem {
    Scheme scheme = Scheme::kInt8Dynamic;
    int64_t n = 0;
    int64_t k = 0;
};

// Above this k a sum of (activation - zero_point) * weight, at most 255 * 127 each, may not fit in int32.
constexpr int64_t kMaxK = INT32_MAX / (255 * 127);

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace ao_arm
