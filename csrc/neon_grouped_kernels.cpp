// The table's rows for our own 4-bit micro-kernels on AArch64.
#include "grouped_block.h"
#include "grouped_kernel.h"
#include "neon_grouped_gemm.h"

namespace ao_arm {
namespace {

void reject(const GroupedProblem&, std::vector<std::string>& reasons) {
#if defined(__aarch64__)
    static_cast<void>(reasons);
#else
    reasons.push_back("it is built for AArch64 only");
#endif
}

// Modelled multiply-accumulates a cycle, and cycles for each group of each output.
template <int kMacsPerCycle, int kGroupsPerCycle>
double cost(const GroupedProblem& problem, const CpuFeatures&) {
    const double outputs = 16.0 * static_cast<double>(round_up(problem.n, kNeonColumns));
    return 500.0 + outputs * (static_cast<double>(problem.padded_k()) / kMacsPerCycle +
                              static_cast<double>(problem.groups()) / kGroupsPerCycle);
}

std::string i8mm_format(const GroupedProblem&) { return "8 columns, vectors of 2 columns by 16 of k"; }

std::string dotprod_format(const GroupedProblem&) { return "8 columns, vectors of 4 columns by 8 of k"; }

template <int64_t kRows>
int64_t lhs_bytes(int64_t padded_k) {
    return kRows * padded_k;
}

// Rows in pairs, 8 values of each.
LhsPlace place_in_pairs(int64_t rows, int64_t row, int64_t) {
    return {row / 2 * 16 + row % 2 * 8, i8mm_pairs(rows) * 16};
}

// A single row is read as both rows of a pair.
void repeat_single_row(int64_t rows, int64_t padded_k, int8_t* block) {
    if (rows != 1) return;
    for (int64_t l = 0; l < padded_k; l += 8) std::memcpy(block + 2 * l + 8, block + 2 * l, 8);
}

float unit(const GroupedProblem& problem) { return problem.zero_points ? 1.0f : 0.0625f; }

LhsPlace place_row(int64_t, int64_t row, int64_t padded_k) { return {row * padded_k, 8}; }

#if defined(__aarch64__)
constexpr auto kI8mmGemm = isa_i8mm::grouped_gemm;
constexpr auto kDotprodGemm = isa_dotprod::grouped_gemm;
#else
constexpr void (*kI8mmGemm)(const GroupedGemm&) = nullptr;
constexpr void (*kDotprodGemm)(const GroupedGemm&) = nullptr;
#endif

}  // namespace

const GroupedKernel kGroupedNeonI8mm = {"neon/int4_i8mm",
                                        "own 4-bit micro-kernels on matrix instructions",
                                        kDotprod | kI8mm,
                                        reject,
                                        cost<110, 5>,
                                        i8mm_format,
                                        kI8mmRows,
                                        kNeonColumns,
                                        I8mmBlock::block_bytes,
                                        I8mmBlock::pack,
                                        I8mmBlock::unpack,
                                        lhs_bytes<kI8mmRows>,
                                        place_in_pairs,
                                        repeat_single_row,
                                        kI8mmGemm,
                                        unit};

const GroupedKernel kGroupedNeonDotprod = {"neon/int4_dotprod",
                                           "own 4-bit micro-kernels on dot product instructions",
                                           kDotprod,
                                           reject,
                                           cost<28, 5>,
                                           dotprod_format,
                                           kDotprodRows,
                                           kNeonColumns,
                                           DotprodBlock::block_bytes,
                                           DotprodBlock::pack,
                                           DotprodBlock::unpack,
                                           lhs_bytes<kDotprodRows>,
                                           place_row,
                                           nullptr,
                                           kDotprodGemm,
                                           unit};

std::vector<const GroupedKernel*> neon_grouped_kernels() { return {&kGroupedNeonI8mm, &kGroupedNeonDotprod}; }

}  // namespace ao_arm
