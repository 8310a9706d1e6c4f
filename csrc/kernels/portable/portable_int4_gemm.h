// Multiplication by 4-bit weights for any CPU; portable_int4_gemm.cpp is compiled once per instruction set.
#pragma once

#include "core/kernel.h"

namespace ao_arm {

constexpr int64_t kPortableInt4Rows = 16;  // of a lhs block
constexpr int kPortableInt4Columns = 16;   // of a column block
constexpr int kInt4VectorBytes = 64;       // of a vector of nibbles: 16 columns by 8 values along k
constexpr int kInt4StepVectors = kGroupStep / 8;

// A lhs block: its rows, padded_k values each, then for each row the sums of every kGroupStep values.
constexpr int64_t portable_int4_lhs_bytes(int64_t padded_k) {
    return kPortableInt4Rows * (padded_k + padded_k / kGroupStep * static_cast<int64_t>(sizeof(int32_t)));
}

inline const int32_t* portable_int4_lhs_sums(const int8_t* block, int64_t padded_k) {
    return reinterpret_cast<const int32_t*>(block + kPortableInt4Rows * padded_k);
}

namespace isa_baseline {
bool portable_int4_multiply(const Multiplication& call);
}

}  // namespace ao_arm
