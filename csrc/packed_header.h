// The header of packed weights of every kind: what they are, which kernel packed them, and a checksum.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernel_choice.h"

namespace ao_arm {

struct PackedHeader {
    char magic[8];     // "AOARMPW" and a zero byte
    uint32_t version;  // kPackedVersion
    int32_t scheme;    // Scheme
    int64_t n;
    int64_t k;
    int64_t panel_columns;
    int64_t total_bytes;
    char kernel[32];          // Kernel::id, zero-padded
    char packing_format[96];  // Kernel::packing_format, zero-padded
    int64_t group;            // the rest is of grouped weights (packed_grouped_weight.h) and else zero
    int32_t scale_type;       // DType
    int32_t zero_points;      // 1 if there are some
    uint8_t reserved[56];     // zero
    uint64_t checksum;        // of all bytes before it
};
static_assert(sizeof(PackedHeader) == 256, "the header is part of the format");

constexpr uint32_t kPackedVersion = 1;

// Puts in the mark, the version, names and, last, the checksum. `format` must be shorter than its field.
void complete_header(const std::string& kernel, const std::string& format, PackedHeader* header);

// Reads a header from `size` bytes and checks that it is whole: mark, version, checksum, total_bytes. Returns an error
// message that says what to do, empty on success.
std::string read_header(const uint8_t* bytes, int64_t size, PackedHeader* header);

// What to do with packed bytes that cannot be used here.
extern const char* const kRepack;

// "this weight was packed by the kernel ..."
std::string packed_by(const PackedHeader& header);

// Finds the kernel that packed the weight, in a table of kernels for such problems; format_of(kernel) names the
// arrangement that it would choose here. Returns an error message, empty on success.
template <class Kernel, class Problem, class FormatOf>
std::string find_packer(const PackedHeader& header, const std::vector<const Kernel*>& table, const Problem& problem,
                        const FormatOf& format_of, const Kernel** kernel) {
    *kernel = find_in(table, header.kernel);
    if (*kernel == nullptr) return packed_by(header) + ", which this ao_arm does not have. " + kRepack;
    const std::vector<std::string> reasons = reject_reasons(**kernel, problem);
    if (!reasons.empty()) return packed_by(header) + ", which cannot run here: " + join(reasons) + ". " + kRepack;
    const std::string format = format_of(**kernel);
    if (format != header.packing_format)
        return packed_by(header) + " for " + header.packing_format + "; on this CPU it needs " + format + ". " +
               kRepack;
    return "";
}

// Checks that the bytes are arranged as planned here. Returns an error message, empty on success.
std::string check_arrangement(const PackedHeader& header, int64_t panel_columns, int64_t total_bytes);

// Reads a header and finds what it describes: check_usable(header, &found) returns an error message, empty on success,
// that goes beyond what read_header checks. That is kept out of most calls: equal checksums mean equal headers, and
// what was found out about one holds for the other.
template <class Found, class CheckUsable>
std::string open_header(const uint8_t* bytes, int64_t size, const CheckUsable& check_usable, Found* found) {
    struct Checked {
        bool usable = false;
        uint64_t checksum = 0;
        Found found = {};
    };
    static thread_local Checked recent[16];
    PackedHeader header;
    const std::string error = read_header(bytes, size, &header);
    if (!error.empty()) return error;
    Checked& slot = recent[header.checksum % 16];
    if (!slot.usable || slot.checksum != header.checksum) {
        Found usable = {};
        const std::string unusable = check_usable(header, &usable);
        if (!unusable.empty()) return unusable;
        slot = {true, header.checksum, usable};
    }
    *found = slot.found;
    return "";
}

}  // namespace ao_arm
