// Our own micro-kernels for 4-bit weights on AArch64. Each file is compiled for the instruction set that it is about.
#pragma once

#include "core/kernel.h"

namespace ao_arm {

// Columns of a column block: low nibbles are of the first half, high ones of the second, so that both halves are
// multiplied by the same activations.
constexpr int64_t kNeonInt4Columns = 8;

// Without zero points a low nibble is q + 8 and a high one q: read as an int8, a byte is 16 * q of the second column
// + (q + 8) of the first one. The sums of the low nibbles start at -8 times the sum of the activations of the group;
// these numbers follow the rows of a lhs block: for each group int4_start_vectors(rows) vectors. A lone row, whose
// groups pass by with each column block, has them close together.
constexpr int64_t kInt4StartVectors = 8;
constexpr int64_t int4_start_vectors(int64_t rows) { return rows == 1 ? 2 : kInt4StartVectors; }
// Of blocks with up to half as many vectors of starts: the first of those for whole bytes.
constexpr int64_t int4_bytes_start(int64_t rows) { return int4_start_vectors(rows) / 2; }

// Bytes of a lhs block of `rows` rows. The starts of one more group are read, for no use.
inline int64_t neon_int4_lhs_bytes(const Problem& problem, int64_t rows) {
    return rows * problem.padded_k() + (problem.groups() + 1) * kInt4StartVectors * 16;
}

// Below this many values a group's sum of activation * (16 * weight) stays within 2^22 in magnitude.
constexpr int64_t kLongInt4Group = 256;

// Rows that are multiplied together. With i8mm each pair of rows is one operand; their sums fill the registers.
constexpr int64_t kI8mmRows = 16;
constexpr int64_t kDotprodRows = 8;

// Pairs of rows that blocks of up to `rows` rows are multiplied as; there is a micro-kernel for each of these numbers.
constexpr int64_t i8mm_pairs(int64_t rows) {
    const int64_t pairs = (rows + 1) / 2;
    return pairs <= 4 ? pairs : pairs <= 6 ? 6 : 8;
}

#if defined(__aarch64__)
namespace isa_i8mm {
bool neon_int4_multiply(const Multiplication& call);
}
namespace isa_dotprod {
bool neon_int4_multiply(const Multiplication& call);
}
#endif

}  // namespace ao_arm
