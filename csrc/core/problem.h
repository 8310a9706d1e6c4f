// What a layer asks of a kernel. Plain data: no torch type, no owner.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ao_arm {

// Element type of activations, bias and output; the floats come first, so that they can index tables. The values are
// stored in packed weights: do not reorder.
enum class DType : int32_t { kFloat32, kBFloat16, kFloat16, kInt8, kUInt8, kInt32 };
constexpr int kFloatTypes = 3;

inline bool is_float(DType dtype) { return static_cast<int>(dtype) < kFloatTypes; }
inline int64_t element_size(DType dtype) {
    return dtype == DType::kFloat32 || dtype == DType::kInt32 ? 4 : is_float(dtype) ? 2 : 1;
}

// How a weight is quantized. The values are stored in packed weights: do not reorder.
enum class Scheme : int32_t {
    kInt8 = 0,   // int8 values; their scales belong to the epilogue
    kInt4 = 16,  // 4-bit values in groups along k; each group has a scale and perhaps a zero point
};

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

// 4-bit groups are a multiple of this, or all of k; shorter ones are padded to it in packed activations and weights.
constexpr int64_t kGroupStep = 32;

// A linear layer as far as it is known when its weight is packed: the weight is (n, k), activations are (m, k) for any
// m. The three of groups are of 4-bit weights, the last one is of int8 weights.
struct Problem {
    Scheme scheme = Scheme::kInt8;
    int64_t n = 0;
    int64_t k = 0;
    int64_t group = 0;                   // values along k that share a scale
    DType scale_type = DType::kFloat32;  // of the groups' scales: kBFloat16 or kFloat32
    bool zero_points = false;            // one for each group
    bool full_range = false;             // values reach -128; else they lie in [-127, 127]

    int64_t groups() const { return k / group; }
    int64_t padded_group() const { return round_up(group, kGroupStep); }
    int64_t padded_k() const { return groups() * padded_group(); }
    int64_t scale_bytes() const { return element_size(scale_type); }
};

// Above this k a sum of (activation - zero_point) * weight, at most 255 * 127 each, may not fit in int32. Where weights
// reach -128 it is less.
constexpr int64_t kMaxK = INT32_MAX / (255 * 127), kMaxKOfFullRange = INT32_MAX / (255 * 128);
// With it, every number of bytes of a layer fits in int64.
constexpr int64_t kMaxN = INT32_MAX;

// Why no kernel at all can serve the problem; empty if one may.
std::vector<std::string> reasons_against(const Problem& problem);

// "a 4-bit layer with n = 8, k = 64 and groups of 32", "a layer with n = 8, k = 64 and a weight that holds -128"
std::string described(const Problem& problem);

std::string join(const std::vector<std::string>& parts);  // "a; b; c"

}  // namespace ao_arm
