// Our own micro-kernels for 4-bit weights on AArch64. Each file is compiled for the instruction set that it is about.
#pragma once

#include "grouped_kernel.h"

namespace ao_arm {

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
void grouped_gemm(const GroupedGemm& call);
}
namespace isa_dotprod {
void grouped_gemm(const GroupedGemm& call);
}
#endif

}  // namespace ao_arm
