#include "core/cpu_features.h"

#include <fstream>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace ao_arm {
namespace {

struct NamedFeature {
    CpuFeature feature;
    const char* name;
};

constexpr NamedFeature kNames[] = {
    {kAvx2, "avx2"},       {kAvx512Vnni, "avx512vnni"},
    {kDotprod, "dotprod"}, {kI8mm, "i8mm"},
    {kFp16, "fp16"},       {kBf16, "bf16"},
    {kSve, "sve"},         {kSme2, "sme2"},
};

#if defined(__x86_64__)

uint32_t read_features() {
    __builtin_cpu_init();
    uint32_t bits = 0;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) bits |= kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
        bits |= kAvx512Vnni;
    return bits;
}

#elif defined(__aarch64__) && defined(__linux__)

// Bit numbers of the kernel's AT_HWCAP and AT_HWCAP2 (arch/arm64/include/uapi/asm/hwcap.h), spelled out because
// older C libraries lack the later ones.
uint32_t read_features() {
    const unsigned long hwcap = getauxval(AT_HWCAP), hwcap2 = getauxval(AT_HWCAP2);
    const auto bit = [](unsigned long word, int at) { return ((word >> at) & 1) != 0; };
    uint32_t bits = 0;
    if (bit(hwcap, 10)) bits |= kFp16;     // ASIMDHP
    if (bit(hwcap, 20)) bits |= kDotprod;  // ASIMDDP
    if (bit(hwcap, 22)) bits |= kSve;
    if (bit(hwcap2, 13)) bits |= kI8mm;
    if (bit(hwcap2, 14)) bits |= kBf16;
    if (bit(hwcap2, 37)) bits |= kSme2;
    return bits;
}

#elif defined(__aarch64__) && defined(__APPLE__)

uint32_t read_features() {
    const auto has = [](const char* name) {
        int value = 0;
        size_t size = sizeof value;
        return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
    };
    uint32_t bits = 0;
    if (has("hw.optional.arm.FEAT_FP16")) bits |= kFp16;
    if (has("hw.optional.arm.FEAT_DotProd")) bits |= kDotprod;
    if (has("hw.optional.arm.FEAT_I8MM")) bits |= kI8mm;
    if (has("hw.optional.arm.FEAT_BF16")) bits |= kBf16;
    if (has("hw.optional.arm.FEAT_SME2")) bits |= kSme2;
    return bits;
}

#else

uint32_t read_features() { return kNoFeature; }

#endif

std::string read_model() {
    std::ifstream info("/proc/cpuinfo");
    for (std::string line; std::getline(info, line);) {
        if (line.rfind("model name", 0) == 0 || line.rfind("CPU part", 0) == 0) {
            const size_t at = line.find(": ");
            if (at != std::string::npos) return line.substr(at + 2);
        }
    }
#if defined(__x86_64__)
    return "x86-64";
#elif defined(__aarch64__)
    return "AArch64";
#else
    return "unknown";
#endif
}

}  // namespace

const CpuFeatures& cpu_features() {
    static const CpuFeatures features{read_features(), read_model()};
    return features;
}

std::vector<std::string> feature_names(uint32_t bits) {
    std::vector<std::string> names;
    for (const NamedFeature& row : kNames)
        if (bits & row.feature) names.emplace_back(row.name);
    return names;
}

}  // namespace ao_arm
