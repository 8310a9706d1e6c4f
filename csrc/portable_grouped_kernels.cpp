// The table's rows for 4-bit weights on any CPU, one for each instruction set. They share one packing format.
#include "architecture.h"
#include "grouped_block.h"
#include "grouped_kernel.h"
#include "portable_grouped_gemm.h"

namespace ao_arm {
namespace {

std::string packing_format(const GroupedProblem&) { return "16 columns, vectors of 16 columns by 8 of k"; }

// Row after row, and the sums of their steps.
void pack_lhs(const int8_t* const* rows, int64_t count, int64_t padded_k, int8_t* block) {
    for (int64_t row = 0; row < count; ++row) std::memcpy(block + row * padded_k, rows[row], padded_k);
    auto* sums = const_cast<int32_t*>(portable_lhs_sums(block, padded_k));
    for (int64_t step = 0; step < count * (padded_k / kGroupedStep); ++step) {
        int32_t sum = 0;
        for (int64_t l = 0; l < kGroupedStep; ++l) sum += block[step * kGroupedStep + l];
        sums[step] = sum;
    }
}

float unit(const GroupedProblem&) { return 1; }

void reject_nothing(const GroupedProblem&, std::vector<std::string>&) {}

constexpr auto kX86Only = reject_elsewhere<Architecture::kX86, GroupedProblem>;

// Fixed cycles of a call, and multiply-accumulates a cycle: rough estimates that only have to put the rows in order.
template <int kMacsPerCycle>
double cost(const GroupedProblem& problem, const CpuFeatures&) {
    const double columns = static_cast<double>(round_up(problem.n, kPortableColumns));
    return 500.0 + 16.0 * columns * static_cast<double>(problem.padded_k()) / kMacsPerCycle;
}

template <int kMacsPerCycle>
constexpr GroupedKernel row(const char* id, const char* summary, uint32_t features,
                            void (*reject)(const GroupedProblem&, std::vector<std::string>&),
                            void (*gemm)(const GroupedGemm&)) {
    return {id,
            summary,
            features,
            reject,
            cost<kMacsPerCycle>,
            packing_format,
            kPortableGroupedRows,
            kPortableColumns,
            PortableBlock::block_bytes,
            PortableBlock::pack,
            PortableBlock::unpack,
            portable_lhs_bytes,
            pack_lhs,
            gemm,
            unit};
}

#if defined(__x86_64__)
constexpr auto kAvx2Gemm = isa_avx2::grouped_gemm;
constexpr auto kAvx512Gemm = isa_avx512::grouped_gemm;
#else
constexpr void (*kAvx2Gemm)(const GroupedGemm&) = nullptr;
constexpr void (*kAvx512Gemm)(const GroupedGemm&) = nullptr;
#endif

}  // namespace

const GroupedKernel kGroupedPortableBaseline =
    row<4>("portable/int4_baseline", "no more than any CPU of the architecture has", kNoFeature, reject_nothing,
           isa_baseline::grouped_gemm);
const GroupedKernel kGroupedPortableAvx2 =
    row<24>("portable/int4_avx2", "AVX2's multiplication of bytes", kAvx2, kX86Only, kAvx2Gemm);
const GroupedKernel kGroupedPortableAvx512Vnni =
    row<80>("portable/int4_avx512vnni", "AVX-512's dot products of bytes", kAvx512Vnni, kX86Only, kAvx512Gemm);

std::vector<const GroupedKernel*> portable_grouped_kernels() {
    return {&kGroupedPortableAvx512Vnni, &kGroupedPortableAvx2, &kGroupedPortableBaseline};
}

}  // namespace ao_arm
