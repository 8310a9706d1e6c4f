// The ops' arguments: their checks, and the errors that Python turns into ValueError.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "grouped_kernel.h"
#include "problem.h"

namespace ao_arm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws. Python turns messages with this mark into ValueError.
[[noreturn]] void fail(const std::string& message);

// "(2, 3)"
std::string shape_of(const Tensor& tensor);

// As the user knows it, such as "Float".
std::string type_name(const Tensor& tensor);

// Nothing for types that are neither activations, biases nor outputs.
std::optional<DType> dtype_of(const Tensor& tensor);

void check_cpu(const Tensor& tensor, const char* name);

// That it is on the CPU, contiguous, and of this type, which the message calls `wanted`.
void check_type(const Tensor& tensor, ScalarType type, const char* name, const char* wanted);

DType checked_float(const Tensor& tensor, const char* name);

// The number of rows of an input for a weight of shape (n, k).
int64_t checked_rows(const Tensor& input, int64_t n, int64_t k);

// The type of a bias of n elements; that of none is of no use.
DType checked_bias(const std::optional<Tensor>& bias, int64_t n);

// What outputs are clamped to; infinite where there is no bound.
struct Bounds {
    float least;
    float greatest;
};

Bounds checked_bounds(std::optional<double> output_min, std::optional<double> output_max);

inline Problem int8_problem(int64_t n, int64_t k) { return {Scheme::kInt8, n, k}; }

inline GroupedProblem int4_problem(int64_t n, int64_t k, int64_t group_size, bool float_scales, bool zero_points) {
    return {n, k, group_size, float_scales ? DType::kFloat32 : DType::kBFloat16, zero_points};
}

// A packed weight, or its header, as `open` reads it.
template <class Opened>
Opened opened(const Tensor& packed_weight, std::string (*open)(const uint8_t* bytes, int64_t size, Opened* opened)) {
    check_type(packed_weight, ScalarType::Byte, "packed_weight", "uint8");
    Opened result{};
    const std::string error =
        open(static_cast<const uint8_t*>(packed_weight.const_data_ptr()), packed_weight.numel(), &result);
    if (!error.empty()) fail(error);
    return result;
}

// What select_kernel or select_grouped_kernel chooses; fails where there is none.
template <class Kernel, class Problem>
const Kernel& usable_kernel(const Kernel* (*select)(const Problem& problem, const std::string& id, std::string* error),
                            const Problem& problem, const std::string& id) {
    std::string error;
    const Kernel* kernel = select(problem, id, &error);
    if (kernel == nullptr) fail(error);
    return *kernel;
}

}  // namespace ao_arm
