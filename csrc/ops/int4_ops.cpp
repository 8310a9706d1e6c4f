// The op on 4-bit weights in groups: it checks its arguments and hands them to the driver.
#include "layer/linear.h"
#include "ops/op_arguments.h"
#include "ops/op_resources.h"
#include "ops/ops.h"

namespace ao_arm {
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
    layer.m = checked_rows(input, "input", n, k);
    const bool quantized = input.scalar_type() == ScalarType::Char;
    layer.input_dtype = quantized ? DType::kInt8 : checked_float(input, "input, unless it is torch.int8,");
    if (quantized && !act_scale)
        fail("torch.int8 input needs act_scale, and act_zero_point if its zero points are not 0");
    if (act_zero_point && !act_scale) fail("act_zero_point was given without act_scale");
    layer.activation_scale = ActivationScale::kPerToken;
    GivenTokens tokens;
    if (act_scale) {
        tokens = given_tokens(*act_scale, act_zero_point, layer.m);
        tokens.lend_to(&layer);
    }
    layer.bias_dtype = checked_bias(bias, n);
    const Bounds bounds = checked_bounds(output_min, output_max);
    layer.least = bounds.least;
    layer.greatest = bounds.greatest;
    return run_layer(layer, input, bias, quantized ? ScalarType::Float : input.scalar_type());
}

}  // namespace ao_arm
