// The table's entries for our own int8 micro-kernels on x86, one for each instruction set. They share one packing
// format.
#include <cstring>

#include "core/architecture.h"
#include "core/kernel.h"
#include "kernels/x86/lhs_stride.h"
#include "kernels/x86/x86_int8_gemm.h"

namespace ao_arm {
namespace {

constexpr int64_t kRowStep = 8;

int64_t padded_k(const Problem& problem) { return x86_lhs_stride(problem.k); }

std::string packing_format(const Problem&) { return "16 columns by 4 of k, unsigned"; }

// A column block is whole however many of its columns there are.
int64_t block_bytes(const Problem& problem, int64_t) { return kX86BlockColumns * round_up(problem.k, kX86Step); }

// Calls body(place in the block, place in (n, k)) for each value.
template <class Body>
void each_value(const Problem& problem, Columns columns, const Body& body) {
    for (int64_t j = 0; j < columns.count; ++j)
        for (int64_t l = 0; l < problem.k; ++l)
            body(l / kX86Step * kX86StepBytes + j * kX86Step + l % kX86Step, (columns.first + j) * problem.k + l);
}

bool pack(const Problem& problem, const PlainWeight& weight, Columns columns, uint8_t* block) {
    std::memset(block, 0, block_bytes(problem, columns.count));
    each_value(problem, columns,
               [&](int64_t packed, int64_t plain) { block[packed] = static_cast<uint8_t>(weight.qdata[plain] + 128); });
    return true;
}

bool unpack(const Problem& problem, const uint8_t* block, Columns columns, const PlainWeight& weight) {
    each_value(problem, columns,
               [&](int64_t packed, int64_t plain) { weight.qdata[plain] = static_cast<int8_t>(block[packed] - 128); });
    return true;
}

// Fixed cycles of a call, and multiply-accumulates a cycle.
template <int kMacsPerCycle>
double cost(const Problem& problem, int64_t m, const CpuFeatures&) {
    const double columns = static_cast<double>(round_up(problem.n, kX86BlockColumns));
    return 300.0 + static_cast<double>(m) * columns * static_cast<double>(problem.k) / kMacsPerCycle;
}

template <const int64_t& kValueBytes>
int64_t lhs_bytes(const Problem& problem) {
    return kRowStep * padded_k(problem) * kValueBytes;
}

// What an instruction set has of its own.
struct Functions {
    void (*pack_lhs)(const Problem&, const LhsPart&, int8_t*);  // null: rows are multiplied as they come
    bool (*multiply)(const Multiplication&);
    int64_t (*lhs_bytes)(const Problem&);
};

template <int kMacsPerCycle>
constexpr Kernel x86(const char* id, const char* summary, uint32_t features, const Functions& functions) {
    Kernel kernel = named_kernel(id, summary, Scheme::kInt8, features, reject_elsewhere<Architecture::kX86>);
    if (functions.multiply == nullptr) return kernel;
    kernel.cost = cost<kMacsPerCycle>;
    kernel.packing_format = packing_format;
    kernel.column_step = kX86BlockColumns;
    kernel.block_bytes = block_bytes;
    kernel.pack = pack;
    kernel.unpack = unpack;
    kernel.row_step = kRowStep;
    kernel.padded_k = padded_k;
    kernel.lhs_bytes = functions.lhs_bytes;
    kernel.pack_lhs = functions.pack_lhs;
    kernel.lhs_step = 1;
    kernel.multiply = functions.multiply;
    kernel.most_rows = kMostRows;
    return kernel;
}

#if defined(__x86_64__)
constexpr Functions kAvx2Functions = {isa_avx2::x86_pack_lhs, isa_avx2::x86_multiply,
                                      lhs_bytes<isa_avx2::kX86LhsValueBytes>};
constexpr Functions kAvx512Functions = {nullptr, isa_avx512::x86_multiply, lhs_bytes<isa_avx512::kX86LhsValueBytes>};
#else
constexpr Functions kAvx2Functions = {}, kAvx512Functions = {};
#endif

const Kernel kAvx2Kernel = x86<20>("portable/avx2", "own micro-kernels for AVX2", kAvx2, kAvx2Functions);
const Kernel kAvx512VnniKernel =
    x86<100>("portable/avx512vnni", "own dot product micro-kernels for AVX-512 VNNI", kAvx512Vnni, kAvx512Functions);

}  // namespace

std::vector<const Kernel*> x86_int8_kernels() { return {&kAvx512VnniKernel, &kAvx2Kernel}; }

}  // namespace ao_arm
