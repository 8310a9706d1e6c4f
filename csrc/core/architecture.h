// The architecture that this library is built for. All entries of the kernel table stay on all of them, to say so.
#pragma once

#include "core/problem.h"

namespace ao_arm {

enum class Architecture { kX86, kAArch64, kOther };

#if defined(__x86_64__)
constexpr Architecture kArchitecture = Architecture::kX86;
#elif defined(__aarch64__)
constexpr Architecture kArchitecture = Architecture::kAArch64;
#else
constexpr Architecture kArchitecture = Architecture::kOther;
#endif

// A kernel's reject_reasons: refuses whatever the problem unless the library is built for the architecture.
template <Architecture kWanted>
inline void reject_elsewhere(const Problem&, std::vector<std::string>& reasons) {
    static_assert(kWanted != Architecture::kOther, "it has no name");
    if (kWanted != kArchitecture)
        reasons.push_back(kWanted == Architecture::kX86 ? "it is built for x86-64 only"
                                                        : "it is built for AArch64 only");
}

}  // namespace ao_arm
