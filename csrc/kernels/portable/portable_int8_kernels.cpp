// The table's entries for the plain C++ GEMM, one for each instruction set that it is compiled for. They share one
// packing format: the values themselves, each column padded with zeros.
#include <cstring>

#include "core/architecture.h"
#include "core/kernel.h"
#include "kernels/portable/portable_int8_gemm.h"

namespace ao_arm {
namespace {

int64_t padded_k(const Problem& problem) { return round_up(problem.k, kPortableMultiple); }

std::string packing_format(const Problem&) { return "rows padded to 64"; }

int64_t block_bytes(const Problem& problem, int64_t columns) { return columns * padded_k(problem); }

bool pack(const Problem& problem, const PlainWeight& weight, Columns columns, uint8_t* block) {
    const int64_t k = problem.k, padded = padded_k(problem);
    for (int64_t j = 0; j < columns.count; ++j) {
        std::memcpy(block + j * padded, weight.qdata + (columns.first + j) * k, k);
        std::memset(block + j * padded + k, 0, padded - k);
    }
    return true;
}

bool unpack(const Problem& problem, const uint8_t* block, Columns columns, const PlainWeight& weight) {
    for (int64_t j = 0; j < columns.count; ++j)
        std::memcpy(weight.qdata + (columns.first + j) * problem.k, block + j * padded_k(problem), problem.k);
    return true;
}

void reject_nothing(const Problem&, std::vector<std::string>&) {}

// Fixed cycles of a call, and multiply-accumulates a cycle: modelled on Neoverse V1 (i8mm) and N1 (dotprod, baseline).
// Rows that fill no tile load the weight for themselves alone.
template <int kMacsPerCycle>
double cost(const Problem& problem, int64_t m, const CpuFeatures&) {
    const double rows = static_cast<double>(m + m % kPortableRows);
    return 300.0 + rows * static_cast<double>(problem.n) * static_cast<double>(padded_k(problem)) / kMacsPerCycle;
}

// An instruction set's functions.
struct Functions {
    void (*pack_lhs)(const Problem&, const LhsPart&, int8_t*);
    bool (*multiply)(const Multiplication&);
    int64_t (*lhs_bytes)(const Problem&);
};

template <const int64_t& kValueBytes>
int64_t lhs_bytes(const Problem& problem) {
    return kPortableRows * padded_k(problem) * kValueBytes;
}

template <int kMacsPerCycle>
constexpr Kernel portable(const char* id, const char* summary, uint32_t features,
                          void (*reject)(const Problem&, std::vector<std::string>&), const Functions& functions) {
    Kernel kernel = named_kernel(id, summary, Scheme::kInt8, features, reject);
    if (functions.multiply == nullptr) return kernel;
    kernel.cost = cost<kMacsPerCycle>;
    kernel.packing_format = packing_format;
    kernel.column_step = kPortableColumns;
    kernel.block_bytes = block_bytes;
    kernel.pack = pack;
    kernel.unpack = unpack;
    kernel.row_step = kPortableRows;
    kernel.padded_k = padded_k;
    kernel.lhs_bytes = functions.lhs_bytes;
    kernel.pack_lhs = functions.pack_lhs;
    kernel.lhs_step = 1;
    kernel.multiply = functions.multiply;
    kernel.most_rows = kMostRows;
    return kernel;
}

#define AO_ARM_FUNCTIONS(isa) \
    Functions { isa::portable_pack_lhs, isa::portable_multiply, lhs_bytes<isa::kPortableLhsBytes> }
constexpr Functions kBaseline = AO_ARM_FUNCTIONS(isa_baseline);
#if defined(__aarch64__)
constexpr Functions kDotprodFunctions = AO_ARM_FUNCTIONS(isa_dotprod), kI8mmFunctions = AO_ARM_FUNCTIONS(isa_i8mm);
#else
constexpr Functions kDotprodFunctions = {}, kI8mmFunctions = {};
#endif
#undef AO_ARM_FUNCTIONS

constexpr auto kAArch64Only = reject_elsewhere<Architecture::kAArch64>;

const Kernel kPortableBaseline =
    portable<4>("portable/baseline", "plain C++ for any CPU", kNoFeature, reject_nothing, kBaseline);
const Kernel kPortableDotprod = portable<29>("portable/dotprod", "plain C++, compiled for dot product instructions",
                                             kDotprod, kAArch64Only, kDotprodFunctions);
const Kernel kPortableI8mm =
    portable<58>("portable/i8mm", "plain C++, compiled for dot product and int8 matrix instructions", kDotprod | kI8mm,
                 kAArch64Only, kI8mmFunctions);

}  // namespace

std::vector<const Kernel*> portable_int8_kernels() { return {&kPortableI8mm, &kPortableDotprod, &kPortableBaseline}; }

}  // namespace ao_arm
