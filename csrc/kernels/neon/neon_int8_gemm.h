// Our own int8 micro-kernels for AArch64. neon_int8_gemm.cpp is compiled once per instruction set.
#pragma once

#include <cstdint>

#include "core/kernel.h"

namespace ao_arm {

// Rows and columns of a micro-kernel's tile, whose sums fill 24 of the 32 vector registers.
constexpr int64_t kNeonTileRows = 8;
constexpr int64_t kNeonTileColumns = 12;

// Both operands are packed in steps: bytes of k that an instruction adds up at once. k is padded to whole steps with
// zeros.
//     weight: for each tile of 12 columns, for each step, 12 columns of one step
//     activations: for each block of up to 8 rows, for each step, the block's rows of one step, in whole vectors
constexpr int64_t kDotprodStep = 4;
constexpr int64_t kI8mmStep = 8;

#if defined(__aarch64__)
namespace isa_dotprod {
void neon_pack_lhs(const Problem& problem, const LhsPart& part, int8_t* block);
bool neon_multiply(const Multiplication& call);
}  // namespace isa_dotprod
namespace isa_i8mm {
void neon_pack_lhs(const Problem& problem, const LhsPart& part, int8_t* block);
bool neon_multiply(const Multiplication& call);
}  // namespace isa_i8mm
#if defined(__linux__)
namespace isa_sve256 {
void neon_pack_lhs(const Problem& problem, const LhsPart& part, int8_t* block);
bool neon_multiply(const Multiplication& call);
}  // namespace isa_sve256
#endif
#endif

}  // namespace ao_arm
