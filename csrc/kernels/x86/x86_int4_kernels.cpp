// The table's entries for our own micro-kernels for 4-bit weights on x86, one for each instruction set.
#include "core/architecture.h"
#include "kernels/int4_column_block.h"
#include "kernels/x86/x86_int4_gemm.h"

namespace ao_arm {
namespace {

using ColumnBlock = Int4ColumnBlock<kX86Int4Columns, kX86Int4Columns, 4, 4, true>;

std::string packing_format(const Problem&) { return "16 columns, vectors of 16 columns by 8 of k"; }

int64_t padded_k(const Problem& problem) { return problem.padded_k(); }

int64_t lhs_bytes(const Problem& problem) { return x86_int4_lhs_bytes(problem.padded_k()); }

// Fixed cycles of a call, and multiply-accumulates a cycle.
template <int kMacsPerCycle>
double cost(const Problem& problem, int64_t m, const CpuFeatures&) {
    const double columns = static_cast<double>(round_up(problem.n, kX86Int4Columns));
    return 500.0 + static_cast<double>(m) * columns * static_cast<double>(problem.padded_k()) / kMacsPerCycle;
}

// An instruction set's functions.
struct Functions {
    void (*pack_lhs)(const Problem&, const LhsPart&, int8_t*);
    bool (*multiply)(const Multiplication&);
};

template <int kMacsPerCycle>
constexpr Kernel x86(const char* id, const char* summary, uint32_t features, const Functions& functions) {
    Kernel kernel = named_kernel(id, summary, Scheme::kInt4, features, reject_elsewhere<Architecture::kX86>);
    if (functions.multiply == nullptr) return kernel;
    kernel.cost = cost<kMacsPerCycle>;
    kernel.packing_format = packing_format;
    kernel.column_step = kX86Int4Columns;
    kernel.block_bytes = ColumnBlock::block_bytes;
    kernel.pack = ColumnBlock::pack;
    kernel.unpack = ColumnBlock::unpack;
    kernel.row_step = kX86Int4Rows;
    kernel.padded_k = padded_k;
    kernel.lhs_bytes = lhs_bytes;
    kernel.pack_lhs = functions.pack_lhs;
    kernel.lhs_step = 1;
    kernel.multiply = functions.multiply;
    kernel.most_rows = kMostRows;
    return kernel;
}

#if defined(__x86_64__)
constexpr Functions kAvx2Functions = {isa_avx2::x86_int4_pack_lhs, isa_avx2::x86_int4_multiply};
constexpr Functions kAvx512Functions = {isa_avx512::x86_int4_pack_lhs, isa_avx512::x86_int4_multiply};
#else
constexpr Functions kAvx2Functions = {}, kAvx512Functions = {};
#endif

const Kernel kAvx2Kernel = x86<20>("portable/int4_avx2", "own micro-kernels for AVX2", kAvx2, kAvx2Functions);
const Kernel kAvx512VnniKernel = x86<60>("portable/int4_avx512vnni", "own dot product micro-kernels for AVX-512 VNNI",
                                         kAvx512Vnni, kAvx512Functions);

}  // namespace

std::vector<const Kernel*> x86_int4_kernels() { return {&kAvx512VnniKernel, &kAvx2Kernel}; }

}  // namespace ao_arm
