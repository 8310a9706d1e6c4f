// The ops that tell what there is: kernels and the choice among them, packed weights, this system.
#include "core/cpu_features.h"
#include "layer/kernel_table.h"
#include "layer/packed_weight.h"
#include "ops/op_arguments.h"
#include "ops/ops.h"

namespace ao_arm {
namespace {

std::string as_json(const std::string& text) {
    std::string json = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') json += '\\';
        json += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
    return json + "\"";
}

std::string as_json(const std::vector<std::string>& texts) {
    std::string json = "[";
    for (const std::string& text : texts) json += (json.size() == 1 ? "" : ", ") + as_json(text);
    return json + "]";
}

// JSON: [{id, summary, features, reasons, cost}] of a table, judged for a problem. A kernel that has to refuse the
// layer costs what it would otherwise; only one that this CPU could not run anyway has no cost.
std::string table_of(const Problem& problem) {
    std::string json = "[";
    for (const Kernel* kernel : kernels(problem.scheme)) {
        const double cost = cpu_features().has(kernel->features) ? typical_cost(*kernel, problem) : -1;
        json += (json.size() == 1 ? "{\"id\": " : ", {\"id\": ") + as_json(kernel->id) +
                ", \"summary\": " + as_json(kernel->summary) +
                ", \"features\": " + as_json(feature_names(kernel->features)) +
                ", \"reasons\": " + as_json(reject_reasons(*kernel, problem)) +
                ", \"cost\": " + (cost < 0 ? "null" : std::to_string(cost)) + "}";
    }
    return json + "]";
}

// What to expect of a packed weight; that it is one is checked when it is opened.
Scheme scheme_of(const Tensor& packed_weight) {
    check_type(packed_weight, ScalarType::Byte, "packed_weight", "torch.uint8");
    PackedHeader header;
    const std::string error =
        read_header(static_cast<const uint8_t*>(packed_weight.const_data_ptr()), packed_weight.numel(), &header);
    if (!error.empty()) fail(error);
    return problem_of(header).scheme;
}

}  // namespace

std::string select_kernel_int8(int64_t n, int64_t k, std::string forced, bool full_range) {
    return usable_kernel(int8_problem(n, k, full_range), forced).id;
}

std::string select_kernel_int4(int64_t n, int64_t k, int64_t group_size, bool float_scales, bool zero_points,
                               std::string forced) {
    return usable_kernel(int4_problem(n, k, group_size, float_scales, zero_points), forced).id;
}

int64_t packed_bytes_int8(int64_t n, int64_t k, std::string kernel, bool full_range) {
    const Problem problem = int8_problem(n, k, full_range);
    return packed_bytes(usable_kernel(problem, kernel), problem);
}

int64_t packed_bytes_int4(int64_t n, int64_t k, int64_t group_size, bool float_scales, bool zero_points,
                          std::string kernel) {
    const Problem problem = int4_problem(n, k, group_size, float_scales, zero_points);
    return packed_bytes(usable_kernel(problem, kernel), problem);
}

std::string kernel_table_int8(int64_t n, int64_t k, bool full_range) {
    return table_of(int8_problem(n, k, full_range));
}

std::string kernel_table_int4(int64_t n, int64_t k, int64_t group_size, bool float_scales, bool zero_points) {
    return table_of(int4_problem(n, k, group_size, float_scales, zero_points));
}

// JSON: {n, k, kernel, packing_format}; of int8 weights {full_range} as well, of 4-bit ones {group_size, scale_dtype,
// zero_points}.
std::string packed_weight_info(const Tensor& packed_weight) {
    const PackedWeight weight = opened(packed_weight, scheme_of(packed_weight));
    const Problem& problem = weight.problem;
    std::string json = "{\"n\": " + std::to_string(problem.n) + ", \"k\": " + std::to_string(problem.k) +
                       ", \"kernel\": " + as_json(weight.kernel->id) +
                       ", \"packing_format\": " + as_json(weight.kernel->packing_format(problem));
    if (problem.scheme == Scheme::kInt4)
        json += ", \"group_size\": " + std::to_string(problem.group) +
                ", \"scale_dtype\": " + as_json(problem.scale_type == DType::kFloat32 ? "float32" : "bfloat16") +
                ", \"zero_points\": " + (problem.zero_points ? "true" : "false");
    else
        json += std::string(", \"full_range\": ") + (problem.full_range ? "true" : "false");
    return json + "}";
}

// JSON: {model, features, build}: what this library was built with, e.g. "GCC 12.2; Arm Compute Library 24.11;
// KleidiAI".
std::string system_info() {
    std::string build = AO_ARM_COMPILER;
    if (AO_ARM_HAVE_ACL) build += "; Arm Compute Library " AO_ARM_ACL_VERSION;
    if (AO_ARM_HAVE_KLEIDIAI) build += "; KleidiAI";
    return "{\"model\": " + as_json(cpu_features().model) +
           ", \"features\": " + as_json(feature_names(cpu_features().bits)) + ", \"build\": " + as_json(build) + "}";
}

}  // namespace ao_arm
