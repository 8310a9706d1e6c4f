// The header of packed weights: what they are, which kernel packed them, and a checksum.
#pragma once

#include <cstdint>
#include <string>

#include "core/problem.h"

namespace ao_arm {

struct PackedHeader {
    char magic[8];     // "AOARMPW" and a zero byte
    uint32_t version;  // kPackedVersion
    int32_t scheme;    // Scheme
    int64_t n;
    int64_t k;
    int64_t panel_columns;  // kInt8PanelColumns; of 4-bit weights the kernel's column_step
    int64_t total_bytes;
    char kernel[32];          // Kernel::id, zero-padded
    char packing_format[96];  // Kernel::packing_format, zero-padded
    int64_t group;            // these three are of 4-bit weights and else zero
    int32_t scale_type;       // DType
    int32_t zero_points;      // 1 if there are some
    int32_t full_range;       // 1 if an int8 weight holds -128
    uint8_t reserved[52];     // zero
    uint64_t checksum;        // of all bytes before it
};
static_assert(sizeof(PackedHeader) == 256, "the header is part of the format");

constexpr uint32_t kPackedVersion = 1;

// The column_step of every int8 kernel divides it.
constexpr int64_t kInt8PanelColumns = 384;

// A header for a problem, whole but for panel_columns and total_bytes, which `complete` takes with the checksum.
// False if a name is too long for its field.
bool begin_header(const Problem& problem, const std::string& kernel, const std::string& format, PackedHeader* header);
void complete_header(int64_t panel_columns, int64_t total_bytes, PackedHeader* header);

// Reads a header from `size` bytes and checks that it is whole: mark, version, checksum, names, total_bytes. Returns an
// error message that says what to do, empty on success.
std::string read_header(const uint8_t* bytes, int64_t size, PackedHeader* header);

// What the weight is, as far as kernels know it.
Problem problem_of(const PackedHeader& header);

// What to do with packed bytes that cannot be used here.
extern const char* const kRepack;

// "this weight was packed by the kernel ..."
std::string packed_by(const PackedHeader& header);

}  // namespace ao_arm
