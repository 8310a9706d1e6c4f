// The table's entries for our own int8 micro-kernels on AArch64: packing, and what a call costs.
#include <algorithm>
#include <cstring>

#include "core/architecture.h"
#include "core/kernel.h"
#include "kernels/neon/neon_int8_gemm.h"

namespace ao_arm {
namespace {

template <int64_t kStep>
int64_t padded_k(const Problem& problem) {
    return round_up(problem.k, kStep);
}

// A column block is a tile, which is whole however many of its columns there are.
template <int64_t kStep>
int64_t block_bytes(const Problem& problem, int64_t) {
    return kNeonTileColumns * round_up(problem.k, kStep);
}

template <int64_t kStep>
std::string packing_format(const Problem&) {
    return std::to_string(kNeonTileColumns) + " columns by " + std::to_string(kStep) + " of k";
}

// Calls body(place in the block, place in (n, k), count) for values that lie together.
template <int64_t kStep, class Body>
void each_step(const Problem& problem, Columns columns, const Body& body) {
    for (int64_t j = 0; j < columns.count; ++j)
        for (int64_t l = 0; l < problem.k; l += kStep)
            body(l * kNeonTileColumns + j * kStep, (columns.first + j) * problem.k + l, std::min(kStep, problem.k - l));
}

template <int64_t kStep>
bool pack(const Problem& problem, const PlainWeight& weight, Columns columns, uint8_t* block) {
    std::memset(block, 0, block_bytes<kStep>(problem, columns.count));
    each_step<kStep>(problem, columns, [&](int64_t packed, int64_t plain, int64_t count) {
        std::memcpy(block + packed, weight.qdata + plain, count);
    });
    return true;
}

template <int64_t kStep>
bool unpack(const Problem& problem, const uint8_t* block, Columns columns, const PlainWeight& weight) {
    each_step<kStep>(problem, columns, [&](int64_t packed, int64_t plain, int64_t count) {
        std::memcpy(weight.qdata + plain, block + packed, count);
    });
    return true;
}

// Fixed cycles of a call, and multiply-accumulates a cycle: modelled on Neoverse V1 (i8mm) and N1 (dotprod). An i8mm
// instruction multiplies two rows, also where there is one. Up to two rows wait for loads of the weight.
template <int64_t kStep, int kMacsPerCycle, int kMacsPerCycleOfTwo>
double cost(const Problem& problem, int64_t m, const CpuFeatures&) {
    const double rows = static_cast<double>(kStep == kI8mmStep ? round_up(m, 2) : m);
    const double columns = static_cast<double>(round_up(problem.n, kNeonTileColumns));
    const double rate = m <= 2 ? kMacsPerCycleOfTwo : kMacsPerCycle;
    return 300.0 + rows * columns * static_cast<double>(round_up(problem.k, kStep)) / rate;
}

using PackLhs = void (*)(const Problem&, const LhsPart&, int8_t*);
using Multiply = bool (*)(const Multiplication&);
#if defined(__aarch64__)
constexpr PackLhs kDotprodPackLhs = isa_dotprod::neon_pack_lhs, kI8mmPackLhs = isa_i8mm::neon_pack_lhs;
constexpr Multiply kDotprodMultiply = isa_dotprod::neon_multiply, kI8mmMultiply = isa_i8mm::neon_multiply;
#else
constexpr PackLhs kDotprodPackLhs = nullptr, kI8mmPackLhs = nullptr;
constexpr Multiply kDotprodMultiply = nullptr, kI8mmMultiply = nullptr;
#endif
// Other operating systems give programs no vectors of SVE.
#if defined(__aarch64__) && defined(__linux__)
constexpr bool kHasSve = true;
constexpr PackLhs kSvePackLhs = isa_sve256::neon_pack_lhs;
constexpr Multiply kSveMultiply = isa_sve256::neon_multiply;
#else
constexpr bool kHasSve = false;
constexpr PackLhs kSvePackLhs = nullptr;
constexpr Multiply kSveMultiply = nullptr;
#endif

void reject_without_linux(const Problem& problem, std::vector<std::string>& reasons) {
    reject_elsewhere<Architecture::kAArch64>(problem, reasons);
    if (reasons.empty() && !kHasSve) reasons.push_back("it is built for Linux only");
}

template <int64_t kStep, int kMacsPerCycle, int kMacsPerCycleOfTwo = kMacsPerCycle>
constexpr Kernel neon(const char* id, const char* summary, uint32_t features, PackLhs pack_lhs, Multiply multiply,
                      void (*reject_reasons)(const Problem&,
                                             std::vector<std::string>&) = reject_elsewhere<Architecture::kAArch64>) {
    Kernel kernel = named_kernel(id, summary, Scheme::kInt8, features, reject_reasons);
    if (multiply == nullptr) return kernel;
    kernel.cost = cost<kStep, kMacsPerCycle, kMacsPerCycleOfTwo>;
    kernel.packing_format = packing_format<kStep>;
    kernel.column_step = kNeonTileColumns;
    kernel.block_bytes = block_bytes<kStep>;
    kernel.pack = pack<kStep>;
    kernel.unpack = unpack<kStep>;
    kernel.row_step = kNeonTileRows;
    kernel.padded_k = padded_k<kStep>;
    kernel.pack_lhs = pack_lhs;
    kernel.lhs_step = 16 / kStep;
    kernel.multiply = multiply;
    kernel.most_rows = kMostRows;
    kernel.serves_unsigned_lhs = kStep == kI8mmStep;
    kernel.scales = true;
    return kernel;
}

const Kernel kSveI8mm =
    neon<kI8mmStep, 120, 110>("sve/i8mm_256", "own int8 matrix-multiply micro-kernels on SVE",
                              kDotprod | kI8mm | kSve256, kSvePackLhs, kSveMultiply, reject_without_linux);
const Kernel kNeonI8mm = neon<kI8mmStep, 120, 90>("neon/i8mm", "own int8 matrix-multiply micro-kernels",
                                                  kDotprod | kI8mm, kI8mmPackLhs, kI8mmMultiply);
const Kernel kNeonDotprod = neon<kDotprodStep, 31>("neon/dotprod", "own int8 dot product micro-kernels", kDotprod,
                                                   kDotprodPackLhs, kDotprodMultiply);

}  // namespace

std::vector<const Kernel*> neon_int8_kernels() { return {&kSveI8mm, &kNeonI8mm, &kNeonDotprod}; }

}  // namespace ao_arm
