// Our own micro-kernels for 4-bit weights on AArch64. Each file is compiled for the instruction set that it is about.
#pragma once

#include "core/kernel.h"

namespace ao_arm {

// Columns of a column block.
constexpr int64_t kNeonInt4Columns = 8;

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
