#include "grouped_registry.h"

#include <algorithm>

#include "kernel_files.h"

namespace ao_arm {

#define AO_ARM_DECLARE(file) std::vector<const GroupedKernel*> file();
AO_ARM_GROUPED_KERNEL_FILES(AO_ARM_DECLARE)

namespace {

// The group sizes that would do for k, nearest to the wanted one first.
std::string nearest_groups(int64_t k, int64_t wanted) {
    std::vector<int64_t> fitting = {k};
    for (int64_t group = kGroupedStep; group < k; group += kGroupedStep)
        if (k % group == 0) fitting.push_back(group);
    const auto distance = [&](int64_t group) { return group < wanted ? wanted - group : group - wanted; };
    std::sort(fitting.begin(), fitting.end(), [&](int64_t a, int64_t b) { return distance(a) < distance(b); });
    std::vector<std::string> names;
    for (size_t i = 0; i < std::min<size_t>(fitting.size(), 3); ++i)
        names.push_back(std::to_string(fitting[i]) + (fitting[i] == k ? " (whole rows)" : ""));
    return join(names);
}

// Why no kernel can serve the problem.
std::vector<std::string> general_reasons(const GroupedProblem& problem) {
    std::vector<std::string> reasons;
    const int64_t n = problem.n, k = problem.k, group = problem.group;
    check_sizes(n, k, reasons);
    if (n < 1 || k < 1) return reasons;
    if (group < 1 || k % group != 0)
        reasons.push_back("k = " + std::to_string(k) + " is no multiple of the group size " + std::to_string(group) +
                          "; group sizes that fit: " + nearest_groups(k, group));
    else if (group != k && group % kGroupedStep != 0)
        reasons.push_back("the group size " + std::to_string(group) + " is neither a multiple of " +
                          std::to_string(kGroupedStep) + " nor k = " + std::to_string(k) +
                          "; group sizes that fit: " + nearest_groups(k, group));
    if (problem.scale_type == DType::kFloat16) reasons.push_back("scales must be bfloat16 or float32, not float16");
    return reasons;
}

}  // namespace

const std::vector<const GroupedKernel*>& grouped_kernels() {
#define AO_ARM_ROWS(file) file(),
    static const std::vector<const GroupedKernel*> table =
        all_rows<GroupedKernel>({AO_ARM_GROUPED_KERNEL_FILES(AO_ARM_ROWS)});
    return table;
}

std::vector<std::string> reject_reasons(const GroupedKernel& kernel, const GroupedProblem& problem) {
    std::vector<std::string> reasons = missing_features(kernel);
    const std::vector<std::string> general = general_reasons(problem);
    reasons.insert(reasons.end(), general.begin(), general.end());
    if (general.empty()) kernel.reject_reasons(problem, reasons);
    return reasons;
}

const GroupedKernel* select_grouped_kernel(const GroupedProblem& problem, const std::string& forced,
                                           std::string* error) {
    const std::string layer = "a 4-bit layer with n = " + std::to_string(problem.n) +
                              ", k = " + std::to_string(problem.k) + " and groups of " + std::to_string(problem.group);
    const std::vector<std::string> general = general_reasons(problem);
    if (!general.empty()) {
        *error = "no kernel can serve " + layer + ": " + join(general);
        return nullptr;
    }
    return choose_kernel(grouped_kernels(), problem, layer, forced, error);
}

}  // namespace ao_arm
