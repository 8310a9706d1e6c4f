// Our own micro-kernels for 4-bit weights on x86. x86_int4_gemm.cpp is compiled once per instruction set.
#pragma once

#include "core/kernel.h"
#include "kernels/x86/lhs_stride.h"

namespace ao_arm {

// The weight is packed as for any other CPU: a vector of nibbles is of 16 columns by 8 values along k.
constexpr int64_t kX86Int4Columns = 16;
constexpr int64_t kX86Int4VectorBytes = kX86Int4Columns * 4;
constexpr int64_t kX86Int4StepBytes = kGroupStep / 8 * kX86Int4VectorBytes;

// A lhs block: its rows, then for each row the sums of its values before every step of kGroupStep, and of all.
constexpr int64_t kX86Int4Rows = 8;
inline int64_t x86_int4_sums(int64_t padded_k) { return padded_k / kGroupStep + 1; }  // of a row
inline int64_t x86_int4_lhs_bytes(int64_t padded_k) {
    return kX86Int4Rows * (x86_lhs_stride(padded_k) + x86_int4_sums(padded_k) * static_cast<int64_t>(sizeof(int32_t)));
}

#define AO_ARM_X86_INT4                                                                 \
    void x86_int4_pack_lhs(const Problem& problem, const LhsPart& part, int8_t* block); \
    bool x86_int4_multiply(const Multiplication& call);
#if defined(__x86_64__)
namespace isa_avx2 {
AO_ARM_X86_INT4
}
namespace isa_avx512 {
AO_ARM_X86_INT4
}
#endif
#undef AO_ARM_X86_INT4

}  // namespace ao_arm
