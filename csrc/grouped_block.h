// One arrangement of 4-bit weights, shared by all kernels of our own. A block of columns holds, for each group:
//
//     nibbles   for every kVectorColumns columns, for every 2 * kHalf values along k, kHalf / kDepth vectors of
//               kVectorColumns * kDepth bytes: of each column kDepth bytes, with values of k in their low halves and in
//               their high ones those kHalf further
//     scales    one of each column
//     zeros     one byte for each column, zero_point + 8, if the problem has zero points
//
// A nibble is q in two's complement, or q + 8 if the kernel wants so or if there are zero points.
#pragma once

#include <cstring>

#include "grouped_kernel.h"

namespace ao_arm {

template <int kColumnStep, int kVectorColumns, int kDepth, int kHalf, bool kAlwaysUnsigned>
struct GroupedBlock {
    static int64_t nibble_bytes(const GroupedProblem& problem) { return kColumnStep * problem.padded_group() / 2; }

    static int64_t group_bytes(const GroupedProblem& problem) {
        return nibble_bytes(problem) + kColumnStep * (problem.scale_bytes() + (problem.zero_points ? 1 : 0));
    }

    static int64_t block_bytes(const GroupedProblem& problem) { return problem.groups() * group_bytes(problem); }

    static void pack(const GroupedProblem& problem, const GroupedValues& values, int64_t first_column, uint8_t* block) {
        std::memset(block, 0, block_bytes(problem));
        const int sign = kAlwaysUnsigned || problem.zero_points ? 8 : 0;
        each(problem, first_column, [&](int64_t at, int64_t index, int64_t group_at) {
            uint8_t* group = block + group_at;
            const int8_t* q = values.q + index * problem.group;
            for (int64_t l = 0; l < problem.group; ++l) {
                const uint8_t nibble = static_cast<uint8_t>(q[l] ^ sign) & 15;
                group[byte_of(problem, at, l)] |= static_cast<uint8_t>(is_high(l) ? nibble << 4 : nibble);
            }
            std::memcpy(group + nibble_bytes(problem) + at * problem.scale_bytes(),
                        static_cast<const uint8_t*>(values.scale) + index * problem.scale_bytes(),
                        problem.scale_bytes());
            if (problem.zero_points)
                group[group_bytes(problem) - kColumnStep + at] = static_cast<uint8_t>(values.zero_point[index] + 8);
        });
    }

    static void unpack(const GroupedProblem& problem, const uint8_t* block, int64_t first_column,
                       const GroupedValues& values) {
        const int sign = kAlwaysUnsigned || problem.zero_points ? 8 : 0;
        each(problem, first_column, [&](int64_t at, int64_t index, int64_t group_at) {
            const uint8_t* group = block + group_at;
            int8_t* q = values.q + index * problem.group;
            for (int64_t l = 0; l < problem.group; ++l) {
                const uint8_t byte = group[byte_of(problem, at, l)];
                const int nibble = (is_high(l) ? byte >> 4 : byte & 15) ^ sign;
                q[l] = static_cast<int8_t>(nibble < 8 ? nibble : nibble - 16);
            }
            std::memcpy(static_cast<uint8_t*>(values.scale) + index * problem.scale_bytes(),
                        group + nibble_bytes(problem) + at * problem.scale_bytes(), problem.scale_bytes());
            if (problem.zero_points)
                values.zero_point[index] = static_cast<int8_t>(group[group_bytes(problem) - kColumnStep + at] - 8);
        });
    }

   private:
    // body(its place in the block, index of its scale, offset of the group) for each group of each column.
    template <class Body>
    static void each(const GroupedProblem& problem, int64_t first_column, const Body& body) {
        for (int64_t at = 0; at < kColumnStep && first_column + at < problem.n; ++at)
            for (int64_t g = 0; g < problem.groups(); ++g)
                body(at, (first_column + at) * problem.groups() + g, g * group_bytes(problem));
    }

    static bool is_high(int64_t l) { return l / kHalf % 2 != 0; }

    static int64_t byte_of(const GroupedProblem& problem, int64_t at, int64_t l) {
        const int64_t vector = l / (2 * kHalf) * (kHalf / kDepth) + l % kHalf / kDepth;
        return at / kVectorColumns * (kVectorColumns * problem.padded_group() / 2) + vector * kVectorColumns * kDepth +
               at % kVectorColumns * kDepth + l % kDepth;
    }
};

// Of neon/int4_i8mm, neon/int4_dotprod and the portable rows.
constexpr int kNeonColumns = 8;
using I8mmBlock = GroupedBlock<kNeonColumns, 2, 8, 8, false>;
using DotprodBlock = GroupedBlock<kNeonColumns, 4, 4, 4, false>;
constexpr int kPortableColumns = 16;
using PortableBlock = GroupedBlock<kPortableColumns, 16, 4, 4, true>;

}  // namespace ao_arm
