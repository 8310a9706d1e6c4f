// The bytes of a packed weight in groups: a header, the column sums, then the blocks of columns as their kernel
// arranged them.
//
//     offset 0                 PackedHeader, 256 bytes, with scheme kInt4Grouped
//     offset 256               n column sums, float32, padded to a multiple of 64 bytes
//     after them               ceil(n / column_step) blocks of block_bytes each
//
// A column's sum is the sum over its groups of scale * (sum of (q - zero_point)): what a token's zero point is
// multiplied by. All numbers are little-endian. Checkpoints hold plain values instead.
#pragma once

#include <cstdint>
#include <string>

#include "grouped_kernel.h"
#include "packed_header.h"

namespace ao_arm {

// Where the parts lie. With no base, the plan of one that is still to be made.
struct PackedGroupedWeight {
    const GroupedKernel* kernel;
    GroupedProblem problem;
    const uint8_t* base;
    int64_t block_bytes;

    int64_t blocks() const { return (problem.n + kernel->column_step - 1) / kernel->column_step; }
    int64_t column_sums_offset() const { return sizeof(PackedHeader); }
    int64_t block_offset(int64_t block) const {
        return column_sums_offset() + round_up(problem.n * 4, 64) + block * block_bytes;
    }
    int64_t total_bytes() const { return block_offset(blocks()); }
    const float* column_sums() const { return reinterpret_cast<const float*>(base + column_sums_offset()); }
};

int64_t packed_bytes(const GroupedKernel& kernel, const GroupedProblem& problem);

// Packs into packed_bytes() at `bytes`. Returns an error message, empty on success.
std::string pack_grouped_weight(const GroupedKernel& kernel, const GroupedProblem& problem, const GroupedValues& values,
                                uint8_t* bytes);

// The inverse: exactly the values that were packed.
void unpack_grouped_weight(const PackedGroupedWeight& weight, const GroupedValues& values);

// Reads and checks `size` bytes at `bytes`. Returns an error message that says what to do, empty on success.
std::string open_packed_grouped_weight(const uint8_t* bytes, int64_t size, PackedGroupedWeight* weight);

}  // namespace ao_arm
