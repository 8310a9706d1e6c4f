// The table's entries for 4-bit weights on any CPU, one for each instruction set. They share one packing format.
#include <cstring>

#include "core/architecture.h"
#include "kernels/int4_column_block.h"
#include "kernels/portable/portable_int4_gemm.h"

namespace ao_arm {
namespace {

using ColumnBlock = Int4ColumnBlock<kPortableInt4Columns, 16, 4, 4, true>;

std::string packing_format(const Problem&) { return "16 columns, vectors of 16 columns by 8 of k"; }

int64_t padded_k(const Problem& problem) { return problem.padded_k(); }

int64_t lhs_bytes(const Problem& problem) { return portable_int4_lhs_bytes(problem.padded_k()); }

// Row after row, and the sums of their steps.
void pack_lhs(const Problem& problem, const LhsPart& part, int8_t* block) {
    const int64_t k = problem.padded_k(), steps = k / kGroupStep;
    auto* sums = const_cast<int32_t*>(portable_int4_lhs_sums(block, k));
    for (int64_t row = 0; row < part.count; ++row) {
        std::memcpy(block + (part.first + row) * k, part.rows[row], k);
        for (int64_t step = 0; step < steps; ++step) {
            int32_t sum = 0;
            for (int64_t l = 0; l < kGroupStep; ++l) sum += part.rows[row][step * kGroupStep + l];
            sums[(part.first + row) * steps + step] = sum;
        }
    }
}

void reject_nothing(const Problem&, std::vector<std::string>&) {}

// Fixed cycles of a call, and multiply-accumulates a cycle: rough estimates that only have to put the entries in order.
template <int kMacsPerCycle>
double cost(const Problem& problem, int64_t m, const CpuFeatures&) {
    const double columns = static_cast<double>(round_up(problem.n, kPortableInt4Columns));
    return 500.0 + static_cast<double>(m) * columns * static_cast<double>(problem.padded_k()) / kMacsPerCycle;
}

template <int kMacsPerCycle>
constexpr Kernel portable(const char* id, const char* summary, uint32_t features,
                          void (*reject)(const Problem&, std::vector<std::string>&),
                          bool (*multiply)(const Multiplication&)) {
    Kernel kernel = named_kernel(id, summary, Scheme::kInt4, features, reject);
    if (multiply == nullptr) return kernel;
    kernel.cost = cost<kMacsPerCycle>;
    kernel.packing_format = packing_format;
    kernel.column_step = kPortableInt4Columns;
    kernel.block_bytes = ColumnBlock::block_bytes;
    kernel.pack = ColumnBlock::pack;
    kernel.unpack = ColumnBlock::unpack;
    kernel.row_step = kPortableInt4Rows;
    kernel.padded_k = padded_k;
    kernel.lhs_bytes = lhs_bytes;
    kernel.pack_lhs = pack_lhs;
    kernel.lhs_step = 1;
    kernel.multiply = multiply;
    kernel.most_rows = 32;
    return kernel;
}

#if defined(__x86_64__)
constexpr auto kAvx2Multiply = isa_avx2::portable_int4_multiply;
constexpr auto kAvx512Multiply = isa_avx512::portable_int4_multiply;
#else
constexpr bool (*kAvx2Multiply)(const Multiplication&) = nullptr;
constexpr bool (*kAvx512Multiply)(const Multiplication&) = nullptr;
#endif

constexpr auto kX86Only = reject_elsewhere<Architecture::kX86>;

const Kernel kPortableBaseline = portable<4>("portable/int4_baseline", "no more than any CPU of the architecture has",
                                             kNoFeature, reject_nothing, isa_baseline::portable_int4_multiply);
const Kernel kPortableAvx2 =
    portable<24>("portable/int4_avx2", "AVX2's multiplication of bytes", kAvx2, kX86Only, kAvx2Multiply);
const Kernel kPortableAvx512Vnni =
    portable<80>("portable/int4_avx512vnni", "AVX-512's dot products of bytes", kAvx512Vnni, kX86Only, kAvx512Multiply);

}  // namespace

std::vector<const Kernel*> portable_int4_kernels() {
    return {&kPortableAvx512Vnni, &kPortableAvx2, &kPortableBaseline};
}

}  // namespace ao_arm
