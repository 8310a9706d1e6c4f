#include "ops/op_arguments.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cmath>
#include <stdexcept>

namespace ao_arm {
namespace {

// How many bytes from the start of its storage on a tensor's elements reach.
int64_t reach_of(const Tensor& tensor) {
    if (tensor.numel() == 0) return 0;
    int64_t last = tensor.storage_offset();
    if (tensor.is_contiguous())
        last += tensor.numel() - 1;
    else
        for (int64_t i = 0; i < tensor.dim(); ++i) last += (tensor.size(i) - 1) * tensor.stride(i);
    return (last + 1) * static_cast<int64_t>(tensor.element_size());
}

bool begins_at_multiple(const Tensor& tensor, size_t bytes) {
    return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % bytes == 0;
}

}  // namespace

void fail(const std::string& message) { throw std::runtime_error("ao_arm: " + message); }

void fail_for_memory(const std::string& what) { throw std::runtime_error("ao_arm has no memory left for " + what); }

std::string shape_of(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
    std::string text = "(";
    for (const int64_t size : sizes) text += (text.size() == 1 ? "" : ", ") + std::to_string(size);
    return text + ")";
}

std::string shape_of(const Tensor& tensor) { return shape_of(tensor.sizes()); }

std::string type_name(ScalarType type) {
    switch (type) {
        case ScalarType::Float:
            return "torch.float32";
        case ScalarType::BFloat16:
            return "torch.bfloat16";
        case ScalarType::Half:
            return "torch.float16";
        case ScalarType::Double:
            return "torch.float64";
        case ScalarType::Char:
            return "torch.int8";
        case ScalarType::Byte:
            return "torch.uint8";
        case ScalarType::Short:
            return "torch.int16";
        case ScalarType::Int:
            return "torch.int32";
        case ScalarType::Long:
            return "torch.int64";
        case ScalarType::Bool:
            return "torch.bool";
        default:  // those that torch itself has no short names for
            return std::string("torch.") + torch::headeronly::toString(type);
    }
}

std::string type_name(const Tensor& tensor) { return type_name(tensor.scalar_type()); }

std::optional<DType> dtype_of(ScalarType type) {
    switch (type) {
        case ScalarType::Float:
            return DType::kFloat32;
        case ScalarType::BFloat16:
            return DType::kBFloat16;
        case ScalarType::Half:
            return DType::kFloat16;
        case ScalarType::Char:
            return DType::kInt8;
        case ScalarType::Byte:
            return DType::kUInt8;
        default:
            return std::nullopt;
    }
}

void check_readable(const Tensor& tensor, const char* name) {
    if (!tensor.is_cpu()) fail(std::string(name) + " must be on the CPU; move it with .cpu()");
    int64_t bytes;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
    if (const int64_t reach = reach_of(tensor); reach > bytes)
        fail(std::string(name) + " of shape " + shape_of(tensor) + " reaches to byte " + std::to_string(reach) +
             " of a storage that has " + std::to_string(bytes) +
             ": it was resized since the tensor was made; make the tensor anew");
}

bool is_aligned(const Tensor& tensor) { return begins_at_multiple(tensor, tensor.element_size()); }

void check_arrangement(const Tensor& tensor, const char* name) {
    if (!tensor.is_contiguous()) fail(std::string(name) + " must be contiguous");
    if (!is_aligned(tensor))
        fail(std::string(name) + " must begin in memory at a multiple of its elements' size; clone() does");
}

void check_type(const Tensor& tensor, ScalarType type, const char* name, const char* wanted) {
    check_readable(tensor, name);
    if (tensor.scalar_type() != type) fail(std::string(name) + " must be " + wanted + ", not " + type_name(tensor));
    check_arrangement(tensor, name);
}

DType checked_float(const Tensor& tensor, const char* name) {
    const std::optional<DType> dtype = dtype_of(tensor.scalar_type());
    if (!dtype || !is_float(*dtype))
        fail(std::string(name) + " must be torch.float32, torch.bfloat16 or torch.float16, not " + type_name(tensor));
    return *dtype;
}

void check_float_output(ScalarType type, const char* where) {
    const std::optional<DType> dtype = dtype_of(type);
    if (!dtype || !is_float(*dtype))
        fail(std::string("output_dtype must be torch.float32, torch.bfloat16 or torch.float16") + where + ", not " +
             type_name(type));
}

int64_t checked_rows(const Tensor& input, const char* name, int64_t n, int64_t k) {
    check_readable(input, name);
    const int64_t dims = input.dim();
    if (dims < 1 || input.size(dims - 1) != k)
        fail(std::string(name) + " of shape " + shape_of(input) + " does not fit a weight of shape (" +
             std::to_string(n) + ", " + std::to_string(k) + "): its last dimension must be " + std::to_string(k));
    return input.numel() / k;
}

DType checked_bias(const std::optional<Tensor>& bias, int64_t n) {
    if (!bias) return DType::kFloat32;
    check_readable(*bias, "bias");
    const DType dtype = checked_float(*bias, "bias");
    if (bias->dim() != 1 || bias->numel() != n)
        fail("bias of shape " + shape_of(*bias) + " must have shape (" + std::to_string(n) + ")");
    return dtype;
}

void check_counts(size_t count, std::initializer_list<std::pair<const char*, size_t>> lists) {
    if (count == 0) fail("packed_weights must hold one weight at least");
    for (const auto& [name, size] : lists)
        if (size != count)
            fail(std::string(name) + " must have one element for each of the " + std::to_string(count) +
                 " packed_weights, not " + std::to_string(size));
}

Bounds checked_bounds(std::optional<double> output_min, std::optional<double> output_max) {
    const Bounds bounds = {static_cast<float>(output_min.value_or(-INFINITY)),
                           static_cast<float>(output_max.value_or(INFINITY))};
    if (!(bounds.least <= bounds.greatest)) fail("output_min must be at most output_max");
    return bounds;
}

PackedWeight opened(const Tensor& packed_weight, Scheme scheme) {
    check_type(packed_weight, ScalarType::Byte, "packed_weight", "torch.uint8");
    // Its sums are numbers of four bytes.
    if (!begins_at_multiple(packed_weight, 4))
        fail("packed_weight must begin in memory at a multiple of 4; clone() does");
    PackedWeight weight{};
    const std::string error = open_packed_weight(scheme, static_cast<const uint8_t*>(packed_weight.const_data_ptr()),
                                                 packed_weight.numel(), &weight);
    if (!error.empty()) fail(error);
    return weight;
}

const Kernel& usable_kernel(const Problem& problem, const std::string& id) {
    std::string error;
    const Kernel* kernel = select_kernel(problem, id, &error);
    if (kernel == nullptr) fail(error);
    return *kernel;
}

}  // namespace ao_arm
