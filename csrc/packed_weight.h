// The bytes of a packed weight: a header, the column sums, then the panels as their kernel arranged them.
//
//     offset 0                 PackedHeader, 256 bytes
//     offset 256               n column sums, int32, padded to a multiple of 64 bytes
//     after them               ceil(n / panel_columns) panels, each a multiple of 64 bytes
//
// All numbers are little-endian. The bytes belong to one kernel and one packing format; checkpoints hold plain int8
// values instead, so packed bytes never need converting.
#pragma once

#include <cstdint>
#include <string>

#include "kernel.h"
#include "packed_header.h"

namespace ao_arm {

// Where the parts of a packed weight lie. With no base, the plan of one that is still to be made.
struct PackedWeight {
    const Kernel* kernel;
    int64_t n;
    int64_t k;
    const uint8_t* base;

    int64_t panels() const { return (n + kPanelColumns - 1) / kPanelColumns; }
    int64_t columns_of(int64_t panel) const { return panel + 1 < panels() ? kPanelColumns : n - panel * kPanelColumns; }
    int64_t column_sums_offset() const { return sizeof(PackedHeader); }
    int64_t panels_offset() const { return column_sums_offset() + round_up(n * 4, 64); }
    int64_t panel_offset(int64_t panel) const {
        return panels_offset() + panel * panel_bytes(n < kPanelColumns ? n : kPanelColumns);
    }
    int64_t panel_bytes(int64_t columns) const { return round_up(kernel->panel_bytes(columns, k), 64); }
    int64_t total_bytes() const { return panel_offset(panels() - 1) + panel_bytes(columns_of(panels() - 1)); }
    const int32_t* column_sums() const { return reinterpret_cast<const int32_t*>(base + column_sums_offset()); }
};

// How many bytes `kernel` needs for an (n, k) weight.
int64_t packed_bytes(const Kernel& kernel, int64_t n, int64_t k);

// Packs (n, k) int8 values, contiguous, into packed_bytes() at `bytes`. Returns an error message, empty on success.
std::string pack_weight(const Kernel& kernel, int64_t n, int64_t k, const int8_t* values, uint8_t* bytes);

// The inverse: exactly the values that were packed.
std::string unpack_weight(const PackedWeight& weight, int8_t* values);

// Reads and checks `size` bytes at `bytes`. Returns an error message that says what to do, empty on success.
std::string open_packed_weight(const uint8_t* bytes, int64_t size, PackedWeight* weight);

}  // namespace ao_arm
