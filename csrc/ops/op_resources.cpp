#include "ops/op_resources.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#include <string>

namespace ao_arm {
namespace {

constexpr size_t kMostDims = 64;

void check_dims(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
    if (sizes.size() > kMostDims) fail("tensors of more than 64 dimensions are not supported");
}

// Scratch memory of the calling thread, 64-byte aligned and kept from call to call: its size is bounded by LinearCall's
// stretches but for inputs under one scale, which take 12 bytes a token.
uint8_t* thread_scratch(int64_t bytes) {
    constexpr int64_t kAlignment = 64;
    struct Buffer {
        uint8_t* memory = nullptr;
        int64_t size = 0;
        ~Buffer() { std::free(memory); }
    };
    static thread_local Buffer buffer;
    if (buffer.size < bytes) {
        std::free(buffer.memory);
        buffer.size = round_up(bytes, kAlignment);
        buffer.memory = static_cast<uint8_t*>(std::aligned_alloc(kAlignment, buffer.size));
        if (buffer.memory == nullptr) {
            buffer.size = 0;
            fail_for_memory(std::to_string(bytes) + " bytes of scratch");
        }
    }
    return buffer.memory;
}

// What `copy` makes of a tensor; all that torch can object to is the copy's size.
template <class Copy>
Tensor copied(const Tensor& tensor, const Copy& copy) {
    try {
        return copy(tensor);
    } catch (const std::exception&) {
        fail_for_memory("a copy of a tensor of shape " + shape_of(tensor) + " and type " + type_name(tensor));
    }
}

// The elements of a tensor that has one for each of m tokens or one for all, each as a T.
template <class Element, class T>
std::unique_ptr<T[]> for_each_token(const Tensor& tensor, int64_t m) {
    const Tensor elements = as_contiguous(tensor);
    const auto* data = static_cast<const Element*>(elements.const_data_ptr());
    // No vector, whose error would not say what there is no memory for.
    std::unique_ptr<T[]> of_tokens(new (std::nothrow) T[m]);
    if (of_tokens == nullptr) fail_for_memory("what is given of " + std::to_string(m) + " tokens");
    if (elements.numel() == m)
        std::copy(data, data + m, of_tokens.get());
    else
        std::fill_n(of_tokens.get(), m, static_cast<T>(*data));
    return of_tokens;
}

void check_count(const Tensor& tensor, int64_t m, const char* name) {
    check_readable(tensor, name);
    if (tensor.numel() != m && tensor.numel() != 1)
        fail(std::string(name) + " of shape " + shape_of(tensor) + " must have one element for each of the " +
             std::to_string(m) + " tokens, or one for all");
}

// torch's threads, as many as torch.set_num_threads allows now.
Parallel torch_threads() {
    return Parallel(static_cast<int>(torch::stable::get_num_threads()),
                    [](int64_t tasks, void (*body)(int64_t, void*), void* context) {
                        torch::stable::parallel_for(0, tasks, 1, [=](int64_t begin, int64_t end) {
                            for (int64_t task = begin; task < end; ++task) body(task, context);
                        });
                    });
}

void lend(const Tensor& rows, const std::optional<Tensor>& bias, Tensor& output, ScalarType output_type,
          Linear* layer) {
    layer->input = rows.const_data_ptr();
    layer->bias = bias ? bias->const_data_ptr() : nullptr;
    layer->output = output.mutable_data_ptr();
    layer->output_dtype = output_type == ScalarType::Int ? DType::kInt32 : *dtype_of(output_type);
}

void run(const Linears& layers) {
    const LinearCall call(layers, torch_threads());
    if (!call.run(thread_scratch(call.scratch_bytes())))
        fail(std::string("kernel ") + layers.first->weight.kernel->id +
             " failed; force another with AO_ARM_KERNEL and pack again");
}

}  // namespace

Tensor empty_packed_weight(int64_t bytes) {
    Tensor packed = empty({&bytes, 1}, ScalarType::Byte);
#if defined(__linux__)
    constexpr uintptr_t kHugePage = 2 * 1024 * 1024;
    const auto address = reinterpret_cast<uintptr_t>(packed.mutable_data_ptr());
    const uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t end = (address + bytes) / kHugePage * kHugePage;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // or in small pages
#endif
    return packed;
}

Tensor empty(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType type) {
    check_dims(sizes);
    int64_t strides[kMostDims];
    int64_t stride = 1;
    for (int64_t i = static_cast<int64_t>(sizes.size()) - 1; i >= 0; --i) {
        strides[i] = stride;
        stride *= sizes[i];
    }
    AtenTensorHandle handle;
    // All that torch can object to in these arguments is their product.
    if (aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides,
                                 torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
                                 aoti_torch_device_type_cpu(), 0, &handle) != AOTI_TORCH_SUCCESS)
        fail_for_memory("a tensor of shape " + shape_of(sizes) + " and type " + type_name(type));
    return Tensor(handle);
}

Tensor empty_output(const Tensor& input, int64_t n, ScalarType type) {
    const auto sizes = input.sizes();
    check_dims(sizes);
    int64_t output_sizes[kMostDims];
    std::copy(sizes.begin(), sizes.end(), output_sizes);
    output_sizes[sizes.size() - 1] = n;
    return empty({output_sizes, sizes.size()}, type);
}

Tensor as_contiguous(const Tensor& tensor) {
    if (!tensor.is_contiguous()) return copied(tensor, [](const Tensor& of) { return torch::stable::contiguous(of); });
    return is_aligned(tensor) ? tensor : settled(tensor);
}

std::optional<Tensor> as_contiguous(const std::optional<Tensor>& tensor) {
    return tensor ? std::optional<Tensor>(as_contiguous(*tensor)) : std::nullopt;
}

Tensor settled(const Tensor& tensor) {
    return copied(tensor, [](const Tensor& of) { return torch::stable::clone(of); });
}

std::vector<Tensor> settled(const std::vector<Tensor>& tensors) {
    std::vector<Tensor> copies;
    for (const Tensor& tensor : tensors) copies.push_back(settled(tensor));
    return copies;
}

std::vector<std::optional<Tensor>> settled(const std::vector<std::optional<Tensor>>& tensors) {
    std::vector<std::optional<Tensor>> copies;
    for (const std::optional<Tensor>& tensor : tensors)
        copies.push_back(tensor ? std::optional<Tensor>(settled(*tensor)) : std::nullopt);
    return copies;
}

void GivenTokens::lend_to(Linear* layer) const {
    layer->activation_scale = ActivationScale::kGiven;
    layer->token_scale = scale.get();
    layer->token_zero_point = zero_point.get();
}

GivenTokens given_tokens(const Tensor& act_scale, const std::optional<Tensor>& act_zero_point, int64_t m) {
    check_count(act_scale, m, "act_scale");
    if (act_scale.scalar_type() != ScalarType::Float)
        fail("act_scale must be torch.float32, not " + type_name(act_scale));
    GivenTokens tokens = {for_each_token<float, float>(act_scale, m), nullptr};
    if (!act_zero_point) return tokens;
    check_count(*act_zero_point, m, "act_zero_point");
    if (act_zero_point->scalar_type() == ScalarType::Char)
        tokens.zero_point = for_each_token<int8_t, int32_t>(*act_zero_point, m);
    else if (act_zero_point->scalar_type() == ScalarType::Int)
        tokens.zero_point = for_each_token<int32_t, int32_t>(*act_zero_point, m);
    else
        fail("act_zero_point must be torch.int8 or torch.int32, not " + type_name(*act_zero_point));
    bool zeros = true;
    for (int64_t i = 0; i < m; ++i) {
        const int32_t zero_point = tokens.zero_point[i];
        if (zero_point < -128 || zero_point > 127)
            fail("act_zero_point must lie in [-128, 127], but holds " + std::to_string(zero_point));
        zeros &= zero_point == 0;
    }
    if (zeros) tokens.zero_point.reset();
    return tokens;
}

Tensor run_layer(Linear& layer, const Tensor& input, const std::optional<Tensor>& bias, ScalarType output_type) {
    Tensor output = empty_output(input, layer.weight.problem.n, output_type);
    if (layer.m == 0) return output;

    const Tensor rows = as_contiguous(input);
    const std::optional<Tensor> own_bias = as_contiguous(bias);
    lend(rows, own_bias, output, output_type, &layer);
    run({&layer, 1});
    return output;
}

std::vector<Tensor> run_layers(std::vector<Linear>& layers, const Tensor& input,
                               const std::vector<std::optional<Tensor>>& biases, ScalarType output_type) {
    std::vector<Tensor> outputs;
    outputs.reserve(layers.size());
    for (const Linear& layer : layers) outputs.push_back(empty_output(input, layer.weight.problem.n, output_type));
    if (layers.front().m == 0) return outputs;

    const Tensor rows = as_contiguous(input);
    std::vector<std::optional<Tensor>> own_biases;
    own_biases.reserve(layers.size());
    for (size_t i = 0; i < layers.size(); ++i) {
        own_biases.push_back(as_contiguous(biases[i]));
        lend(rows, own_biases[i], outputs[i], output_type, &layers[i]);
    }
    for (auto first = layers.begin(); first != layers.end();) {
        const auto end = std::stable_partition(
            first, layers.end(), [&, like = *first](const Linear& layer) { return share_activations(like, layer); });
        run({&*first, end - first});
        first = end;
    }
    return outputs;
}

}  // namespace ao_arm
