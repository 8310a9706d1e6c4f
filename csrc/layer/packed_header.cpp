#include "layer/packed_header.h"

#include <cstddef>
#include <cstring>

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

template <size_t kSize>
bool set_name(char (&field)[kSize], const std::string& name) {
    if (name.size() >= kSize) return false;  // a zero byte ends it
    std::memcpy(field, name.data(), name.size());
    return true;
}

template <size_t kSize>
bool has_end(const char (&field)[kSize]) {
    return std::memchr(field, 0, kSize) != nullptr;
}

}  // namespace

const char* const kRepack =
    "Pack the weight again on this machine: load the checkpoint (state_dict files hold plain int8 values and are "
    "packed when loaded), or quantize the model here.";

bool begin_header(const Problem& problem, const std::string& kernel, const std::string& format, PackedHeader* header) {
    *header = {};
    std::memcpy(header->magic, kMagic, sizeof kMagic);
    header->version = kPackedVersion;
    header->scheme = static_cast<int32_t>(problem.scheme);
    header->n = problem.n;
    header->k = problem.k;
    if (problem.scheme == Scheme::kInt4) {
        header->group = problem.group;
        header->scale_type = static_cast<int32_t>(problem.scale_type);
        header->zero_points = problem.zero_points ? 1 : 0;
    }
    header->full_range = problem.full_range ? 1 : 0;
    return set_name(header->kernel, kernel) && set_name(header->packing_format, format);
}

void complete_header(int64_t panel_columns, int64_t total_bytes, PackedHeader* header) {
    header->panel_columns = panel_columns;
    header->total_bytes = total_bytes;
    header->checksum = checksum_of(*header);
}

Problem problem_of(const PackedHeader& header) {
    return {static_cast<Scheme>(header.scheme),
            header.n,
            header.k,
            header.group,
            static_cast<DType>(header.scale_type),
            header.zero_points != 0,
            header.full_range != 0};
}

std::string packed_by(const PackedHeader& header) {
    return std::string("this weight was packed by the kernel ") + header.kernel;
}

std::string read_header(const uint8_t* bytes, int64_t size, PackedHeader* header) {
    if (size < static_cast<int64_t>(sizeof *header))
        return "these " + std::to_string(size) + " bytes are no packed weight: its header alone takes 256. " + kRepack;
    std::memcpy(header, bytes, sizeof *header);
    if (std::memcmp(header->magic, kMagic, sizeof kMagic) != 0)
        return std::string("these bytes are no packed weight: they do not begin with its mark. ") + kRepack;
    if (header->version == __builtin_bswap32(kPackedVersion))
        return std::string("this packed weight was made on a machine of the other byte order. ") + kRepack;
    if (header->version != kPackedVersion)
        return "this packed weight has version " + std::to_string(header->version) +
               " of the packing; this ao_arm reads version " + std::to_string(kPackedVersion) + ". " + kRepack;
    if (header->checksum != checksum_of(*header))
        return std::string("the header of this packed weight is damaged: its checksum does not match. ") + kRepack;
    if (!has_end(header->kernel) || !has_end(header->packing_format))
        return std::string("the header of this packed weight is damaged: a name in it has no end. ") + kRepack;
    if (header->total_bytes != size)
        return "this packed weight should have " + std::to_string(header->total_bytes) + " bytes but has " +
               std::to_string(size) + ". " + kRepack;
    return "";
}

}  // namespace ao_arm
