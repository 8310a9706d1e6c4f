// The op on 4-bit weights in groups: it checks its arguments and hands them to the driver.
#include "layer/linear.h"
#include "ops/op_arguments.h"
#include "ops/op_resources.h"
#include "ops/ops.h"

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
    Linear layer{};
    layer.weight = opened(packed_weight, Scheme::kInt4);
    const int64_t k = layer.weight.problem.k;
    if (n != layer.weight.problem.n)
        fail("n = " + std::to_string(n) + " is not that of the packed weight, which has shape (" +
             std::to_string(layer.weight.problem.n) + ", " + std::to_string(k) + ")");
    layer.m = checked_rows(input, n, k);
    const bool quantized = input.scalar_type() == ScalarType::Char;
    layer.input_dtype = quantized ? DType::kInt8 : checked_float(input, "input, unless it is int8,");
    if (quantized && !act_scale) fail("int8 input needs act_scale, and act_zero_point if its zero points are not 0");
    if (act_zero_point && !act_scale) fail("act_zero_point was given without act_scale");
    layer.activation_scale = act_scale ? ActivationScale::kGiven : ActivationScale::kPerToken;
    if (act_scale) {
        check_per_token(*act_scale, layer.m, ScalarType::Float, "act_scale", "float32");
        layer.token_scale = static_cast<const float*>(act_scale->const_data_ptr());
    }
    if (act_zero_point) {
        check_per_token(*act_zero_point, layer.m, ScalarType::Int, "act_zero_point", "int32");
        layer.token_zero_point = static_cast<const int32_t*>(act_zero_point->const_data_ptr());
        for (int64_t i = 0; i < layer.m; ++i)
            if (layer.token_zero_point[i] < -128 || layer.token_zero_point[i] > 127)
                fail("act_zero_point must lie in [-128, 127], but holds " + std::to_string(layer.token_zero_point[i]));
    }
    layer.bias_dtype = checked_bias(bias, n);
    const Bounds bounds = checked_bounds(output_min, output_max);
    layer.least = bounds.least;
    layer.greatest = bounds.greatest;
    return run_layer(layer, input, bias, quantized ? ScalarType::Float : input.scalar_type());
}

}  // namespace ao_arm
