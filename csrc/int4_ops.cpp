// The op on 4-bit weights in groups: it checks its arguments and hands them to the driver.
#include "linear_int4.h"
#include "op_arguments.h"
#include "op_resources.h"
#include "ops.h"

namespace ao_arm {
namespace {

void check_per_token(const Tensor& tensor, int64_t m, ScalarType type, const char* name, const char* type_name) {
    check_type(tensor, type, name, type_name);
    if (tensor.numel() != m)
        fail(std::string(name) + " of shape " + shape_of(tensor) + " must have one element for each of the " +
             std::to_string(m) + " tokens");
}

}  // namespace

Tensor linear_qta8a_qga4w(const Tensor& input, const Tensor& packed_weight, int64_t n,
                          const std::optional<Tensor>& bias, const std::optional<Tensor>& act_scale,
                          const std::optional<Tensor>& act_zero_point, std::optional<double> output_min,
                          std::optional<double> output_max) {
    LinearInt4 layer{};
    layer.weight = opened(packed_weight, open_packed_grouped_weight);
    const int64_t k = layer.weight.problem.k;
    if (n != layer.weight.problem.n)
        fail("n = " + std::to_string(n) + " is not that of the packed weight, which has shape (" +
             std::to_string(layer.weight.problem.n) + ", " + std::to_string(k) + ")");
    layer.m = checked_rows(input, n, k);
    const bool quantized = input.scalar_type() == ScalarType::Char;
    layer.dtype = quantized ? DType::kFloat32 : checked_float(input, "input, unless it is int8,");
    if (quantized && !act_scale) fail("int8 input needs act_scale, and act_zero_point if its zero points are not 0");
    if (act_zero_point && !act_scale) fail("act_zero_point was given without act_scale");
    if (act_scale) {
        check_per_token(*act_scale, layer.m, ScalarType::Float, "act_scale", "float32");
        layer.token_scale = static_cast<const float*>(act_scale->const_data_ptr());
    }
    if (act_zero_point) {
        check_per_token(*act_zero_point, layer.m, ScalarType::Int, "act_zero_point", "int32");
        layer.token_zero = static_cast<const int32_t*>(act_zero_point->const_data_ptr());
        for (int64_t i = 0; i < layer.m; ++i)
            if (layer.token_zero[i] < -128 || layer.token_zero[i] > 127)
                fail("act_zero_point must lie in [-128, 127], but holds " + std::to_string(layer.token_zero[i]));
    }
    layer.bias_dtype = checked_bias(bias, n);
    const Bounds bounds = checked_bounds(output_min, output_max);
    layer.least = bounds.least;
    layer.greatest = bounds.greatest;

    Tensor output = empty_output(input, n, quantized ? ScalarType::Float : input.scalar_type());
    if (layer.m == 0) return output;

    const Tensor rows = as_contiguous(input);
    const std::optional<Tensor> biases = as_contiguous(bias);
    layer.input = quantized ? nullptr : rows.const_data_ptr();
    layer.qdata = quantized ? static_cast<const int8_t*>(rows.const_data_ptr()) : nullptr;
    layer.bias = biases ? biases->const_data_ptr() : nullptr;
    layer.output = output.mutable_data_ptr();
    const Parallel parallel = worthwhile(layer, torch_threads());
    run_linear(layer, thread_scratch(scratch_bytes(layer, parallel)), parallel);
    return output;
}

}  // namespace ao_arm
