// The bytes of a packed weight: a header, the column sums, then the column blocks as their kernel arranged them.
//
//     offset 0                 PackedHeader, 256 bytes
//     offset 256               n column sums of 4 bytes, padded to a multiple of 64 bytes
//     after them               ceil(n / column_step) column blocks; of int8 weights padded to a multiple of 64 bytes
//
// A column's sum is what a token's zero point is multiplied by: of int8 weights the int32 sum of the column, of 4-bit
// ones the float sum over its groups of scale * (sum of (q - zero_point)). All numbers are little-endian. The bytes
// belong to one kernel and one packing format; checkpoints hold plain values, so packed bytes never need converting.
#pragma once

#include <cstdint>
#include <string>

#include "core/kernel.h"
#include "layer/packed_header.h"

namespace ao_arm {

// Where the parts of a packed weight lie. With no base, the plan of one that is still to be made.
struct PackedWeight {
    const Kernel* kernel;
    Problem problem;
    const uint8_t* base;
    int64_t block_bytes;       // of a whole column block
    int64_t last_block_bytes;  // of the one at the weight's end
    int64_t padded_k;          // what its kernel says of activations, asked once
    int64_t lhs_bytes;         // of a lhs block

    int64_t blocks() const { return divide_up(problem.n, kernel->column_step); }
    Columns columns(int64_t block) const {
        const int64_t step = kernel->column_step, first = block * step;
        return {first, block + 1 < blocks() ? step : problem.n - first};
    }
    int64_t sums_offset() const { return sizeof(PackedHeader); }
    int64_t block_offset(int64_t block) const {
        return sums_offset() + round_up(problem.n * 4, 64) + block * block_bytes;
    }
    int64_t total_bytes() const {
        return round_up(block_offset(blocks() - 1) + last_block_bytes, problem.scheme == Scheme::kInt8 ? 64 : 1);
    }
    // The column sums, from `column` on.
    const void* sums(int64_t column) const { return base + sums_offset() + column * 4; }
};

// The plan of a weight, and where it lies.
PackedWeight planned(const Kernel& kernel, const Problem& problem, const uint8_t* base);

// How many bytes `kernel` needs for a weight.
int64_t packed_bytes(const Kernel& kernel, const Problem& problem);

// Packs plain contents into packed_bytes() at `bytes`. Returns an error message, empty on success.
std::string pack_weight(const Kernel& kernel, const Problem& problem, const PlainWeight& plain, uint8_t* bytes);

// The inverse: exactly the contents that were packed.
std::string unpack_weight(const PackedWeight& weight, const PlainWeight& plain);

// The same of `count` rows of (n, k), in the order given; unpacks the column blocks that they lie in.
std::string unpack_rows(const PackedWeight& weight, const int64_t* rows, int64_t count, const PlainWeight& plain);

// Reads and checks `size` bytes at `bytes` that are to hold a weight of this scheme. Returns an error message that says
// what to do, empty on success.
std::string open_packed_weight(Scheme scheme, const uint8_t* bytes, int64_t size, PackedWeight* weight);

}  // namespace ao_arm
