// The integer GEMM in plain C++, for any CPU. portable_int8_gemm.cpp is compiled once per instruction set.
#pragma once

#include <cstdint>

#include "core/kernel.h"

namespace ao_arm {

// Rows of both operands are padded with zeros to a multiple of this, the longest vector in bytes.
constexpr int64_t kPortableMultiple = 64;

// Rows and columns of a tile of sums.
constexpr int64_t kPortableRows = 4;
constexpr int64_t kPortableColumns = 4;

#define AO_ARM_PORTABLE_INT8                                                            \
    void portable_pack_lhs(const Problem& problem, const LhsPart& part, int8_t* block); \
    bool portable_multiply(const Multiplication& call);                                 \
    extern const int64_t kPortableLhsBytes; /* of a value of the packed activations */

namespace isa_baseline {
AO_ARM_PORTABLE_INT8
}
#if defined(__aarch64__)
namespace isa_dotprod {
AO_ARM_PORTABLE_INT8
}
namespace isa_i8mm {
AO_ARM_PORTABLE_INT8
}
#endif
#undef AO_ARM_PORTABLE_INT8

}  // namespace ao_arm
