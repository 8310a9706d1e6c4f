// What the ops lend to the drivers: new tensors, scratch memory, torch's threads.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "layer/linear.h"
#include "ops/op_arguments.h"

namespace ao_arm {

// A new contiguous tensor on the CPU.
Tensor empty(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType type);

// Memory for a packed weight, in huge pages where the system gives them to those who ask: calls of few rows read each
// of its pages once, and would translate as many addresses.
Tensor empty_packed_weight(int64_t bytes);

// An output like the input, but with n columns.
Tensor empty_output(const Tensor& input, int64_t n, ScalarType type);

// The tensor, or a copy of it that is contiguous and aligned.
Tensor as_contiguous(const Tensor& tensor);
std::optional<Tensor> as_contiguous(const std::optional<Tensor>& tensor);

// Copies that are what they stand for: of a negated view torch has the elements as they were before.
Tensor settled(const Tensor& tensor);
std::vector<Tensor> settled(const std::vector<Tensor>& tensors);
std::vector<std::optional<Tensor>> settled(const std::vector<std::optional<Tensor>>& tensors);

// What a caller gives of quantized activations, as the driver takes it: one for each token.
struct GivenTokens {
    std::unique_ptr<float[]> scale;
    std::unique_ptr<int32_t[]> zero_point;  // null if all are 0

    // The layer borrows both.
    void lend_to(Linear* layer) const;
};

// Of m tokens, after checking them. Each tensor has one element for each token or one for all, in any arrangement:
// scales float32, zero points int8 or int32 in [-128, 127]. Without zero points all are 0.
GivenTokens given_tokens(const Tensor& act_scale, const std::optional<Tensor>& act_zero_point, int64_t m);

// Runs a layer whose input and bias are these and whose output has n columns more than the input has dimensions before
// its last, on torch's threads. `layer` lacks these three, and m rows are those of the input.
Tensor run_layer(Linear& layer, const Tensor& input, const std::optional<Tensor>& bias, ScalarType output_type);

// The same of layers that have this input in common, each with its bias. Those that share_activations are one call.
std::vector<Tensor> run_layers(std::vector<Linear>& layers, const Tensor& input,
                               const std::vector<std::optional<Tensor>>& biases, ScalarType output_type);

}  // namespace ao_arm
