#include "layer/kernel_table.h"

#include <cmath>
#include <iterator>

#include "kernel_files.h"
#include "layer/trial.h"

namespace ao_arm {

#define AO_ARM_DECLARE(file) std::vector<const Kernel*> file();
AO_ARM_KERNEL_FILES(AO_ARM_DECLARE)

namespace {

std::vector<const Kernel*> entries_of(Scheme scheme) {
    std::vector<const Kernel*> table;
#define AO_ARM_ENTRIES(file) file(),
    for (const std::vector<const Kernel*>& entries : {AO_ARM_KERNEL_FILES(AO_ARM_ENTRIES)})
        for (const Kernel* kernel : entries)
            if (kernel->scheme == scheme) table.push_back(kernel);
    return table;
}

const Kernel* forced_kernel(const Problem& problem, const std::string& id, std::string* error) {
    const Kernel* kernel = find_kernel(problem.scheme, id);
    if (kernel == nullptr) {
        std::vector<std::string> ids;
        for (const Kernel* known : kernels(problem.scheme)) ids.emplace_back(known->id);
        const bool int4 = problem.scheme == Scheme::kInt4;
        if (find_kernel(int4 ? Scheme::kInt8 : Scheme::kInt4, id) != nullptr)
            *error = "AO_ARM_KERNEL names '" + id + "', a kernel for " + (int4 ? "int8" : "4-bit") +
                     " weights alone, and this layer has " + (int4 ? "4-bit" : "int8") +
                     " ones. Name one for each, separated by a comma; for these there are: " + join(ids) +
                     ". Unset it to let ao_arm choose.";
        else
            *error = "AO_ARM_KERNEL names an unknown kernel '" + id + "'. Known are: " + join(ids) +
                     ". Unset it to let ao_arm choose.";
        return nullptr;
    }
    const std::vector<std::string> reasons = reject_reasons(*kernel, problem);
    if (reasons.empty()) return kernel;
    *error = "AO_ARM_KERNEL forces the kernel " + id + ", which cannot serve " + described(problem) +
             " here: " + join(reasons) + ". Unset it to let ao_arm choose.";
    return nullptr;
}

}  // namespace

const std::vector<const Kernel*>& kernels(Scheme scheme) {
    static const std::vector<const Kernel*> int8 = entries_of(Scheme::kInt8), int4 = entries_of(Scheme::kInt4);
    return scheme == Scheme::kInt4 ? int4 : int8;
}

const Kernel* find_kernel(Scheme scheme, const std::string& id) {
    for (const Kernel* kernel : kernels(scheme))
        if (id == kernel->id) return kernel;
    return nullptr;
}

std::vector<std::string> reject_reasons(const Kernel& kernel, const Problem& problem) {
    std::vector<std::string> reasons;
    // One that is not in this build says why itself.
    if (kernel.multiply != nullptr)
        for (const std::string& name : feature_names(kernel.features & ~cpu_features().bits))
            reasons.push_back("this CPU has no " + name);
    if (kernel.scheme != problem.scheme)
        reasons.push_back(kernel.scheme == Scheme::kInt8 ? "it serves int8 weights only"
                                                         : "it serves 4-bit weights only");
    // The sizes first: what is too large must not keep a library busy before it is refused.
    const std::vector<std::string> general = reasons_against(problem);
    reasons.insert(reasons.end(), general.begin(), general.end());
    if (general.empty()) kernel.reject_reasons(problem, reasons);
    if (reasons.empty() && kernel.trial != nullptr && !passes_trial(kernel))
        reasons.push_back(std::string("this copy of ") + kernel.library + " failed the self-check");
    return reasons;
}

double typical_cost(const Kernel& kernel, const Problem& problem) {
    if (kernel.cost == nullptr || !reasons_against(problem).empty()) return -1;
    double product = 1;
    for (const int64_t m : kTypicalRows) product *= kernel.cost(problem, m, cpu_features());
    return std::pow(product, 1.0 / static_cast<double>(std::size(kTypicalRows)));
}

const Kernel* select_kernel(const Problem& problem, const std::string& forced, std::string* error) {
    if (!forced.empty()) return forced_kernel(problem, forced, error);
    const std::vector<std::string> general = reasons_against(problem);
    const Kernel* best = nullptr;
    double best_cost = 0;
    std::vector<std::string> rejected;
    for (const Kernel* kernel : kernels(problem.scheme)) {
        const std::vector<std::string> reasons = reject_reasons(*kernel, problem);
        if (!reasons.empty()) {
            rejected.push_back(std::string(kernel->id) + ": " + join(reasons));
            continue;
        }
        const double cost = typical_cost(*kernel, problem);
        if (best == nullptr || cost < best_cost) best = kernel, best_cost = cost;
    }
    if (best == nullptr) {
        *error = "no kernel can serve " + described(problem);
        *error += general.empty() ? ". " + join(rejected) + ". Leave this layer out with quantize_'s filter_fn."
                                  : ": " + join(general) + ". Leave this layer out with quantize_'s filter_fn.";
    }
    return best;
}

}  // namespace ao_arm
