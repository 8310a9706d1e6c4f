#include "packed_weight.h"

#include <cstring>

#include "registry.h"

namespace ao_arm {
namespace {

// Whether an intact header's kernel can serve here. Returns an error message, empty on success.
std::string check_usable(const PackedHeader& header, PackedWeight* weight) {
    if (header.scheme == static_cast<int32_t>(Scheme::kInt4Grouped))
        return packed_by(header) + " for 4-bit groups, but this op takes int8 weights.";
    const Kernel* kernel = nullptr;
    const auto format_of = [&](const Kernel& packer) { return packer.packing_format(header.n, header.k); };
    const Problem problem{static_cast<Scheme>(header.scheme), header.n, header.k};
    const std::string unusable = find_packer(header, kernels(), problem, format_of, &kernel);
    if (!unusable.empty()) return unusable;
    *weight = {kernel, header.n, header.k, nullptr};
    return check_arrangement(header, kPanelColumns, weight->total_bytes());
}

}  // namespace

int64_t packed_bytes(const Kernel& kernel, int64_t n, int64_t k) {
    return PackedWeight{&kernel, n, k, nullptr}.total_bytes();
}

std::string pack_weight(const Kernel& kernel, int64_t n, int64_t k, const int8_t* values, uint8_t* bytes) {
    for (int64_t i = 0; i < n * k; ++i)
        if (values[i] == -128) return "qdata must lie in [-127, 127], but holds -128";
    const std::string format = kernel.packing_format(n, k);
    PackedHeader header = {};
    if (format.empty() || format.size() >= sizeof header.packing_format)
        return std::string("kernel ") + kernel.id + " cannot pack a weight of this shape";
    const PackedWeight weight{&kernel, n, k, bytes};
    std::memset(bytes, 0, weight.total_bytes());
    header.scheme = static_cast<int32_t>(Scheme::kInt8);
    header.n = n;
    header.k = k;
    header.panel_columns = kPanelColumns;
    header.total_bytes = weight.total_bytes();
    complete_header(kernel.id, format, &header);
    std::memcpy(bytes, &header, sizeof header);

    for (int64_t j = 0; j < n; ++j) {
        int32_t sum = 0;
        for (int64_t l = 0; l < k; ++l) sum += values[j * k + l];
        std::memcpy(bytes + weight.column_sums_offset() + j * 4, &sum, sizeof sum);
    }
    for (int64_t panel = 0; panel < weight.panels(); ++panel) {
        if (!kernel.pack(values + panel * kPanelColumns * k, weight.columns_of(panel), k,
                         bytes + weight.panel_offset(panel)))
            return std::string("kernel ") + kernel.id + " failed to pack the weight";
    }
    return "";
}

std::string unpack_weight(const PackedWeight& weight, int8_t* values) {
    for (int64_t panel = 0; panel < weight.panels(); ++panel) {
        if (!weight.kernel->unpack(weight.base + weight.panel_offset(panel), weight.columns_of(panel), weight.k,
                                   values + panel * kPanelColumns * weight.k))
            return std::string("kernel ") + weight.kernel->id + " failed to unpack the weight";
    }
    return "";
}

std::string open_packed_weight(const uint8_t* bytes, int64_t size, PackedWeight* weight) {
    const std::string error = open_header(bytes, size, check_usable, weight);
    weight->base = bytes;
    return error;
}

}  // namespace ao_arm
