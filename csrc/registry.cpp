#include "registry.h"

namespace ao_arm {

const std::vector<const Kernel*>& kernels() {
    static const std::vector<const Kernel*> table = {
        &kAclKernel, &kPortableI8mm, &kPortableDotprod, &kPortableAvx512Vnni, &kPortableAvx2, &kPortableBaseline,
    };
    return table;
}

const Kernel* find_kernel(const std::string& id) {
    for (const Kernel* kernel : kernels())
        if (id == kernel->id) return kernel;
    return nullptr;
}

std::vector<std::string> reject_reasons(const Kernel& kernel, const Problem& problem) {
    std::vector<std::string> reasons;
    if (kernel.gemm != nullptr) {  // one that is not built in says why itself
        for (const std::string& name : feature_names(kernel.features & ~cpu_features().bits))
            reasons.push_back("this CPU has no " + name);
    }
    if (problem.scheme != Scheme::kInt8Dynamic) reasons.push_back("it serves no other scheme than int8_dynamic");
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
    if (!forced.empty()) {
        const Kernel* kernel = find_kernel(forced);
        if (kernel == nullptr) {
            std::vector<std::string> ids;
            for (const Kernel* known : kernels()) ids.emplace_back(known->id);
            *error = "AO_ARM_KERNEL names an unknown kernel '" + forced + "'. Known are: " + join(ids) +
                     ". Unset it to let ao_arm choose.";
            return nullptr;
        }
        const std::vector<std::string> reasons = reject_reasons(*kernel, problem);
        if (reasons.empty()) return kernel;
        *error = "AO_ARM_KERNEL forces the kernel " + forced +
                 ", which cannot serve a layer with n = " + std::to_string(problem.n) +
                 " and k = " + std::to_string(problem.k) + " here: " + join(reasons) +
                 ". Unset it to let ao_arm choose.";
        return nullptr;
    }
    const Kernel* best = nullptr;
    double best_cost = 0;
    std::vector<std::string> rejected;
    for (const Kernel* kernel : kernels()) {
        const std::vector<std::string> reasons = reject_reasons(*kernel, problem);
        if (!reasons.empty()) {
            rejected.push_back(std::string(kernel->id) + ": " + join(reasons));
            continue;
        }
        const double cost = kernel->cost(problem, cpu_features());
        if (best == nullptr || cost < best_cost) best = kernel, best_cost = cost;
    }
    if (best == nullptr)
        *error = "no kernel can serve a layer with n = " + std::to_string(problem.n) +
                 " and k = " + std::to_string(problem.k) + ". " + join(rejected) +
                 ". Leave this layer out with quantize_'s filter_fn.";
    return best;
}

std::string join(const std::vector<std::string>& parts) {
    std::string all;
    for (const std::string& part : parts) all += (all.empty() ? "" : "; ") + part;
    return all;
}

}  // namespace ao_arm
