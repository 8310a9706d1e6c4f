// CPU features that kernels ask for, read once per process.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ao_arm {

enum CpuFeature : uint32_t {
    kNoFeature = 0,
    kAvx2 = 1u << 0,        // with FMA, as on every CPU that has it
    kAvx512Vnni = 1u << 1,  // with AVX-512 F, BW, DQ and VL
    kDotprod = 1u << 2,
    kI8mm = 1u << 3,
    kFp16 = 1u << 4,
    kBf16 = 1u << 5,
    kSve = 1u << 6,
    kSme2 = 1u << 7,
    kSve256 = 1u << 8,  // SVE whose vectors have 256 bits, no more and no less
};

struct CpuFeatures {
    uint32_t bits = 0;
    std::string model;  // as the operating system names the CPU, or the architecture when it does not

    bool has(uint32_t features) const { return (bits & features) == features; }
};

const CpuFeatures& cpu_features();

// Names of the features set in `bits`, in the order above.
std::vector<std::string> feature_names(uint32_t bits);

}  // namespace ao_arm
