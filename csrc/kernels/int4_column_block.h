// Arrangements of 4-bit weights, shared by all kernels. A column block holds, for each group:
//
//     nibbles   in an order that is a template argument
//     scales    one of each column
//     zeros     one byte for each column, zero_point + 8, if the problem has zero points
//
// A nibble is q in two's complement, or q + 8 where the order says so or if there are zero points.
#pragma once

#include <cstring>

#include "core/kernel.h"

namespace ao_arm {

// Where the nibble of a value of a group is, which is value l of column `at` of the block.
struct NibblePlace {
    int64_t byte;
    bool high;
};

// For every kVectorColumns columns, for every 2 * kHalf values along k, kHalf / kDepth vectors of kVectorColumns *
// kDepth bytes: of each column kDepth bytes, with values of k in their low halves and in their high ones those kHalf
// further.
template <int kVectorColumns, int kDepth, int kHalf, bool kAlwaysUnsigned>
struct NibblesAlongK {
    static constexpr bool kUnsignedLow = kAlwaysUnsigned, kUnsignedHigh = kAlwaysUnsigned;

    static NibblePlace place(int64_t padded_group, int64_t at, int64_t l) {
        const int64_t vector = l / (2 * kHalf) * (kHalf / kDepth) + l % kHalf / kDepth;
        return {at / kVectorColumns * (kVectorColumns * padded_group / 2) + vector * kVectorColumns * kDepth +
                    at % kVectorColumns * kDepth + l % kDepth,
                l / kHalf % 2 != 0};
    }
};

// Low halves are of the block's first kHalf columns, high ones of the others. For every kVectorColumns of each, vectors
// of kVectorColumns * kDepth bytes: of each column kDepth bytes. Low nibbles are unsigned.
template <int kHalf, int kVectorColumns, int kDepth>
struct NibblesOfTwoColumns {
    static constexpr bool kUnsignedLow = true, kUnsignedHigh = false;

    static NibblePlace place(int64_t padded_group, int64_t at, int64_t l) {
        const int64_t column = at % kHalf;
        return {column / kVectorColumns * (kVectorColumns * padded_group) + l / kDepth * (kVectorColumns * kDepth) +
                    column % kVectorColumns * kDepth + l % kDepth,
                at >= kHalf};
    }
};

template <int kColumnStep, class Nibbles>
struct Int4Columns {
    static int64_t nibble_bytes(const Problem& problem) { return kColumnStep * problem.padded_group() / 2; }

    static int64_t group_bytes(const Problem& problem) {
        return nibble_bytes(problem) + kColumnStep * (problem.scale_bytes() + (problem.zero_points ? 1 : 0));
    }

    // A block is whole, however many of its columns there are.
    static int64_t block_bytes(const Problem& problem, int64_t) { return problem.groups() * group_bytes(problem); }

    static bool pack(const Problem& problem, const PlainWeight& weight, Columns columns, uint8_t* block) {
        std::memset(block, 0, block_bytes(problem, columns.count));
        each(problem, columns, [&](int64_t at, int64_t index, int64_t group_at) {
            uint8_t* group = block + group_at;
            const int8_t* q = weight.qdata + index * problem.group;
            for (int64_t l = 0; l < problem.group; ++l) {
                const NibblePlace place = Nibbles::place(problem.padded_group(), at, l);
                const uint8_t nibble = static_cast<uint8_t>(q[l] ^ sign(problem, place.high)) & 15;
                group[place.byte] |= static_cast<uint8_t>(place.high ? nibble << 4 : nibble);
            }
            std::memcpy(group + nibble_bytes(problem) + at * problem.scale_bytes(),
                        static_cast<const uint8_t*>(weight.scale) + index * problem.scale_bytes(),
                        problem.scale_bytes());
            if (problem.zero_points)
                group[group_bytes(problem) - kColumnStep + at] = static_cast<uint8_t>(weight.zero_point[index] + 8);
        });
        return true;
    }

    static bool unpack(const Problem& problem, const uint8_t* block, Columns columns, const PlainWeight& weight) {
        each(problem, columns, [&](int64_t at, int64_t index, int64_t group_at) {
            const uint8_t* group = block + group_at;
            int8_t* q = weight.qdata + index * problem.group;
            for (int64_t l = 0; l < problem.group; ++l) {
                const NibblePlace place = Nibbles::place(problem.padded_group(), at, l);
                const uint8_t byte = group[place.byte];
                const int nibble = (place.high ? byte >> 4 : byte & 15) ^ sign(problem, place.high);
                q[l] = static_cast<int8_t>(nibble < 8 ? nibble : nibble - 16);
            }
            std::memcpy(static_cast<uint8_t*>(weight.scale) + index * problem.scale_bytes(),
                        group + nibble_bytes(problem) + at * problem.scale_bytes(), problem.scale_bytes());
            if (problem.zero_points)
                weight.zero_point[index] = static_cast<int8_t>(group[group_bytes(problem) - kColumnStep + at] - 8);
        });
        return true;
    }

   private:
    // body(its place in the block, index of its scale, offset of the group) for each group of each column.
    template <class Body>
    static void each(const Problem& problem, Columns columns, const Body& body) {
        for (int64_t at = 0; at < columns.count; ++at)
            for (int64_t g = 0; g < problem.groups(); ++g)
                body(at, (columns.first + at) * problem.groups() + g, g * group_bytes(problem));
    }

    static int sign(const Problem& problem, bool high) {
        return (high ? Nibbles::kUnsignedHigh : Nibbles::kUnsignedLow) || problem.zero_points ? 8 : 0;
    }
};

template <int kColumnStep, int kVectorColumns, int kDepth, int kHalf, bool kAlwaysUnsigned>
using Int4ColumnBlock = Int4Columns<kColumnStep, NibblesAlongK<kVectorColumns, kDepth, kHalf, kAlwaysUnsigned>>;

template <int kColumnStep, int kVectorColumns, int kDepth>
using Int4ColumnPairs = Int4Columns<kColumnStep, NibblesOfTwoColumns<kColumnStep / 2, kVectorColumns, kDepth>>;

}  // namespace ao_arm
