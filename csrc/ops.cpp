// The custom ops: checks arguments, lends memory and threads to the kernels. The only file that knows torch.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "activation_quantization.h"
#include "build_information.h"
#include "linear_int8.h"
#include "packed_weight.h"
#include "registry.h"

namespace ao_arm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Python turns messages with this mark into ValueError.
[[noreturn]] void fail(const std::string& message) { throw std::runtime_error("ao_arm: " + message); }

std::string shape_of(const Tensor& tensor) {
    std::string text = "(";
    for (int64_t i = 0; i < tensor.dim(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(tensor.size(i));
    return text + ")";
}

std::optional<DType> dtype_of(const Tensor& tensor) {
    switch (tensor.scalar_type()) {
        case ScalarType::Float:
            return DType::kFloat32;
        case ScalarType::BFloat16:
            return DType::kBFloat16;
        case ScalarType::Half:
            return DType::kFloat16;
        default:
            return std::nullopt;
    }
}

DType checked_dtype(const Tensor& tensor, const char* name) {
    const std::optional<DType> dtype = dtype_of(tensor);
    if (!dtype) fail(std::string(name) + " must be float32, bfloat16 or float16");
    return *dtype;
}

void check_cpu(const Tensor& tensor, const char* name) {
    if (!tensor.is_cpu()) fail(std::string(name) + " must be on the CPU; move it with .cpu()");
}

void check_type(const Tensor& tensor, ScalarType type, const char* name, const char* type_name) {
    check_cpu(tensor, name);
    if (tensor.scalar_type() != type) fail(std::string(name) + " must be " + type_name);
    if (!tensor.is_contiguous()) fail(std::string(name) + " must be contiguous");
}

Tensor empty(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType type) {
    constexpr int64_t kMostDims = 64;
    if (static_cast<int64_t>(sizes.size()) > kMostDims) fail("tensors of more than 64 dimensions are not supported");
    int64_t strides[kMostDims];
    int64_t stride = 1;
    for (int64_t i = static_cast<int64_t>(sizes.size()) - 1; i >= 0; --i) {
        strides[i] = stride;
        stride *= sizes[i];
    }
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides,
                                 torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
                                 aoti_torch_device_type_cpu(), 0, &handle));
    return Tensor(handle);
}

// Scratch memory of the calling thread, kept from call to call: its size is bounded (linear_int8.cpp's Cut) but for
// inputs under one scale, which take 12 bytes a token.
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
            fail("no memory left for " + std::to_string(bytes) + " bytes of scratch");
        }
    }
    return buffer.memory;
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

PackedWeight opened(const Tensor& packed) {
    check_type(packed, ScalarType::Byte, "packed_weight", "uint8");
    PackedWeight weight{};
    const std::string error =
        open_packed_weight(static_cast<const uint8_t*>(packed.const_data_ptr()), packed.numel(), &weight);
    if (!error.empty()) fail(error);
    return weight;
}

Problem int8_problem(int64_t n, int64_t k) { return {Scheme::kInt8Dynamic, n, k}; }

const Kernel& usable_kernel(const std::string& id, int64_t n, int64_t k) {
    std::string error;
    const Kernel* kernel = select_kernel(int8_problem(n, k), id, &error);
    if (kernel == nullptr) fail(error);
    return *kernel;
}

Tensor linear_int8_dynamic(const Tensor& input, const Tensor& packed_weight, const Tensor& weight_scale,
                           const std::optional<Tensor>& bias, bool symmetric, bool per_token) {
    LinearInt8 layer{};
    layer.weight = opened(packed_weight);
    const int64_t n = layer.weight.n, k = layer.weight.k;
    check_cpu(input, "input");
    layer.dtype = checked_dtype(input, "input");
    const int64_t dims = input.dim();
    if (dims < 1 || input.size(dims - 1) != k)
        fail("input of shape " + shape_of(input) + " does not fit a weight of shape (" + std::to_string(n) + ", " +
             std::to_string(k) + "): its last dimension must be " + std::to_string(k));
    check_type(weight_scale, ScalarType::Float, "weight_scale", "float32");
    if (weight_scale.numel() != n)
        fail("weight_scale must have one element for each of the " + std::to_string(n) + " output channels");
    if (bias) {
        check_cpu(*bias, "bias");
        layer.bias_dtype = checked_dtype(*bias, "bias");
        if (bias->dim() != 1 || bias->numel() != n)
            fail("bias of shape " + shape_of(*bias) + " must have shape (" + std::to_string(n) + ")");
    }

    const auto sizes = input.sizes();
    std::vector<int64_t> output_sizes(sizes.begin(), sizes.end());
    output_sizes.back() = n;
    Tensor output = empty({output_sizes.data(), output_sizes.size()}, input.scalar_type());
    layer.m = input.numel() / k;
    if (layer.m == 0) return output;

    const Tensor rows = input.is_contiguous() ? input : torch::stable::contiguous(input);
    const Tensor contiguous_bias = !bias || bias->is_contiguous() ? rows : torch::stable::contiguous(*bias);
    layer.input = rows.const_data_ptr();
    layer.bias = !bias ? nullptr : bias->is_contiguous() ? bias->const_data_ptr() : contiguous_bias.const_data_ptr();
    layer.weight_scale = static_cast<const float*>(weight_scale.const_data_ptr());
    layer.output = output.mutable_data_ptr();
    layer.activation_symmetric = symmetric;
    layer.per_token = per_token;
    const Parallel parallel = worthwhile(layer, torch_threads());
    if (!run_linear(layer, thread_scratch(scratch_bytes(layer, parallel)), parallel))
        fail(std::string("kernel ") + layer.weight.kernel->id +
             " failed; force another with AO_ARM_KERNEL and pack again");
    return output;
}

Tensor matmul_int8(const Tensor& qdata, const Tensor& packed_weight) {
    const PackedWeight weight = opened(packed_weight);
    check_type(qdata, ScalarType::Char, "qdata", "int8");
    if (qdata.dim() != 2 || qdata.size(1) != weight.k)
        fail("qdata of shape " + shape_of(qdata) + " must have shape (m, " + std::to_string(weight.k) + ")");
    const int64_t m = qdata.size(0);
    const int64_t sizes[] = {m, weight.n};
    Tensor output = empty({sizes, 2}, ScalarType::Int);
    const Parallel parallel = torch_threads().limited_to(weight.panels());
    if (!run_matmul(weight, static_cast<const int8_t*>(qdata.const_data_ptr()), m,
                    static_cast<int32_t*>(output.mutable_data_ptr()),
                    thread_scratch(matmul_scratch_bytes(weight, parallel)), parallel))
        fail(std::string("kernel ") + weight.kernel->id + " failed");
    return output;
}

std::tuple<Tensor, Tensor, Tensor> quantize_activations(const Tensor& input, bool symmetric) {
    check_cpu(input, "input");
    const DType dtype = checked_dtype(input, "input");
    if (input.dim() != 2 || !input.is_contiguous()) fail("input must be a contiguous matrix (m, k)");
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

Tensor pack_int8(const Tensor& qdata, std::string kernel_id) {
    check_type(qdata, ScalarType::Char, "qdata", "int8");
    if (qdata.dim() != 2) fail("qdata must be a matrix (n, k), not of shape " + shape_of(qdata));
    const int64_t n = qdata.size(0), k = qdata.size(1);
    const Kernel& kernel = usable_kernel(kernel_id, n, k);
    const int64_t bytes = packed_bytes(kernel, n, k);
    Tensor packed = empty({&bytes, 1}, ScalarType::Byte);
    const std::string error = pack_weight(kernel, n, k, static_cast<const int8_t*>(qdata.const_data_ptr()),
                                          static_cast<uint8_t*>(packed.mutable_data_ptr()));
    if (!error.empty()) fail(error);
    return packed;
}

Tensor unpack_int8(const Tensor& packed_weight) {
    const PackedWeight weight = opened(packed_weight);
    const int64_t sizes[] = {weight.n, weight.k};
    Tensor qdata = empty({sizes, 2}, ScalarType::Char);
    const std::string error = unpack_weight(weight, static_cast<int8_t*>(qdata.mutable_data_ptr()));
    if (!error.empty()) fail(error);
    return qdata;
}

std::string select_kernel_for(int64_t n, int64_t k, std::string forced) { return usable_kernel(forced, n, k).id; }

int64_t packed_bytes_for(int64_t n, int64_t k, std::string kernel_id) {
    return packed_bytes(usable_kernel(kernel_id, n, k), n, k);
}

std::string quoted(const std::string& text) {
    std::string json = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') json += '\\';
        json += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
    return json + "\"";
}

std::string quoted(const std::vector<std::string>& texts) {
    std::string json = "[";
    for (const std::string& text : texts) json += (json.size() == 1 ? "" : ", ") + quoted(text);
    return json + "]";
}

// JSON: [{id, summary, features, reasons, cost}] for an (n, k) layer.
std::string kernel_table(int64_t n, int64_t k) {
    const Problem problem = int8_problem(n, k);
    std::string json = "[";
    for (const Kernel* kernel : kernels()) {
        const std::vector<std::string> reasons = reject_reasons(*kernel, problem);
        const std::string cost = reasons.empty() ? std::to_string(kernel->cost(problem, cpu_features())) : "null";
        json += (json.size() == 1 ? "{\"id\": " : ", {\"id\": ") + quoted(kernel->id) +
                ", \"summary\": " + quoted(kernel->summary) +
                ", \"features\": " + quoted(feature_names(kernel->features)) + ", \"reasons\": " + quoted(reasons) +
                ", \"cost\": " + cost + "}";
    }
    return json + "]";
}

// JSON: {n, k, kernel, packing_format}.
std::string packed_weight_info(const Tensor& packed_weight) {
    const PackedWeight weight = opened(packed_weight);
    return "{\"n\": " + std::to_string(weight.n) + ", \"k\": " + std::to_string(weight.k) +
           ", \"kernel\": " + quoted(weight.kernel->id) +
           ", \"packing_format\": " + quoted(weight.kernel->packing_format(weight.n, weight.k)) + "}";
}

// JSON: {model, features, build}.
std::string system_info() {
    return "{\"model\": " + quoted(cpu_features().model) +
           ", \"features\": " + quoted(feature_names(cpu_features().bits)) +
           ", \"build\": " + quoted(build_information()) + "}";
}

}  // namespace
}  // namespace ao_arm

// Python repeats each schema beside its fake kernel and compares them when it loads this library (ao_arm/_ops.py).
STABLE_TORCH_LIBRARY(ao_arm, library) {
    library.def(
        "linear_int8_dynamic(Tensor input, Tensor packed_weight, Tensor weight_scale, Tensor? bias, bool symmetric, "
        "bool per_token) -> Tensor");
    library.def("matmul_int8(Tensor qdata, Tensor packed_weight) -> Tensor");
    library.def("quantize_activations(Tensor input, bool symmetric) -> (Tensor, Tensor, Tensor)");
    library.def("pack_int8(Tensor qdata, str kernel) -> Tensor");
    library.def("unpack_int8(Tensor packed_weight) -> Tensor");
    library.def("packed_weight_info(Tensor packed_weight) -> str");
    library.def("select_kernel(int n, int k, str forced) -> str");
    library.def("packed_bytes(int n, int k, str kernel) -> int");
    library.def("kernel_table(int n, int k) -> str");
    library.def("system_info() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(ao_arm, CPU, library) {
    library.impl("linear_int8_dynamic", TORCH_BOX(&ao_arm::linear_int8_dynamic));
    library.impl("matmul_int8", TORCH_BOX(&ao_arm::matmul_int8));
    library.impl("quantize_activations", TORCH_BOX(&ao_arm::quantize_activations));
    library.impl("pack_int8", TORCH_BOX(&ao_arm::pack_int8));
    library.impl("unpack_int8", TORCH_BOX(&ao_arm::unpack_int8));
    library.impl("packed_weight_info", TORCH_BOX(&ao_arm::packed_weight_info));
}

STABLE_TORCH_LIBRARY_IMPL(ao_arm, CompositeExplicitAutograd, library) {
    library.impl("select_kernel", TORCH_BOX(&ao_arm::select_kernel_for));
    library.impl("packed_bytes", TORCH_BOX(&ao_arm::packed_bytes_for));
    library.impl("kernel_table", TORCH_BOX(&ao_arm::kernel_table));
    library.impl("system_info", TORCH_BOX(&ao_arm::system_info));
}
