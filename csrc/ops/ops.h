// The custom ops as ops.cpp registers them. What each computes is said in ao_arm/reference.py, what it is for in
// ao_arm/_ops.py.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace ao_arm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// --- int8_ops.cpp ---

Tensor linear_int8_dynamic(const Tensor& input, const Tensor& packed_weight, const Tensor& weight_scale,
                           const std::optional<Tensor>& bias, bool symmetric, bool per_token);
std::vector<Tensor> linear_int8_dynamic_shared(const Tensor& input, const std::vector<Tensor>& packed_weights,
                                               const std::vector<Tensor>& weight_scales,
                                               const std::vector<std::optional<Tensor>>& biases, bool symmetric,
                                               bool per_token);
std::vector<Tensor> linear_int8_dynamic_shared_settling(const Tensor& input, const std::vector<Tensor>& packed_weights,
                                                        const std::vector<Tensor>& weight_scales,
                                                        const std::vector<std::optional<Tensor>>& biases,
                                                        bool symmetric, bool per_token);
Tensor linear_int8_quantized(const Tensor& qdata, const Tensor& act_scale, const std::optional<Tensor>& act_zero_point,
                             const Tensor& packed_weight, const Tensor& weight_scale, const std::optional<Tensor>& bias,
                             ScalarType output_dtype);
Tensor linear_int8_static(const Tensor& input, const Tensor& packed_weight, const Tensor& weight_scale,
                          const std::optional<Tensor>& bias, const Tensor& input_scale, const Tensor& input_zero_point,
                          const std::optional<Tensor>& output_scale, const std::optional<Tensor>& output_zero_point,
                          std::optional<ScalarType> output_dtype, std::optional<double> output_min,
                          std::optional<double> output_max);
Tensor matmul_int8(const Tensor& qdata, const Tensor& packed_weight);
std::tuple<Tensor, Tensor, Tensor> quantize_activations(const Tensor& input, bool symmetric);

// --- int4_ops.cpp ---

Tensor linear_qta8a_qga4w(const Tensor& input, const Tensor& packed_weight, int64_t n,
                          const std::optional<Tensor>& bias, const std::optional<Tensor>& act_scale,
                          const std::optional<Tensor>& act_zero_point, std::optional<double> output_min,
                          std::optional<double> output_max);
std::vector<Tensor> linear_qta8a_qga4w_shared(const Tensor& input, const std::vector<Tensor>& packed_weights,
                                              const std::vector<int64_t>& n,
                                              const std::vector<std::optional<Tensor>>& biases);
std::vector<Tensor> linear_qta8a_qga4w_shared_settling(const Tensor& input, const std::vector<Tensor>& packed_weights,
                                                       const std::vector<int64_t>& n,
                                                       const std::vector<std::optional<Tensor>>& biases);

// --- packing_ops.cpp ---

Tensor pack_int8(const Tensor& qdata, std::string kernel);
Tensor unpack_int8(const Tensor& packed_weight, int64_t n, int64_t k, const std::optional<Tensor>& rows);
Tensor pack_int4(const Tensor& qdata, const Tensor& scale, const std::optional<Tensor>& zero_point, std::string kernel);
std::tuple<Tensor, Tensor, Tensor> unpack_int4(const Tensor& packed_weight, int64_t n, int64_t k, int64_t group_size,
                                               bool float_scales, bool zero_points, const std::optional<Tensor>& rows);

// --- information_ops.cpp ---

std::string select_kernel_int8(int64_t n, int64_t k, std::string forced, bool full_range);
std::string select_kernel_int4(int64_t n, int64_t k, int64_t group_size, bool float_scales, bool zero_points,
                               std::string forced);
int64_t packed_bytes_int8(int64_t n, int64_t k, std::string kernel, bool full_range);
int64_t packed_bytes_int4(int64_t n, int64_t k, int64_t group_size, bool float_scales, bool zero_points,
                          std::string kernel);
std::string kernel_table_int8(int64_t n, int64_t k, bool full_range);
std::string kernel_table_int4(int64_t n, int64_t k, int64_t group_size, bool float_scales, bool zero_points);
std::string packed_weight_info(const Tensor& packed_weight);
std::string system_info();

}  // namespace ao_arm
