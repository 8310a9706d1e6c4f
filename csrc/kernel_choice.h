// How a kernel is chosen from a table: the same for every kind of kernel.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cpu_features.h"

namespace ao_arm {

std::string join(const std::vector<std::string>& parts);  // "a; b; c"

// Appends why no kernel can serve a weight of shape (n, k).
void check_sizes(int64_t n, int64_t k, std::vector<std::string>& reasons);

// A table: the rows of the files that CMakeLists.txt lists, in that order. Each file defines a function of its own name
// that gives its rows, and kernel_files.h, which CMake writes, names them all.
template <class Kernel>
std::vector<const Kernel*> all_rows(const std::vector<std::vector<const Kernel*>>& files) {
    std::vector<const Kernel*> table;
    for (const std::vector<const Kernel*>& rows : files) table.insert(table.end(), rows.begin(), rows.end());
    return table;
}

template <class Kernel>
const Kernel* find_in(const std::vector<const Kernel*>& table, const std::string& id) {
    for (const Kernel* kernel : table)
        if (id == kernel->id) return kernel;
    return nullptr;
}

// Reasons that hold for any problem: what this CPU lacks. A kernel that is not built in says why itself.
template <class Kernel>
std::vector<std::string> missing_features(const Kernel& kernel) {
    std::vector<std::string> reasons;
    if (kernel.gemm != nullptr)
        for (const std::string& name : feature_names(kernel.features & ~cpu_features().bits))
            reasons.push_back("this CPU has no " + name);
    return reasons;
}

// The cheapest kernel that serves the problem, or the one named `forced` (empty for none). Null, with *error saying
// why and what can be done. `layer` describes the problem; reject_reasons(kernel, problem) is found by its arguments.
template <class Kernel, class Problem>
const Kernel* choose_kernel(const std::vector<const Kernel*>& table, const Problem& problem, const std::string& layer,
                            const std::string& forced, std::string* error) {
    if (!forced.empty()) {
        const Kernel* kernel = find_in(table, forced);
        if (kernel == nullptr) {
            std::vector<std::string> ids;
            for (const Kernel* known : table) ids.emplace_back(known->id);
            *error = "AO_ARM_KERNEL names an unknown kernel '" + forced + "'. Known are: " + join(ids) +
                     ". Unset it to let ao_arm choose.";
            return nullptr;
        }
        const std::vector<std::string> reasons = reject_reasons(*kernel, problem);
        if (reasons.empty()) return kernel;
        *error = "AO_ARM_KERNEL forces the kernel " + forced + ", which cannot serve " + layer +
                 " here: " + join(reasons) + ". Unset it to let ao_arm choose.";
        return nullptr;
    }
    const Kernel* best = nullptr;
    double best_cost = 0;
    std::vector<std::string> rejected;
    for (const Kernel* kernel : table) {
        const std::vector<std::string> reasons = reject_reasons(*kernel, problem);
        if (!reasons.empty()) {
            rejected.push_back(std::string(kernel->id) + ": " + join(reasons));
            continue;
        }
        const double cost = kernel->cost(problem, cpu_features());
        if (best == nullptr || cost < best_cost) best = kernel, best_cost = cost;
    }
    if (best == nullptr)
        *error = "no kernel can serve " + layer + ". " + join(rejected) +
                 ". Leave this layer out with quantize_'s filter_fn.";
    return best;
}

}  // namespace ao_arm
