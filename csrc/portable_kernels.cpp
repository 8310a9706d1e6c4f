// The table's rows for the plain C++ GEMM, one for each instruction set it is compiled for. They share one packing
// format: the values themselves, each row padded with zeros.
#include <cstring>

#include "kernel.h"
#include "portable_gemm.h"

namespace ao_arm {
namespace {

int64_t padded(int64_t k) { return round_up(k, kPortableRowMultiple); }

std::string packing_format(int64_t, int64_t) { return "rows padded to 64"; }

int64_t panel_bytes(int64_t columns, int64_t k) { return columns * padded(k); }

// Room for the block of rows in the widest form that an instruction set wants.
int64_t scratch_bytes(int64_t, int64_t k) { return kBlockRows * padded(k) * static_cast<int64_t>(sizeof(int16_t)); }

bool pack(const int8_t* values, int64_t columns, int64_t k, uint8_t* panel) {
    for (int64_t j = 0; j < columns; ++j) {
        std::memcpy(panel + j * padded(k), values + j * k, k);
        std::memset(panel + j * padded(k) + k, 0, padded(k) - k);
    }
    return true;
}

bool unpack(const uint8_t* panel, int64_t columns, int64_t k, int8_t* values) {
    for (int64_t j = 0; j < columns; ++j) std::memcpy(values + j * k, panel + j * padded(k), k);
    return true;
}

enum class Architecture { kAny, kX86, kAArch64 };

#if defined(__x86_64__)
constexpr Architecture kHere = Architecture::kX86;
#elif defined(__aarch64__)
constexpr Architecture kHere = Architecture::kAArch64;
#else
constexpr Architecture kHere = Architecture::kAny;
#endif

template <Architecture kArchitecture>
void reject(const Problem&, std::vector<std::string>& reasons) {
    if (kArchitecture == Architecture::kAny || kArchitecture == kHere) return;
    reasons.push_back(kArchitecture == Architecture::kX86 ? "it is built for x86-64 only"
                                                          : "it is built for AArch64 only");
}

// Fixed cycles of a call, and multiply-accumulates a cycle: modelled on Neoverse V1 (i8mm) and N1 (dotprod, baseline),
// rough estimates for x86.
template <int kMacsPerCycle>
double cost(const Problem& problem, const CpuFeatures&) {
    return 300.0 + 16.0 * static_cast<double>(problem.n) * static_cast<double>(padded(problem.k)) / kMacsPerCycle;
}

template <Architecture kArchitecture, int kMacsPerCycle>
constexpr Kernel row(const char* id, const char* summary, uint32_t features, bool (*gemm)(const PanelGemm&)) {
    return {id,
            summary,
            features,
            reject<kArchitecture>,
            gemm == nullptr ? nullptr : cost<kMacsPerCycle>,
            packing_format,
            padded,
            panel_bytes,
            scratch_bytes,
            pack,
            unpack,
            nullptr,
            gemm,
            false};
}

#if defined(__x86_64__)
constexpr auto kAvx2Gemm = isa_avx2::portable_gemm;
constexpr auto kAvx512Gemm = isa_avx512::portable_gemm;
#else
constexpr bool (*kAvx2Gemm)(const PanelGemm&) = nullptr;
constexpr bool (*kAvx512Gemm)(const PanelGemm&) = nullptr;
#endif
#if defined(__aarch64__)
constexpr auto kDotprodGemm = isa_dotprod::portable_gemm;
constexpr auto kI8mmGemm = isa_i8mm::portable_gemm;
#else
constexpr bool (*kDotprodGemm)(const PanelGemm&) = nullptr;
constexpr bool (*kI8mmGemm)(const PanelGemm&) = nullptr;
#endif

}  // namespace

const Kernel kPortableBaseline =
    row<Architecture::kAny, 4>("portable/baseline", "plain C++ for any CPU", kNoFeature, isa_baseline::portable_gemm);
const Kernel kPortableAvx2 =
    row<Architecture::kX86, 24>("portable/avx2", "plain C++, compiled for AVX2", kAvx2, kAvx2Gemm);
const Kernel kPortableAvx512Vnni = row<Architecture::kX86, 80>(
    "portable/avx512vnni", "plain C++, compiled for AVX-512 VNNI", kAvx512Vnni, kAvx512Gemm);
const Kernel kPortableDotprod = row<Architecture::kAArch64, 29>(
    "portable/dotprod", "plain C++, compiled for dot product instructions", kDotprod, kDotprodGemm);
const Kernel kPortableI8mm = row<Architecture::kAArch64, 58>(
    "portable/i8mm", "plain C++, compiled for dot product and int8 matrix instructions", kDotprod | kI8mm, kI8mmGemm);

std::vector<const Kernel*> portable_kernels() {
    return {&kPortableI8mm, &kPortableDotprod, &kPortableAvx512Vnni, &kPortableAvx2, &kPortableBaseline};
}

}  // namespace ao_arm
