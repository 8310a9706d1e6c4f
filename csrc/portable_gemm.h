// The integer GEMM in plain C++, for any CPU. portable_gemm.cpp is compiled once per instruction set.
#pragma once

#include <cstdint>

#include "kernel.h"

namespace ao_arm {

// Rows of both operands are padded with zeros to a multiple of this, the longest vector in bytes.
constexpr int64_t kPortableRowMultiple = 64;

namespace isa_baseline {
bool portable_gemm(const PanelGemm& call);
}
#if defined(__x86_64__)
namespace isa_avx2 {
bool portable_gemm(const PanelGemm& call);
}
namespace isa_avx512 {
bool portable_gemm(const PanelGemm& call);
}
#elif defined(__aarch64__)
namespace isa_dotprod {
bool portable_gemm(const PanelGemm& call);
}
namespace isa_i8mm {
bool portable_gemm(const PanelGemm& call);
}
#endif

}  // namespace ao_arm
