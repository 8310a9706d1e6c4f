// The ops' arguments: their checks, and the errors that Python turns into ValueError.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>

#include "core/problem.h"
#include "layer/kernel_table.h"
#include "layer/packed_weight.h"

namespace ao_arm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws. Python turns messages with this mark into ValueError.
[[noreturn]] void fail(const std::string& message);

// The same of what becomes MemoryError; it takes what there is no memory for.
[[noreturn]] void fail_for_memory(const std::string& what);

// "(2, 3)"
std::string shape_of(torch::headeronly::IntHeaderOnlyArrayRef sizes);
std::string shape_of(const Tensor& tensor);

// As the user knows it, such as "torch.float32".
std::string type_name(ScalarType type);
std::string type_name(const Tensor& tensor);

// Nothing for types that are neither activations, biases nor outputs.
std::optional<DType> dtype_of(ScalarType type);

// That it is on the CPU and that the elements lie within its memory, which a resized storage no longer has.
void check_readable(const Tensor& tensor, const char* name);

// Whether it begins where an element may: memory that others lend to torch need not, and no kernel reads it then.
bool is_aligned(const Tensor& tensor);

// That it is contiguous and aligned.
void check_arrangement(const Tensor& tensor, const char* name);

// That it is readable, contiguous, aligned, and of this type, which the message calls `wanted`.
void check_type(const Tensor& tensor, ScalarType type, const char* name, const char* wanted);

DType checked_float(const Tensor& tensor, const char* name);

// That outputs can be of this type, float32, bfloat16 or float16; the message ends as the caller says.
void check_float_output(ScalarType type, const char* where);

// The number of rows of an input, which messages call `name`, for a weight of shape (n, k).
int64_t checked_rows(const Tensor& input, const char* name, int64_t n, int64_t k);

// The type of a bias of n elements; that of none is of no use.
DType checked_bias(const std::optional<Tensor>& bias, int64_t n);

// That lists, named so, have one element for each of `count` weights, of which there is one at least.
void check_counts(size_t count, std::initializer_list<std::pair<const char*, size_t>> lists);

// What outputs are clamped to; infinite where there is no bound.
struct Bounds {
    float least;
    float greatest;
};

Bounds checked_bounds(std::optional<double> output_min, std::optional<double> output_max);

inline Problem int8_problem(int64_t n, int64_t k, bool full_range) {
    Problem problem = {Scheme::kInt8, n, k};
    problem.full_range = full_range;
    return problem;
}

inline Problem int4_problem(int64_t n, int64_t k, int64_t group_size, bool float_scales, bool zero_points) {
    return {Scheme::kInt4, n, k, group_size, float_scales ? DType::kFloat32 : DType::kBFloat16, zero_points};
}

// A packed weight, after checking that it is one of this scheme that can be used here.
PackedWeight opened(const Tensor& packed_weight, Scheme scheme);

// Calls check(i) for each of `count` weights; what it throws then says which one it is about.
template <class Check>
void check_each(size_t count, const Check& check) {
    for (size_t i = 0; i < count; ++i) try {
            check(i);
        } catch (const std::runtime_error& error) {
            throw std::runtime_error(error.what() + (" (weight " + std::to_string(i) + " of " + std::to_string(count)) +
                                     ", counted from 0)");
        }
}

// What select_kernel chooses; fails where there is none.
const Kernel& usable_kernel(const Problem& problem, const std::string& id);

}  // namespace ao_arm
