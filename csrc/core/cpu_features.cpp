#include "core/cpu_features.h"

#include <fstream>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#include <sys/prctl.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace ao_arm {
namespace {

// A feature's name, and where operating systems tell of it: the number of its bit in the Linux kernel's AT_HWCAP (from
// 64 on: AT_HWCAP2; arch/arm64/include/uapi/asm/hwcap.h), Apple's name of it.
struct NamedFeature {
    CpuFeature feature;
    const char* name;
    int hwcap_bit;
    const char* apple;
};

constexpr NamedFeature kFeatures[] = {
    {kAvx2, "avx2", -1, nullptr},
    {kAvx512Vnni, "avx512vnni", -1, nullptr},
    {kDotprod, "dotprod", 20, "hw.optional.arm.FEAT_DotProd"},
    {kI8mm, "i8mm", 64 + 13, "hw.optional.arm.FEAT_I8MM"},
    {kFp16, "fp16", 10, "hw.optional.arm.FEAT_FP16"},
    {kBf16, "bf16", 64 + 14, "hw.optional.arm.FEAT_BF16"},
    {kSve, "sve", 22, nullptr},
    {kSme2, "sme2", 64 + 37, "hw.optional.arm.FEAT_SME2"},
    {kSve256, "sve256", 22, nullptr},
};

#if defined(__aarch64__) && defined(__linux__)
// The length that the operating system gave this process's vectors (arch/arm64/include/uapi/asm/sigcontext.h).
int sve_bytes() {
    constexpr int kGetLength = 51, kLengthMask = 0xFFFF;  // PR_SVE_GET_VL, which older headers lack
    const int length = prctl(kGetLength);
    return length < 0 ? 0 : length & kLengthMask;
}
#endif

bool is_there(const NamedFeature& row) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (row.feature == kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return row.feature == kAvx512Vnni && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
#elif defined(__aarch64__) && defined(__linux__)
    const unsigned long word = getauxval(row.hwcap_bit < 64 ? AT_HWCAP : AT_HWCAP2);
    const bool has_bit = row.hwcap_bit >= 0 && ((word >> (row.hwcap_bit % 64)) & 1) != 0;
    return has_bit && (row.feature != kSve256 || sve_bytes() == 32);
#elif defined(__aarch64__) && defined(__APPLE__)
    int value = 0;
    size_t size = sizeof value;
    return row.apple != nullptr && sysctlbyname(row.apple, &value, &size, nullptr, 0) == 0 && value != 0;
#else
    (void)row;
    return false;
#endif
}

uint32_t read_features() {
    uint32_t bits = 0;
    for (const NamedFeature& row : kFeatures) bits |= is_there(row) ? row.feature : kNoFeature;
    return bits;
}

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
    for (const NamedFeature& row : kFeatures)
        if (bits & row.feature) names.emplace_back(row.name);
    return names;
}

}  // namespace ao_arm
