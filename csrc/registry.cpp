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

std::vector<std::string> reject_reasons(const Kernel& kernel, const Problem& problem) {
    std::vector<std::string> reasons = missing_features(kernel);
    if (problem.scheme != Scheme::kInt8) reasons.push_back("it serves int8 weights only");
    check_sizes(problem.n, problem.k, reasons);
    kernel.reject_reasons(problem, reasons);
    return reasons;
}

const Kernel* select_kernel(const Problem& problem, const std::string& forced, std::string* error) {
    const std::string layer = "a layer with n = " + std::to_string(problem.n) + " and k = " + std::to_string(problem.k);
    return choose_kernel(kernels(), problem, layer, forced, error);
}

}  // namespace ao_arm
