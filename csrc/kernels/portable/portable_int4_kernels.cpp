// The table's entry for 4-bit weights on any CPU.
#include <cstring>

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
double cost(const Problem& problem, int64_t m, const CpuFeatures&) {
    const double columns = static_cast<double>(round_up(problem.n, kPortableInt4Columns));
    return 500.0 + static_cast<double>(m) * columns * static_cast<double>(problem.padded_k()) / 4;
}

constexpr Kernel portable() {
    Kernel kernel = named_kernel("portable/int4_baseline", "no more than any CPU of the architecture has",
                                 Scheme::kInt4, kNoFeature, reject_nothing);
    kernel.cost = cost;
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
    kernel.multiply = isa_baseline::portable_int4_multiply;
    kernel.most_rows = 32;
    return kernel;
}

const Kernel kPortableBaseline = portable();

}  // namespace

std::vector<const Kernel*> portable_int4_kernels() { return {&kPortableBaseline}; }

}  // namespace ao_arm
