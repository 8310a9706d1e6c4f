#include "kernel_choice.h"

#include "problem.h"

namespace ao_arm {

std::string join(const std::vector<std::string>& parts) {
    std::string all;
    for (const std::string& part : parts) all += (all.empty() ? "" : "; ") + part;
    return all;
}

void check_sizes(int64_t n, int64_t k, std::vector<std::string>& reasons) {
    if (n < 1 || k < 1)
        reasons.push_back("n and k must be at least 1, not " + std::to_string(n) + " and " + std::to_string(k));
    if (k > kMaxK)
        reasons.push_back("with k = " + std::to_string(k) + " a sum of products may not fit in int32 (k may be " +
                          std::to_string(kMaxK) + " at most)");
}

}  // namespace ao_arm
