// Our own int8 micro-kernels for x86. x86_int8_gemm.cpp is compiled once per instruction set.
#pragma once

#include <cstdint>

#include "core/kernel.h"

namespace ao_arm {

// The weight is packed in blocks of so many columns: for each step of k, each column's bytes of it. They hold q + 128,
// as the multiplications of bytes want one unsigned operand; what is too much is taken off each row's sums.
constexpr int64_t kX86BlockColumns = 16;
constexpr int64_t kX86Step = 4;
constexpr int64_t kX86StepBytes = kX86BlockColumns * kX86Step;

#if defined(__x86_64__)
namespace isa_avx2 {
void x86_pack_lhs(const Problem& problem, const LhsPart& part, int8_t* block);
bool x86_multiply(const Multiplication& call);
extern const int64_t kX86LhsValueBytes;
}  // namespace isa_avx2
namespace isa_avx512 {
bool x86_multiply(const Multiplication& call);
extern const int64_t kX86LhsValueBytes;
}  // namespace isa_avx512
#endif

}  // namespace ao_arm
