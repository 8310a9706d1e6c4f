#include "packed_weight.h"

#include <cstddef>
#include <cstring>

#include "registry.h"

namespace ao_arm {
namespace {

constexpr char kMagic[8] = "AOARMPW";

uint64_t checksum_of(const PackedHeader& header) {
    constexpr int kWords = offsetof(PackedHeader, checksum) / sizeof(uint64_t);
    uint64_t words[kWords];
    std::memcpy(words, &header, sizeof words);
    uint64_t sum = 0xCBF29CE484222325u;
    for (const uint64_t word : words) sum = (sum ^ word) * 0x9E3779B97F4A7C15u, sum ^= sum >> 32;
    return sum;
}

// A header that passed check_usable, by its checksum.
struct Checked {
    uint64_t checksum = 0;
    const Kernel* kernel = nullptr;
};

template <size_t kSize>
void set_name(char (&field)[kSize], const std::string& name) {
    std::memcpy(field, name.data(), name.size());
}

// Whether an intact header's kernel can serve here. Returns an error message, empty on success.
std::string check_usable(const PackedHeader& header, const Kernel** kernel) {
    const std::string packed_by = std::string("this weight was packed by the kernel ") + header.kernel;
    if (header.scheme == static_cast<int32_t>(Scheme::kInt4Grouped))
        return packed_by + " for 4-bit groups, but this op takes int8 weights.";
    *kernel = find_kernel(header.kernel);
    if (*kernel == nullptr) return packed_by + ", which this ao_arm does not have. " + kRepack;
    const Problem problem{static_cast<Scheme>(header.scheme), header.n, header.k};
    const std::vector<std::string> reasons = reject_reasons(**kernel, problem);
    if (!reasons.empty()) return packed_by + ", which cannot run here: " + join(reasons) + ". " + kRepack;
    const std::string format = (*kernel)->packing_format(header.n, header.k);
    if (format != header.packing_format)
        return packed_by + " for " + header.packing_format + "; on this CPU it needs " + format + ". " + kRepack;
    const PackedWeight weight{*kernel, header.n, header.k, nullptr};
    if (header.panel_columns != kPanelColumns || weight.total_bytes() != header.total_bytes)
        return packed_by + " in another arrangement than this ao_arm reads. " + kRepack;
    return "";
}

}  // namespace

const char* const kRepack =
    "Pack the weight again on this machine: load the checkpoint (state_dict files hold plain int8 values and are "
    "packed when loaded), or quantize the model here.";

void complete_header(const std::string& kernel, const std::string& format, PackedHeader* header) {
    std::memcpy(header->magic, kMagic, sizeof kMagic);
    header->version = kPackedVersion;
    set_name(header->kernel, kernel);
    set_name(header->packing_format, format);
    header->checksum = checksum_of(*header);
}

std::string read_header(const uint8_t* bytes, int64_t size, PackedHeader* header) {
    if (size < static_cast<int64_t>(sizeof *header))
        return "these " + std::to_string(size) + " bytes are no packed weight: its header alone takes 256. " + kRepack;
    std::memcpy(header, bytes, sizeof *header);
    if (std::memcmp(header->magic, kMagic, sizeof kMagic) != 0)
        return std::string("these bytes are no packed weight: they do not begin with its mark. ") + kRepack;
    if (header->version != kPackedVersion)
        return "this packed weight has version " + std::to_string(header->version) +
               " of the packing; this ao_arm reads version " + std::to_string(kPackedVersion) + ". " + kRepack;
    if (header->checksum != checksum_of(*header))
        return std::string("the header of this packed weight is damaged: its checksum does not match. ") + kRepack;
    if (header->total_bytes != size)
        return "this packed weight should have " + std::to_string(header->total_bytes) + " bytes but has " +
               std::to_string(size) + ". " + kRepack;
    return "";
}

int64_t packed_bytes(const Kernel& kernel, int64_t n, int64_t k) {
    return PackedWeight{&kernel, n, k, nullptr}.total_bytes();
}

std::string pack_weight(const Kernel& kernel, int64_t n, int64_t k, const int8_t* values, uint8_t* bytes) {
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
    PackedHeader header;
    const std::string error = read_header(bytes, size, &header);
    if (!error.empty()) return error;
    // Equal checksums mean equal headers, and what was found out about one holds for the other. This keeps the rest
    // of the checks out of each call.
    static thread_local Checked recent[16];
    Checked& slot = recent[header.checksum % 16];
    if (slot.kernel == nullptr || slot.checksum != header.checksum) {
        const Kernel* kernel = nullptr;
        const std::string unusable = check_usable(header, &kernel);
        if (!unusable.empty()) return unusable;
        slot = {header.checksum, kernel};
    }
    *weight = {slot.kernel, header.n, header.k, bytes};
    return "";
}

}  // namespace ao_arm
