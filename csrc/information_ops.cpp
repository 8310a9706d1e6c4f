// The ops that tell what there is: kernels and the choice among them, packed weights, this system.
#include "build_information.h"
#include "cpu_features.h"
#include "grouped_registry.h"
#include "op_arguments.h"
#include "ops.h"
#include "packed_grouped_weight.h"
#include "packed_weight.h"
#include "registry.h"

namespace ao_arm {
namespace {

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

std::string info_of(int64_t n, int64_t k, const std::string& kernel, const std::string& format) {
    return "\"n\": " + std::to_string(n) + ", \"k\": " + std::to_string(k) + ", \"kernel\": " + quoted(kernel) +
           ", \"packing_format\": " + quoted(format);
}

}  // namespace

std::string select_kernel_int8(int64_t n, int64_t k, std::string forced) {
    return usable_kernel(select_kernel, int8_problem(n, k), forced).id;
}

std::string select_kernel_int4(int64_t n, int64_t k, int64_t group_size, bool float_scales, bool zero_points,
                               std::string forced) {
    return usable_kernel(select_grouped_kernel, int4_problem(n, k, group_size, float_scales, zero_points), forced).id;
}

int64_t packed_bytes_int8(int64_t n, int64_t k, std::string kernel) {
    return packed_bytes(usable_kernel(select_kernel, int8_problem(n, k), kernel), n, k);
}

int64_t packed_bytes_int4(int64_t n, int64_t k, int64_t group_size, bool float_scales, bool zero_points,
                          std::string kernel) {
    const GroupedProblem problem = int4_problem(n, k, group_size, float_scales, zero_points);
    return packed_bytes(usable_kernel(select_grouped_kernel, problem, kernel), problem);
}

std::string kernel_table_int8(int64_t n, int64_t k) { return table_of(kernels(), int8_problem(n, k)); }

std::string kernel_table_int4(int64_t n, int64_t k, int64_t group_size, bool float_scales, bool zero_points) {
    return table_of(grouped_kernels(), int4_problem(n, k, group_size, float_scales, zero_points));
}

// JSON: {n, k, kernel, packing_format}; for 4-bit groups {group_size, scale_dtype, zero_points} as well.
std::string packed_weight_info(const Tensor& packed_weight) {
    if (opened(packed_weight, read_header).scheme == static_cast<int32_t>(Scheme::kInt4Grouped)) {
        const PackedGroupedWeight weight = opened(packed_weight, open_packed_grouped_weight);
        const GroupedProblem& problem = weight.problem;
        return "{" + info_of(problem.n, problem.k, weight.kernel->id, weight.kernel->packing_format(problem)) +
               ", \"group_size\": " + std::to_string(problem.group) +
               ", \"scale_dtype\": " + quoted(problem.scale_type == DType::kFloat32 ? "float32" : "bfloat16") +
               ", \"zero_points\": " + (problem.zero_points ? "true" : "false") + "}";
    }
    const PackedWeight weight = opened(packed_weight, open_packed_weight);
    return "{" + info_of(weight.n, weight.k, weight.kernel->id, weight.kernel->packing_format(weight.n, weight.k)) +
           "}";
}

// JSON: {model, features, build}.
std::string system_info() {
    return "{\"model\": " + quoted(cpu_features().model) +
           ", \"features\": " + quoted(feature_names(cpu_features().bits)) +
           ", \"build\": " + quoted(build_information()) + "}";
}

}  // namespace ao_arm
