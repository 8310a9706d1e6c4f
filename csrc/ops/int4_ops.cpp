// The op on 4-bit weights in groups: it checks its arguments and hands them to the driver.
#include <cmath>

#include "layer/linear.h"
#include "ops/op_arguments.h"
#include "ops/op_resources.h"
#include "ops/ops.h"

namespace ao_arm {
namespace {

// What layers check alike; `layer` still lacks what its input holds.
Linear checked_layer(const Tensor& input, const Tensor& packed_weight, int64_t n, const std::optional<Tensor>& bias) {
    Linear layer{};
    layer.weight = opened(packed_weight, Scheme::kInt4);
    const int64_t k = layer.weight.problem.k;
    if (n != layer.weight.problem.n)
        fail("n = " + std::to_string(n) + " is not that of the packed weight, which has shape (" +
             std::to_string(layer.weight.problem.n) + ", " + std::to_string(k) + ")");
    layer.m = checked_rows(input, "input", n, k);
    layer.bias_dtype = checked_bias(bias, n);
    layer.activation_scale = ActivationScale::kPerToken;
    layer.least = -INFINITY;
    layer.greatest = INFINITY;
    return layer;
}

}  // namespace

Tensor linear_qta8a_qga4w(const Tensor& input, const Tensor& packed_weight, int64_t n,
                          const std::optional<Tensor>& bias, const std::optional<Tensor>& act_scale,
                          const std::optional<Tensor>& act_zero_point, std::optional<double> output_min,
                          std::optional<double> output_max) {
    Linear layer = checked_layer(input, packed_weight, n, bias);
    const bool quantized = input.scalar_type() == ScalarType::Char;
    layer.input_dtype = quantized ? DType::kInt8 : checked_float(input, "input, unless it is torch.int8,");
    if (quantized && !act_scale)
        fail("torch.int8 input needs act_scale, and act_zero_point if its zero points are not 0");
    if (act_zero_point && !act_scale) fail("act_zero_point was given without act_scale");
    GivenTokens tokens;
    if (act_scale) {
        tokens = given_tokens(*act_scale, act_zero_point, layer.m);
        tokens.lend_to(&layer);
    }
    const Bounds bounds = checked_bounds(output_min, output_max);
    layer.least = bounds.least;
    layer.greatest = bounds.greatest;
    return run_layer(layer, input, bias, quantized ? ScalarType::Float : input.scalar_type());
}

std::vector<Tensor> linear_qta8a_qga4w_shared(const Tensor& input, const std::vector<Tensor>& packed_weights,
                                              const std::vector<int64_t>& n,
                                              const std::vector<std::optional<Tensor>>& biases) {
    const size_t count = packed_weights.size();
    check_counts(count, {{"n", n.size()}, {"biases", biases.size()}});
    const DType dtype = checked_float(input, "input");
    std::vector<Linear> layers;
    layers.reserve(count);
    check_each(count, [&](size_t i) {
        layers.push_back(checked_layer(input, packed_weights[i], n[i], biases[i]));
        layers.back().input_dtype = dtype;
    });
    return run_layers(layers, input, biases, input.scalar_type());
}

std::vector<Tensor> linear_qta8a_qga4w_shared_settling(const Tensor& input, const std::vector<Tensor>& packed_weights,
                                                       const std::vector<int64_t>& n,
                                                       const std::vector<std::optional<Tensor>>& biases) {
    return linear_qta8a_qga4w_shared(settled(input), settled(packed_weights), n, settled(biases));
}

}  // namespace ao_arm
