// Multiplication by 4-bit weights for any CPU; portable_grouped_gemm.cpp is compiled once per instruction set.
#pragma once

#include "grouped_kernel.h"

namespace ao_arm {

constexpr int64_t kPortableGroupedRows = 16;

// A block of activations: its rows, padded_k values each, then for each row the sums of every kGroupedStep values.
constexpr int64_t portable_lhs_bytes(int64_t padded_k) {
    return kPortableGroupedRows * (padded_k + padded_k / kGroupedStep * static_cast<int64_t>(sizeof(int32_t)));
}

inline const int32_t* portable_lhs_sums(const int8_t* block, int64_t padded_k) {
    return reinterpret_cast<const int32_t*>(block + kPortableGroupedRows * padded_k);
}

namespace isa_baseline {
void grouped_gemm(const GroupedGemm& call);
}
#if defined(__x86_64__)
namespace isa_avx2 {
void grouped_gemm(const GroupedGemm& call);
}
namespace isa_avx512 {
void grouped_gemm(const GroupedGemm& call);
}
#endif

}  // namespace ao_arm
