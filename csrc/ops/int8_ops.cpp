// The ops on int8 weights: they check their arguments and hand them to the driver.
#include <cmath>

#include "layer/linear.h"
#include "ops/op_arguments.h"
#include "ops/op_resources.h"
#include "ops/ops.h"
#include "rows/activation_quantization.h"

namespace ao_arm {
namespace {

// What all int8 layers check alike; `layer` still lacks what is particular to one.
Linear checked_layer(const Tensor& input, const char* input_name, const Tensor& packed_weight,
                     const Tensor& weight_scale, const std::optional<Tensor>& bias) {
    Linear layer{};
    layer.weight = opened(packed_weight, Scheme::kInt8);
    const int64_t n = layer.weight.problem.n, k = layer.weight.problem.k;
    layer.m = checked_rows(input, input_name, n, k);
    check_type(weight_scale, ScalarType::Float, "weight_scale", "torch.float32");
    if (weight_scale.dim() != 1 || weight_scale.numel() != n)
        fail("weight_scale must have one element for each of the " + std::to_string(n) +
             " output channels, not shape " + shape_of(weight_scale));
    layer.bias_dtype = checked_bias(bias, n);
    layer.weight_scale = static_cast<const float*>(weight_scale.const_data_ptr());
    layer.least = -INFINITY;
    layer.greatest = INFINITY;
    return layer;
}

Linear checked_dynamic(const Tensor& input, const Tensor& packed_weight, const Tensor& weight_scale,
                       const std::optional<Tensor>& bias, bool symmetric, bool per_token) {
    Linear layer = checked_layer(input, "input", packed_weight, weight_scale, bias);
    layer.input_dtype = checked_float(input, "input");
    layer.activation_scale = per_token ? ActivationScale::kPerToken : ActivationScale::kPerTensor;
    layer.activation_symmetric = symmetric;
    return layer;
}

// A scale and a zero point whose type tells which integers they stand for.
struct Quantization {
    DType dtype;
    float scale;
    int32_t zero_point;
};

Quantization checked_quantization(const Tensor& scale, const Tensor& zero_point, const char* what) {
    const std::string name = what;
    check_type(scale, ScalarType::Float, (name + "_scale").c_str(), "torch.float32");
    check_readable(zero_point, (name + "_zero_point").c_str());
    if (scale.numel() != 1 || zero_point.numel() != 1)
        fail(name + "_scale and " + name + "_zero_point must have one element each, not the shapes " + shape_of(scale) +
             " and " + shape_of(zero_point));
    const std::optional<DType> dtype = dtype_of(zero_point.scalar_type());
    if (!dtype || is_float(*dtype))
        fail(name + "_zero_point must be torch.int8 or torch.uint8, as the quantized values are, not " +
             type_name(zero_point));
    const float value = *static_cast<const float*>(scale.const_data_ptr());
    if (!(value > 0) || std::isinf(value))
        fail(name + "_scale must be positive and finite, not " + std::to_string(value));
    const void* data = zero_point.const_data_ptr();
    return {*dtype, value,
            *dtype == DType::kInt8 ? *static_cast<const int8_t*>(data) : *static_cast<const uint8_t*>(data)};
}

}  // namespace

Tensor linear_int8_dynamic(const Tensor& input, const Tensor& packed_weight, const Tensor& weight_scale,
                           const std::optional<Tensor>& bias, bool symmetric, bool per_token) {
    Linear layer = checked_dynamic(input, packed_weight, weight_scale, bias, symmetric, per_token);
    return run_layer(layer, input, bias, input.scalar_type());
}

std::vector<Tensor> linear_int8_dynamic_shared(const Tensor& input, const std::vector<Tensor>& packed_weights,
                                               const std::vector<Tensor>& weight_scales,
                                               const std::vector<std::optional<Tensor>>& biases, bool symmetric,
                                               bool per_token) {
    const size_t count = packed_weights.size();
    check_counts(count, {{"weight_scales", weight_scales.size()}, {"biases", biases.size()}});
    std::vector<Linear> layers;
    layers.reserve(count);
    check_each(count, [&](size_t i) {
        layers.push_back(checked_dynamic(input, packed_weights[i], weight_scales[i], biases[i], symmetric, per_token));
    });
    return run_layers(layers, input, biases, input.scalar_type());
}

std::vector<Tensor> linear_int8_dynamic_shared_settling(const Tensor& input, const std::vector<Tensor>& packed_weights,
                                                        const std::vector<Tensor>& weight_scales,
                                                        const std::vector<std::optional<Tensor>>& biases,
                                                        bool symmetric, bool per_token) {
    return linear_int8_dynamic_shared(settled(input), settled(packed_weights), settled(weight_scales), settled(biases),
                                      symmetric, per_token);
}

Tensor linear_int8_quantized(const Tensor& qdata, const Tensor& act_scale, const std::optional<Tensor>& act_zero_point,
                             const Tensor& packed_weight, const Tensor& weight_scale, const std::optional<Tensor>& bias,
                             ScalarType output_dtype) {
    Linear layer = checked_layer(qdata, "qdata", packed_weight, weight_scale, bias);
    if (qdata.scalar_type() != ScalarType::Char) fail("qdata must be torch.int8, not " + type_name(qdata));
    check_float_output(output_dtype, "");
    layer.input_dtype = DType::kInt8;
    const GivenTokens tokens = given_tokens(act_scale, act_zero_point, layer.m);
    tokens.lend_to(&layer);
    return run_layer(layer, qdata, bias, output_dtype);
}

Tensor linear_int8_static(const Tensor& input, const Tensor& packed_weight, const Tensor& weight_scale,
                          const std::optional<Tensor>& bias, const Tensor& input_scale, const Tensor& input_zero_point,
                          const std::optional<Tensor>& output_scale, const std::optional<Tensor>& output_zero_point,
                          std::optional<ScalarType> output_dtype, std::optional<double> output_min,
                          std::optional<double> output_max) {
    Linear layer = checked_layer(input, "input", packed_weight, weight_scale, bias);
    layer.activation_scale = ActivationScale::kStatic;
    const Quantization given = checked_quantization(input_scale, input_zero_point, "input");
    const std::optional<DType> input_dtype = dtype_of(input.scalar_type());
    if (!input_dtype || (!is_float(*input_dtype) && *input_dtype != given.dtype))
        fail("input must be torch.float32, torch.bfloat16, torch.float16 or, as input_zero_point is, " +
             type_name(input_zero_point) + ", not " + type_name(input));
    layer.input_dtype = *input_dtype;
    layer.input_scale = given.scale;
    layer.input_zero_point = given.zero_point - (given.dtype == DType::kUInt8 ? 128 : 0);

    if (output_scale.has_value() != output_zero_point.has_value())
        fail("output_scale and output_zero_point belong together: give both or neither");
    ScalarType output_type = is_float(layer.input_dtype) ? input.scalar_type() : ScalarType::Float;
    if (output_scale) {
        const Quantization wanted = checked_quantization(*output_scale, *output_zero_point, "output");
        if (output_dtype && *output_dtype != output_zero_point->scalar_type())
            fail("output_dtype must be output_zero_point's, or left out");
        output_type = output_zero_point->scalar_type();
        layer.output_scale = wanted.scale;
        layer.output_zero_point = wanted.zero_point;
    } else if (output_dtype) {
        output_type = *output_dtype;
        check_float_output(output_type, " without output_scale");
    }
    const Bounds bounds = checked_bounds(output_min, output_max);
    layer.least = bounds.least;
    layer.greatest = bounds.greatest;
    return run_layer(layer, input, bias, output_type);
}

Tensor matmul_int8(const Tensor& qdata, const Tensor& packed_weight) {
    Linear layer{};
    layer.weight = opened(packed_weight, Scheme::kInt8);
    check_type(qdata, ScalarType::Char, "qdata", "torch.int8");
    const int64_t k = layer.weight.problem.k;
    if (qdata.dim() != 2 || qdata.size(1) != k)
        fail("qdata of shape " + shape_of(qdata) + " must have shape (m, " + std::to_string(k) + ")");
    layer.m = qdata.size(0);
    layer.input_dtype = DType::kInt8;
    layer.activation_scale = ActivationScale::kStatic;
    return run_layer(layer, qdata, std::nullopt, ScalarType::Int);
}

std::tuple<Tensor, Tensor, Tensor> quantize_activations(const Tensor& input, bool symmetric) {
    check_readable(input, "input");
    const DType dtype = checked_float(input, "input");
    if (input.dim() != 2 || !input.is_contiguous()) fail("input must be a contiguous matrix (m, k)");
    check_arrangement(input, "input");
    const int64_t m = input.size(0), k = input.size(1);
    if (k < 1) fail("input must have at least one column, not shape " + shape_of(input));
    const int64_t tokens[] = {m, 1}, sizes[] = {m, k};
    Tensor qdata = empty({sizes, 2}, ScalarType::Char);
    Tensor scale = empty({tokens, 2}, ScalarType::Float);
    Tensor zero_point = empty({tokens, 2}, ScalarType::Int);
    const auto* rows = static_cast<const uint8_t*>(input.const_data_ptr());
    for (int64_t i = 0; i < m; ++i) {
        const void* row = rows + i * k * element_size(dtype);
        const TokenQuantization token = choose_quantization(range_of_row(row, k, symmetric, dtype), symmetric, dtype);
        quantize_row(row, k, k, token, dtype, static_cast<int8_t*>(qdata.mutable_data_ptr()) + i * k);
        static_cast<float*>(scale.mutable_data_ptr())[i] = token.scale;
        static_cast<int32_t*>(zero_point.mutable_data_ptr())[i] = token.zero_point;
    }
    return {qdata, scale, zero_point};
}

}  // namespace ao_arm
