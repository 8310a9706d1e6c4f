// The table's rows for our own AArch64 micro-kernels: packing, and what a call costs.
#include <algorithm>
#include <cstring>

#include "architecture.h"
#include "kernel.h"
#include "neon_gemm.h"

namespace ao_arm {
namespace {

// Where value l of column j lies in a packed panel.
template <int64_t kStep>
int64_t place(int64_t j, int64_t l, int64_t k) {
    const int64_t tile = j / kNeonTileColumns * kNeonTileColumns * round_up(k, kStep);
    return tile + l / kStep * kStep * kNeonTileColumns + j % kNeonTileColumns * kStep + l % kStep;
}

template <int64_t kStep>
int64_t padded(int64_t k) {
    return round_up(k, kStep);
}

template <int64_t kStep>
int64_t panel_bytes(int64_t columns, int64_t k) {
    return round_up(columns, kNeonTileColumns) * round_up(k, kStep);
}

int64_t scratch_bytes(int64_t, int64_t) { return 0; }

template <int64_t kStep>
std::string packing_format(int64_t, int64_t) {
    return std::to_string(kNeonTileColumns) + " columns by " + std::to_string(kStep) + " of k";
}

template <int64_t kStep>
bool pack(const int8_t* values, int64_t columns, int64_t k, uint8_t* panel) {
    std::memset(panel, 0, panel_bytes<kStep>(columns, k));
    for (int64_t j = 0; j < columns; ++j)
        for (int64_t l = 0; l < k; l += kStep)
            std::memcpy(panel + place<kStep>(j, l, k), values + j * k + l, std::min(kStep, k - l));
    return true;
}

template <int64_t kStep>
bool unpack(const uint8_t* panel, int64_t columns, int64_t k, int8_t* values) {
    for (int64_t j = 0; j < columns; ++j)
        for (int64_t l = 0; l < k; l += kStep)
            std::memcpy(values + j * k + l, panel + place<kStep>(j, l, k), std::min(kStep, k - l));
    return true;
}

// Fixed cycles of a call, and multiply-accumulates a cycle: modelled on Neoverse V1 (i8mm) and N1 (dotprod).
template <int64_t kStep, int kMacsPerCycle>
double cost(const Problem& problem, const CpuFeatures&) {
    const double columns = static_cast<double>(round_up(problem.n, kNeonTileColumns));
    return 300.0 + 16.0 * columns * static_cast<double>(round_up(problem.k, kStep)) / kMacsPerCycle;
}

using PackLhs = void (*)(const int8_t* rows, int64_t m, int64_t stride, int8_t* packed);
using Gemm = bool (*)(const PanelGemm& call);
#if defined(__aarch64__)
constexpr PackLhs kDotprodPackLhs = isa_dotprod::neon_pack_lhs, kI8mmPackLhs = isa_i8mm::neon_pack_lhs;
constexpr Gemm kDotprodGemm = isa_dotprod::neon_gemm, kI8mmGemm = isa_i8mm::neon_gemm;
#else
constexpr PackLhs kDotprodPackLhs = nullptr, kI8mmPackLhs = nullptr;
constexpr Gemm kDotprodGemm = nullptr, kI8mmGemm = nullptr;
#endif

template <int64_t kStep, int kMacsPerCycle>
constexpr Kernel row(const char* id, const char* summary, uint32_t features, PackLhs pack_lhs, Gemm gemm,
                     bool serves_unsigned_lhs) {
    return {id,
            summary,
            features,
            reject_elsewhere<Architecture::kAArch64, Problem>,
            gemm == nullptr ? nullptr : cost<kStep, kMacsPerCycle>,
            packing_format<kStep>,
            padded<kStep>,
            panel_bytes<kStep>,
            scratch_bytes,
            pack<kStep>,
            unpack<kStep>,
            pack_lhs,
            gemm,
            serves_unsigned_lhs};
}

}  // namespace

const Kernel kNeonI8mm = row<kI8mmStep, 120>("neon/i8mm", "own int8 matrix-multiply micro-kernels", kDotprod | kI8mm,
                                             kI8mmPackLhs, kI8mmGemm, true);
const Kernel kNeonDotprod = row<kDotprodStep, 31>("neon/dotprod", "own int8 dot product micro-kernels", kDotprod,
                                                  kDotprodPackLhs, kDotprodGemm, false);

std::vector<const Kernel*> neon_kernels() { return {&kNeonI8mm, &kNeonDotprod}; }

}  // namespace ao_arm
