// The custom ops: checks arguments, lends memory and threads to the kernels. The only file that knows torch.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "activation_quantization.h"
#include "build_information.h"
#include "grouped_registry.h"
#include "linear_int4.h"
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
        case ScalarType::Char:
            return DType::kInt8;
        case ScalarType::Byte:
            return DType::kUInt8;
        default:
            return std::nullopt;
    }
}

std::string type_name(const Tensor& tensor) { return torch::headeronly::toString(tensor.scalar_type()); }

DType checked_float(const Tensor& tensor, const char* name) {
    const std::optional<DType> dtype = dtype_of(tensor);
    if (!dtype || !is_float(*dtype))
        fail(std::string(name) + " must be float32, bfloat16 or float16, not " + type_name(tensor));
    return *dtype;
}

void check_cpu(const Tensor& tensor, const char* name) {
    if (!tensor.is_cpu()) fail(std::string(name) + " must be on the CPU; move it with .cpu()");
}

void check_type(const Tensor& tensor, ScalarType type, const char* name, const char* wanted) {
    check_cpu(tensor, name);
    if (tensor.scalar_type() != type) fail(std::string(name) + " must be " + wanted + ", not " + type_name(tensor));
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

Problem int8_problem(int64_t n, int64_t k) { return {Scheme::kInt8, n, k}; }

const Kernel& usable_kernel(const std::string& id, int64_t n, int64_t k) {
    std::string error;
    const Kernel* kernel = select_kernel(int8_problem(n, k), id, &error);
    if (kernel == nullptr) fail(error);
    return *kernel;
}

// The number of rows of an input for a weight of shape (n, k).
int64_t checked_rows(const Tensor& input, int64_t n, int64_t k) {
    check_cpu(input, "input");
    const int64_t dims = input.dim();
    if (dims < 1 || input.size(dims - 1) != k)
        fail("input of shape " + shape_of(input) + " does not fit a weight of shape (" + std::to_string(n) + ", " +
             std::to_string(k) + "): its last dimension must be " + std::to_string(k));
    return input.numel() / k;
}

// The type of a bias of n elements; that of none is of no use.
DType checked_bias(const std::optional<Tensor>& bias, int64_t n) {
    if (!bias) return DType::kFloat32;
    check_cpu(*bias, "bias");
    const DType dtype = checked_float(*bias, "bias");
    if (bias->dim() != 1 || bias->numel() != n)
        fail("bias of shape " + shape_of(*bias) + " must have shape (" + std::to_string(n) + ")");
    return dtype;
}

// An output like the input, but with n columns.
Tensor empty_output(const Tensor& input, int64_t n, ScalarType type) {
    const auto sizes = input.sizes();
    std::vector<int64_t> output_sizes(sizes.begin(), sizes.end());
    output_sizes.back() = n;
    return empty({output_sizes.data(), output_sizes.size()}, type);
}

Tensor as_contiguous(const Tensor& tensor) {
    return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// What all int8 layers check alike; `layer` still lacks what is particular to one.
LinearInt8 checked_layer(const Tensor& input, const Tensor& packed_weight, const Tensor& weight_scale,
                         const std::optional<Tensor>& bias) {
    LinearInt8 layer{};
    layer.weight = opened(packed_weight);
    const int64_t n = layer.weight.n, k = layer.weight.k;
    layer.m = checked_rows(input, n, k);
    check_type(weight_scale, ScalarType::Float, "weight_scale", "float32");
    if (weight_scale.numel() != n)
        fail("weight_scale must have one element for each of the " + std::to_string(n) + " output channels");
    layer.bias_dtype = checked_bias(bias, n);
    layer.weight_scale = static_cast<const float*>(weight_scale.const_data_ptr());
    layer.minimum = -INFINITY;
    layer.maximum = INFINITY;
    return layer;
}

Tensor run_layer(LinearInt8& layer, const Tensor& input, const std::optional<Tensor>& bias, ScalarType output_type) {
    Tensor output = empty_output(input, layer.weight.n, output_type);
    if (layer.m == 0) return output;

    const Tensor rows = as_contiguous(input);
    const std::optional<Tensor> biases = bias ? std::optional<Tensor>(as_contiguous(*bias)) : std::nullopt;
    layer.input = rows.const_data_ptr();
    layer.bias = biases ? biases->const_data_ptr() : nullptr;
    layer.output = output.mutable_data_ptr();
    layer.output_dtype = *dtype_of(output);
    const Parallel parallel = worthwhile(layer, torch_threads());
    if (!run_linear(layer, thread_scratch(scratch_bytes(layer, parallel)), parallel))
        fail(std::string("kernel ") + layer.weight.kernel->id +
             " failed; force another with AO_ARM_KERNEL and pack again");
    return output;
}

Tensor linear_int8_dynamic(const Tensor& input, const Tensor& packed_weight, const Tensor& weight_scale,
                           const std::optional<Tensor>& bias, bool symmetric, bool per_token) {
    LinearInt8 layer = checked_layer(input, packed_weight, weight_scale, bias);
    layer.input_dtype = checked_float(input, "input");
    layer.activation_scale = per_token ? ActivationScale::kPerToken : ActivationScale::kPerTensor;
    layer.activation_symmetric = symmetric;
    return run_layer(layer, input, bias, input.scalar_type());
}

// A scale and a zero point whose type tells which integers they stand for.
struct Quantization {
    DType dtype;
    float scale;
    int32_t zero_point;
};

Quantization checked_quantization(const Tensor& scale, const Tensor& zero_point, const char* what) {
    const std::string name = what;
    check_type(scale, ScalarType::Float, (name + "_scale").c_str(), "float32");
    check_cpu(zero_point, (name + "_zero_point").c_str());
    if (scale.numel() != 1 || zero_point.numel() != 1)
        fail(name + "_scale and " + name + "_zero_point must have one element each, not the shapes " + shape_of(scale) +
             " and " + shape_of(zero_point));
    const std::optional<DType> dtype = dtype_of(zero_point);
    if (!dtype || is_float(*dtype))
        fail(name + "_zero_point must be int8 or uint8, as the quantized values are, not " + type_name(zero_point));
    const float value = *static_cast<const float*>(scale.const_data_ptr());
    if (!(value > 0) || std::isinf(value))
        fail(name + "_scale must be positive and finite, not " + std::to_string(value));
    const void* data = zero_point.const_data_ptr();
    return {*dtype, value,
            *dtype == DType::kInt8 ? *static_cast<const int8_t*>(data) : *static_cast<const uint8_t*>(data)};
}

Tensor linear_int8_static(const Tensor& input, const Tensor& packed_weight, const Tensor& weight_scale,
                          const std::optional<Tensor>& bias, const Tensor& input_scale, const Tensor& input_zero_point,
                          const std::optional<Tensor>& output_scale, const std::optional<Tensor>& output_zero_point,
                          std::optional<ScalarType> output_dtype, std::optional<double> output_min,
                          std::optional<double> output_max) {
    LinearInt8 layer = checked_layer(input, packed_weight, weight_scale, bias);
    layer.activation_scale = ActivationScale::kStatic;
    const Quantization given = checked_quantization(input_scale, input_zero_point, "input");
    const std::optional<DType> input_dtype = dtype_of(input);
    if (!input_dtype || (!is_float(*input_dtype) && *input_dtype != given.dtype))
        fail("input must be float32, bfloat16, float16 or, as input_zero_point is, " + type_name(input_zero_point) +
             ", not " + type_name(input));
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
        if (output_type != ScalarType::Float && output_type != ScalarType::BFloat16 && output_type != ScalarType::Half)
            fail(std::string("output_dtype must be float32, bfloat16 or float16 without output_scale, not ") +
                 torch::headeronly::toString(output_type));
    }
    layer.minimum = static_cast<float>(output_min.value_or(-INFINITY));
    layer.maximum = static_cast<float>(output_max.value_or(INFINITY));
    if (!(layer.minimum <= layer.maximum)) fail("output_min must be at most output_max");
    return run_layer(layer, input, bias, output_type);
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
    const DType dtype = checked_float(input, "input");
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

Tensor unpack_int8(const Tensor& packed_weight, int64_t n, int64_t k) {
    const PackedWeight weight = opened(packed_weight);
    if (weight.n != n || weight.k != k)
        fail("this packed weight has shape (" + std::to_string(weight.n) + ", " + std::to_string(weight.k) +
             "), not (" + std::to_string(n) + ", " + std::to_string(k) + ")");
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

GroupedProblem int4_problem(int64_t n, int64_t k, int64_t group, bool float_scales, bool zero_points) {
    return {n, k, group, float_scales ? DType::kFloat32 : DType::kBFloat16, zero_points};
}

const GroupedKernel& usable_kernel(const std::string& id, const GroupedProblem& problem) {
    std::string error;
    const GroupedKernel* kernel = select_grouped_kernel(problem, id, &error);
    if (kernel == nullptr) fail(error);
    return *kernel;
}

PackedGroupedWeight opened_int4(const Tensor& packed) {
    check_type(packed, ScalarType::Byte, "packed_weight", "uint8");
    PackedGroupedWeight weight{};
    const std::string error =
        open_packed_grouped_weight(static_cast<const uint8_t*>(packed.const_data_ptr()), packed.numel(), &weight);
    if (!error.empty()) fail(error);
    return weight;
}

void check_per_token(const Tensor& tensor, int64_t m, ScalarType type, const char* name, const char* type_name) {
    check_type(tensor, type, name, type_name);
    if (tensor.numel() != m)
        fail(std::string(name) + " of shape " + shape_of(tensor) + " must have one element for each of the " +
             std::to_string(m) + " tokens");
}

Tensor linear_qta8a_qga4w(const Tensor& input, const Tensor& packed_weight, int64_t n,
                          const std::optional<Tensor>& bias, const std::optional<Tensor>& act_scale,
                          const std::optional<Tensor>& act_zero_point, std::optional<double> output_min,
                          std::optional<double> output_max) {
    LinearInt4 layer{};
    layer.weight = opened_int4(packed_weight);
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
    layer.least = output_min ? static_cast<float>(*output_min) : -INFINITY;
    layer.greatest = output_max ? static_cast<float>(*output_max) : INFINITY;
    if (!(layer.least <= layer.greatest)) fail("output_min must not be above output_max");

    Tensor output = empty_output(input, n, quantized ? ScalarType::Float : input.scalar_type());
    if (layer.m == 0) return output;

    const Tensor rows = as_contiguous(input);
    const std::optional<Tensor> biases = bias ? std::optional<Tensor>(as_contiguous(*bias)) : std::nullopt;
    layer.input = quantized ? nullptr : rows.const_data_ptr();
    layer.qdata = quantized ? static_cast<const int8_t*>(rows.const_data_ptr()) : nullptr;
    layer.bias = biases ? biases->const_data_ptr() : nullptr;
    layer.output = output.mutable_data_ptr();
    const Parallel parallel = worthwhile(layer, torch_threads());
    run_linear(layer, thread_scratch(scratch_bytes(layer, parallel)), parallel);
    return output;
}

// The problem that plain contents describe, after checking them.
GroupedProblem described_problem(const Tensor& qdata, const Tensor& scale, const std::optional<Tensor>& zero_point) {
    check_type(qdata, ScalarType::Char, "qdata", "int8");
    check_cpu(scale, "scale");
    const bool floats = scale.scalar_type() == ScalarType::Float;
    if (!floats && scale.scalar_type() != ScalarType::BFloat16) fail("scale must be bfloat16 or float32");
    if (!scale.is_contiguous()) fail("scale must be contiguous");
    if (qdata.dim() != 2 || scale.dim() != 2 || scale.size(0) != qdata.size(0) || scale.size(1) < 1)
        fail("qdata must be a matrix (n, k) and scale (n, k / group_size), not of shapes " + shape_of(qdata) + " and " +
             shape_of(scale));
    if (zero_point) {
        check_type(*zero_point, ScalarType::Char, "zero_point", "int8");
        if (zero_point->dim() != 2 || zero_point->size(0) != scale.size(0) || zero_point->size(1) != scale.size(1))
            fail("zero_point of shape " + shape_of(*zero_point) + " must have the shape of scale, " + shape_of(scale));
    }
    const int64_t n = qdata.size(0), k = qdata.size(1), groups = scale.size(1);
    if (k % groups != 0)
        fail("scale of shape " + shape_of(scale) + " does not fit qdata of shape " + shape_of(qdata) +
             ": k = " + std::to_string(k) + " is no multiple of " + std::to_string(groups) + " groups");
    return int4_problem(n, k, k / groups, floats, zero_point.has_value());
}

Tensor pack_int4(const Tensor& qdata, const Tensor& scale, const std::optional<Tensor>& zero_point,
                 std::string kernel_id) {
    const GroupedProblem problem = described_problem(qdata, scale, zero_point);
    const GroupedKernel& kernel = usable_kernel(kernel_id, problem);
    const int64_t bytes = packed_bytes(kernel, problem);
    Tensor packed = empty({&bytes, 1}, ScalarType::Byte);
    const GroupedValues values = {
        static_cast<int8_t*>(const_cast<void*>(qdata.const_data_ptr())), const_cast<void*>(scale.const_data_ptr()),
        zero_point ? static_cast<int8_t*>(const_cast<void*>(zero_point->const_data_ptr())) : nullptr};
    const std::string error =
        pack_grouped_weight(kernel, problem, values, static_cast<uint8_t*>(packed.mutable_data_ptr()));
    if (!error.empty()) fail(error);
    return packed;
}

std::tuple<Tensor, Tensor, Tensor> unpack_int4(const Tensor& packed_weight, int64_t n, int64_t k, int64_t group_size,
                                               bool float_scales, bool zero_points) {
    const PackedGroupedWeight weight = opened_int4(packed_weight);
    const GroupedProblem& problem = weight.problem;
    if (n != problem.n || k != problem.k || group_size != problem.group || zero_points != problem.zero_points ||
        float_scales != (problem.scale_type == DType::kFloat32))
        fail("the packed weight is (" + std::to_string(problem.n) + ", " + std::to_string(problem.k) +
             ") in groups of " + std::to_string(problem.group) + ", " +
             (problem.scale_type == DType::kFloat32 ? "float32" : "bfloat16") + " scales, " +
             (problem.zero_points ? "with" : "without") + " zero points, and not what was given");
    const int64_t sizes[] = {n, k}, groups[] = {n, problem.groups()}, none[] = {0, 0};
    Tensor qdata = empty({sizes, 2}, ScalarType::Char);
    Tensor scale = empty({groups, 2}, float_scales ? ScalarType::Float : ScalarType::BFloat16);
    Tensor zero_point = empty({zero_points ? groups : none, 2}, ScalarType::Char);
    unpack_grouped_weight(weight, {static_cast<int8_t*>(qdata.mutable_data_ptr()), scale.mutable_data_ptr(),
                                   zero_points ? static_cast<int8_t*>(zero_point.mutable_data_ptr()) : nullptr});
    return {qdata, scale, zero_point};
}

std::string select_kernel_int4(int64_t n, int64_t k, int64_t group_size, bool float_scales, bool zero_points,
                               std::string forced) {
    return usable_kernel(forced, int4_problem(n, k, group_size, float_scales, zero_points)).id;
}

int64_t packed_bytes_int4(int64_t n, int64_t k, int64_t group_size, bool float_scales, bool zero_points,
                          std::string kernel_id) {
    const GroupedProblem problem = int4_problem(n, k, group_size, float_scales, zero_points);
    return packed_bytes(usable_kernel(kernel_id, problem), problem);
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

// JSON: [{id, summary, features, reasons, cost}] of a table, judged for a problem. A kernel that has to refuse the
// layer costs what it would otherwise; only one that this CPU could not run anyway has no cost.
template <class Kernel, class Problem>
std::string table_of(const std::vector<const Kernel*>& table, const Problem& problem) {
    std::string json = "[";
    for (const Kernel* kernel : table) {
        const std::vector<std::string> reasons = reject_reasons(*kernel, problem);
        const bool runs_here = kernel->cost != nullptr && cpu_features().has(kernel->features);
        const std::string cost = runs_here ? std::to_string(kernel->cost(problem, cpu_features())) : "null";
        json += (json.size() == 1 ? "{\"id\": " : ", {\"id\": ") + quoted(kernel->id) +
                ", \"summary\": " + quoted(kernel->summary) +
                ", \"features\": " + quoted(feature_names(kernel->features)) + ", \"reasons\": " + quoted(reasons) +
                ", \"cost\": " + cost + "}";
    }
    return json + "]";
}

std::string kernel_table(int64_t n, int64_t k) { return table_of(kernels(), int8_problem(n, k)); }

std::string kernel_table_int4(int64_t n, int64_t k, int64_t group_size, bool float_scales, bool zero_points) {
    return table_of(grouped_kernels(), int4_problem(n, k, group_size, float_scales, zero_points));
}

std::string info_of(int64_t n, int64_t k, const std::string& kernel, const std::string& format) {
    return "\"n\": " + std::to_string(n) + ", \"k\": " + std::to_string(k) + ", \"kernel\": " + quoted(kernel) +
           ", \"packing_format\": " + quoted(format);
}

// JSON: {n, k, kernel, packing_format}; for 4-bit groups {group_size, scale_dtype, zero_points} as well.
std::string packed_weight_info(const Tensor& packed_weight) {
    check_type(packed_weight, ScalarType::Byte, "packed_weight", "uint8");
    PackedHeader header;
    const std::string error =
        read_header(static_cast<const uint8_t*>(packed_weight.const_data_ptr()), packed_weight.numel(), &header);
    if (!error.empty()) fail(error);
    if (header.scheme == static_cast<int32_t>(Scheme::kInt4Grouped)) {
        const PackedGroupedWeight weight = opened_int4(packed_weight);
        const GroupedProblem& problem = weight.problem;
        return "{" + info_of(problem.n, problem.k, weight.kernel->id, weight.kernel->packing_format(problem)) +
               ", \"group_size\": " + std::to_string(problem.group) +
               ", \"scale_dtype\": " + quoted(problem.scale_type == DType::kFloat32 ? "float32" : "bfloat16") +
               ", \"zero_points\": " + (problem.zero_points ? "true" : "false") + "}";
    }
    const PackedWeight weight = opened(packed_weight);
    return "{" + info_of(weight.n, weight.k, weight.kernel->id, weight.kernel->packing_format(weight.n, weight.k)) +
           "}";
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
    library.def(
        "linear_int8_static(Tensor input, Tensor packed_weight, Tensor weight_scale, Tensor? bias, Tensor input_scale, "
        "Tensor input_zero_point, Tensor? output_scale=None, Tensor? output_zero_point=None, "
        "ScalarType? output_dtype=None, float? output_min=None, float? output_max=None) -> Tensor");
    library.def("matmul_int8(Tensor qdata, Tensor packed_weight) -> Tensor");
    library.def("quantize_activations(Tensor input, bool symmetric) -> (Tensor, Tensor, Tensor)");
    library.def("pack_int8(Tensor qdata, str kernel) -> Tensor");
    library.def("unpack_int8(Tensor packed_weight, int n, int k) -> Tensor");
    library.def(
        "linear_qta8a_qga4w(Tensor input, Tensor packed_weight, int n, Tensor? bias, Tensor? act_scale, "
        "Tensor? act_zero_point, float? output_min, float? output_max) -> Tensor");
    library.def("pack_int4(Tensor qdata, Tensor scale, Tensor? zero_point, str kernel) -> Tensor");
    library.def(
        "unpack_int4(Tensor packed_weight, int n, int k, int group_size, bool float_scales, bool zero_points) -> "
        "(Tensor, Tensor, Tensor)");
    library.def("packed_weight_info(Tensor packed_weight) -> str");
    library.def("select_kernel(int n, int k, str forced) -> str");
    library.def("packed_bytes(int n, int k, str kernel) -> int");
    library.def("kernel_table(int n, int k) -> str");
    library.def(
        "select_kernel_int4(int n, int k, int group_size, bool float_scales, bool zero_points, str forced) -> str");
    library.def(
        "packed_bytes_int4(int n, int k, int group_size, bool float_scales, bool zero_points, str kernel) -> int");
    library.def("kernel_table_int4(int n, int k, int group_size, bool float_scales, bool zero_points) -> str");
    library.def("system_info() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(ao_arm, CPU, library) {
    library.impl("linear_int8_dynamic", TORCH_BOX(&ao_arm::linear_int8_dynamic));
    library.impl("linear_int8_static", TORCH_BOX(&ao_arm::linear_int8_static));
    library.impl("matmul_int8", TORCH_BOX(&ao_arm::matmul_int8));
    library.impl("quantize_activations", TORCH_BOX(&ao_arm::quantize_activations));
    library.impl("pack_int8", TORCH_BOX(&ao_arm::pack_int8));
    library.impl("unpack_int8", TORCH_BOX(&ao_arm::unpack_int8));
    library.impl("linear_qta8a_qga4w", TORCH_BOX(&ao_arm::linear_qta8a_qga4w));
    library.impl("pack_int4", TORCH_BOX(&ao_arm::pack_int4));
    library.impl("unpack_int4", TORCH_BOX(&ao_arm::unpack_int4));
    library.impl("packed_weight_info", TORCH_BOX(&ao_arm::packed_weight_info));
}

STABLE_TORCH_LIBRARY_IMPL(ao_arm, CompositeExplicitAutograd, library) {
    library.impl("select_kernel", TORCH_BOX(&ao_arm::select_kernel_for));
    library.impl("packed_bytes", TORCH_BOX(&ao_arm::packed_bytes_for));
    library.impl("kernel_table", TORCH_BOX(&ao_arm::kernel_table));
    library.impl("select_kernel_int4", TORCH_BOX(&ao_arm::select_kernel_int4));
    library.impl("packed_bytes_int4", TORCH_BOX(&ao_arm::packed_bytes_int4));
    library.impl("kernel_table_int4", TORCH_BOX(&ao_arm::kernel_table_int4));
    library.impl("system_info", TORCH_BOX(&ao_arm::system_info));
}
