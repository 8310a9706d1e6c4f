#include "registry.h"

#include "kernel_files.h"

namespace ao_arm {

#define AO_ARM_DECLARE(file) std::vector<const Kernel*> file();
AO_ARM_INT8_KERNEL_FILES(AO_ARM_DECLARE)

const std::vector<const Kernel*>& kernels() {
#define AO_ARM_ROWS(file) file(),
    static const std::vector<const Kernel*> table = all_rows<Kernel>({AO_ARM_INT8_KERNEL_FILES(AO_ARM_ROWS)});
    return table;
}

const Kernel* find_kernel(const std::string& id) { return find_in(kernels(), id); }

std::vector<std::string> reject_reasons(const Kernel& kernel, const Problem& problem) {
    std::vector<std::string> reasons = missing_features(kernel);
    if (problem.scheme != Scheme::kInt8) reasons.push_back("it serves int8 weights only");
    if (problem.n < 1 || problem.k < 1)
        reasons.push_back("n and k must be at least 1, not " + std::to_string(problem.n) + " and " +
                          std::to_string(problem.k));
    if (problem.k > kMaxK)
        reasons.push_back("with k = " + std::to_string(problem.k) +
                          " a sum of int8 products may not fit in int32 (k may be " + std::to_string(kMaxK) +
                          " at most)");
    kernel.reject_reasons(problem, reasons);
    return reasons;
}

const Kernel* select_kernel(const Problem& problem, const std::string& forced, std::string* error) {
    const std::string layer = "a layer with n = " + std::to_string(problem.n) + " and k = " + std::to_string(problem.k);
    return choose_kernel(kernels(), problem, layer, forced, error);
}

std::string join(const std::vector<std::string>& parts) {
    std::string all;
    for (const std::string& part : parts) all += (all.empty() ? "" : "; ") + part;
    return all;
}

}  // namespace ao_arm
