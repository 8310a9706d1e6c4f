#include "core/problem.h"

#include <algorithm>

namespace ao_arm {
namespace {

// The group sizes that would do for k, nearest to the wanted one first.
std::string nearest_groups(int64_t k, int64_t wanted) {
    std::vector<int64_t> fitting = {k};
    for (int64_t group = kGroupStep; group < k; group += kGroupStep)
        if (k % group == 0) fitting.push_back(group);
    const auto distance = [&](int64_t group) { return std::abs(group - std::clamp<int64_t>(wanted, 0, 2 * kMaxK)); };
    std::sort(fitting.begin(), fitting.end(), [&](int64_t a, int64_t b) { return distance(a) < distance(b); });
    std::vector<std::string> names;
    for (size_t i = 0; i < std::min<size_t>(fitting.size(), 3); ++i)
        names.push_back(std::to_string(fitting[i]) + (fitting[i] == k ? " (whole rows)" : ""));
    return join(names);
}

std::vector<std::string> reasons_against_groups(const Problem& problem) {
    std::vector<std::string> reasons;
    const int64_t k = problem.k, group = problem.group;
    if (group < 1 || k % group != 0)
        reasons.push_back("k = " + std::to_string(k) + " is no multiple of the group size " + std::to_string(group) +
                          "; group sizes that fit: " + nearest_groups(k, group));
    else if (group != k && group % kGroupStep != 0)
        reasons.push_back("the group size " + std::to_string(group) + " is neither a multiple of " +
                          std::to_string(kGroupStep) + " nor k = " + std::to_string(k) +
                          "; group sizes that fit: " + nearest_groups(k, group));
    if (problem.scale_type != DType::kFloat32 && problem.scale_type != DType::kBFloat16)
        reasons.push_back("scales must be bfloat16 or float32");
    return reasons;
}

}  // namespace

std::vector<std::string> reasons_against(const Problem& problem) {
    std::vector<std::string> reasons;
    const int64_t n = problem.n, k = problem.k;
    if (n < 1 || k < 1)
        reasons.push_back("n and k must be at least 1, not " + std::to_string(n) + " and " + std::to_string(k));
    if (n > kMaxN)
        reasons.push_back("n = " + std::to_string(n) + " is too large (it may be " + std::to_string(kMaxN) +
                          " at most)");
    const int64_t most_k = problem.full_range ? kMaxKOfFullRange : kMaxK;
    if (k > most_k)
        reasons.push_back("with k = " + std::to_string(k) + " a sum of products may not fit in int32 (k may be " +
                          std::to_string(most_k) + " at most" +
                          (problem.full_range ? ", as the weight holds -128)" : ")"));
    return reasons.empty() && problem.scheme == Scheme::kInt4 ? reasons_against_groups(problem) : reasons;
}

std::string described(const Problem& problem) {
    const std::string n = std::to_string(problem.n), k = std::to_string(problem.k);
    if (problem.scheme == Scheme::kInt8)
        return "a layer with n = " + n +
               (problem.full_range ? ", k = " + k + " and a weight that holds -128" : " and k = " + k);
    return "a 4-bit layer with n = " + n + ", k = " + k + " and groups of " + std::to_string(problem.group);
}

std::string join(const std::vector<std::string>& parts) {
    std::string all;
    for (const std::string& part : parts) all += (all.empty() ? "" : "; ") + part;
    return all;
}

}  // namespace ao_arm
