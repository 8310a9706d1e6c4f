// The table's rows for the plain C++ GEMM, one for each instruction set it is compiled for. They share one packing
// format: the values themselves, each row padded with zeros.
#include <cstring>

#include "architecture.h"
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

void reject_nothing(const Problem&, std::vector<std::string>&) {}

// Fixed cycles of a call, and multiply-accumulates a cycle: modelled on Neoverse V1 (i8mm) and N1 (dotprod, baseline),
// rough estimates for x86.
template <int kMacsPerCycle>
double cost(const Problem& problem, const CpuFeatures&) {
    return 300.0 + 16.0 * static_cast<double>(problem.n) * static_cast<double>(padded(problem.k)) / kMacsPerCycle;
}

template <int kMacsPerCycle>
constexpr Kernel row(const char* id, const char* summary, uint32_t features,
                     void (*reject)(const Problem&, std::vector<std::string>&), bool (*gemm)(const PanelGemm&)) {
    return {id,
            summary,
            features,
            reject,
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

constexpr auto kX86Only = reject_elsewhere<Architecture::kX86, Problem>;
constexpr auto kAArch64Only = reject_elsewhere<Architecture::kAArch64, Problem>;

}  // namespace

const Kernel kPortableBaseline =
    row<4>("portable/baseline", "plain C++ for any CPU", kNoFeature, reject_nothing, isa_baseline::portable_gemm);
const Kernel kPortableAvx2 = row<24>("portable/avx2", "plain C++, compiled for AVX2", kAvx2, kX86Only, kAvx2Gemm);
const Kernel kPortableAvx512Vnni =
    row<80>("portable/avx512vnni", "plain C++, compiled for AVX-512 VNNI", kAvx512Vnni, kX86Only, kAvx512Gemm);
const Kernel kPortableDotprod = row<29>("portable/dotprod", "plain C++, compiled for dot product instructions",
                                        kDotprod, kAArch64Only, kDotprodGemm);
const Kernel kPortableI8mm =
    row<58>("portable/i8mm", "plain C++, compiled for dot product and int8 matrix instructions", kDotprod | kI8mm,
            kAArch64Only, kI8mmGemm);

std::vector<const Kernel*> portable_kernels() {
    return {&kPortableI8mm, &kPortableDotprod, &kPortableAvx512Vnni, &kPortableAvx2, &kPortableBaseline};
}

}  // namespace ao_arm
