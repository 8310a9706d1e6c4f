#include "packed_grouped_weight.h"

#include <cstring>

#include "element_types.h"
#include "grouped_registry.h"

namespace ao_arm {
namespace {

PackedGroupedWeight plan(const GroupedKernel& kernel, const GroupedProblem& problem, const uint8_t* base) {
    return {&kernel, problem, base, kernel.block_bytes(problem)};
}

float scale_at(const GroupedProblem& problem, const GroupedValues& values, int64_t index) {
    return problem.scale_type == DType::kFloat32 ? static_cast<const float*>(values.scale)[index]
                                                 : BFloat16::load(static_cast<const uint16_t*>(values.scale)[index]);
}

// Whether an intact header's kernel can serve here. Returns an error message, empty on success.
std::string check_usable(const PackedHeader& header, PackedGroupedWeight* weight) {
    if (header.scheme != static_cast<int32_t>(Scheme::kInt4Grouped))
        return packed_by(header) + " for int8, but this op takes 4-bit weights in groups.";
    const GroupedKernel* kernel = nullptr;
    const GroupedProblem problem{header.n, header.k, header.group, static_cast<DType>(header.scale_type),
                                 header.zero_points != 0};
    const auto format_of = [&](const GroupedKernel& packer) { return packer.packing_format(problem); };
    const std::string unusable = find_packer(header, grouped_kernels(), problem, format_of, &kernel);
    if (!unusable.empty()) return unusable;
    *weight = plan(*kernel, problem, nullptr);
    return check_arrangement(header, kernel->column_step, weight->total_bytes());
}

}  // namespace

int64_t packed_bytes(const GroupedKernel& kernel, const GroupedProblem& problem) {
    return plan(kernel, problem, nullptr).total_bytes();
}

std::string pack_grouped_weight(const GroupedKernel& kernel, const GroupedProblem& problem, const GroupedValues& values,
                                uint8_t* bytes) {
    const int64_t n = problem.n, k = problem.k, group = problem.group;
    for (int64_t i = 0; i < n * k; ++i)
        if (values.q[i] < -8 || values.q[i] > 7)
            return "qdata must lie in [-8, 7], but holds " + std::to_string(values.q[i]);
    for (int64_t i = 0; values.zero_point != nullptr && i < n * problem.groups(); ++i)
        if (values.zero_point[i] < -8 || values.zero_point[i] > 7)
            return "zero_point must lie in [-8, 7], but holds " + std::to_string(values.zero_point[i]);

    const PackedGroupedWeight weight = plan(kernel, problem, bytes);
    std::memset(bytes, 0, weight.total_bytes());
    PackedHeader header = {};
    header.scheme = static_cast<int32_t>(Scheme::kInt4Grouped);
    header.n = n;
    header.k = k;
    header.panel_columns = kernel.column_step;
    header.total_bytes = weight.total_bytes();
    header.group = group;
    header.scale_type = static_cast<int32_t>(problem.scale_type);
    header.zero_points = problem.zero_points ? 1 : 0;
    complete_header(kernel.id, kernel.packing_format(problem), &header);
    std::memcpy(bytes, &header, sizeof header);

    for (int64_t j = 0; j < n; ++j) {
        float sum = 0;
        for (int64_t g = 0; g < problem.groups(); ++g) {
            const int64_t index = j * problem.groups() + g;
            const int32_t zero_point = values.zero_point == nullptr ? 0 : values.zero_point[index];
            int32_t of_group = -zero_point * static_cast<int32_t>(group);
            for (int64_t l = 0; l < group; ++l) of_group += values.q[j * k + g * group + l];
            sum += scale_at(problem, values, index) * static_cast<float>(of_group);
        }
        std::memcpy(bytes + weight.column_sums_offset() + j * 4, &sum, sizeof sum);
    }
    for (int64_t block = 0; block < weight.blocks(); ++block)
        kernel.pack(problem, values, block * kernel.column_step, bytes + weight.block_offset(block));
    return "";
}

void unpack_grouped_weight(const PackedGroupedWeight& weight, const GroupedValues& values) {
    for (int64_t block = 0; block < weight.blocks(); ++block)
        weight.kernel->unpack(weight.problem, weight.base + weight.block_offset(block),
                              block * weight.kernel->column_step, values);
}

std::string open_packed_grouped_weight(const uint8_t* bytes, int64_t size, PackedGroupedWeight* weight) {
    const std::string error = open_header(bytes, size, check_usable, weight);
    weight->base = bytes;
    return error;
}

}  // namespace ao_arm
