// What the ops lend to the drivers: new tensors, scratch memory, torch's threads.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "op_arguments.h"
#include "parallel.h"

namespace ao_arm {

// A new contiguous tensor on the CPU.
Tensor empty(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType type);

// An output like the input, but with n columns.
Tensor empty_output(const Tensor& input, int64_t n, ScalarType type);

// The tensor, or a copy of it.
Tensor as_contiguous(const Tensor& tensor);
std::optional<Tensor> as_contiguous(const std::optional<Tensor>& tensor);

// Scratch memory of the calling thread, 64-byte aligned and kept from call to call: its size is bounded (by Cut in
// linear_int8.cpp and linear_int4.cpp) but for inputs under one scale, which take 12 bytes a token.
uint8_t* thread_scratch(int64_t bytes);

// torch's threads, as many as torch.set_num_threads allows now.
Parallel torch_threads();

}  // namespace ao_arm
