// The table's rows for our own 4-bit micro-kernels on AArch64.
#include "architecture.h"
#include "grouped_block.h"
#include "grouped_kernel.h"
#include "neon_grouped_gemm.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace ao_arm {
namespace {

constexpr auto reject = reject_elsewhere<Architecture::kAArch64, GroupedProblem>;

// Modelled multiply-accumulates a cycle, and cycles for each group of each output.
template <int kMacsPerCycle, int kGroupsPerCycle>
double cost(const GroupedProblem& problem, const CpuFeatures&) {
    const double outputs = 16.0 * static_cast<double>(round_up(problem.n, kNeonColumns));
    return 500.0 + outputs * (static_cast<double>(problem.padded_k()) / kMacsPerCycle +
                              static_cast<double>(problem.groups()) / kGroupsPerCycle);
}

std::string i8mm_format(const GroupedProblem&) { return "8 columns, vectors of 2 columns by 16 of k"; }

std::string dotprod_format(const GroupedProblem&) { return "8 columns, vectors of 4 columns by 8 of k"; }

// The first 8 values of both rows, then the others.
inline void interleave_eights(const int8_t* first, const int8_t* second, int8_t* low, int8_t* high) {
#if defined(__aarch64__)
    const int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(first)), b = vreinterpretq_s64_s8(vld1q_s8(second));
    vst1q_s8(low, vreinterpretq_s8_s64(vzip1q_s64(a, b)));
    vst1q_s8(high, vreinterpretq_s8_s64(vzip2q_s64(a, b)));
#else
    std::memcpy(low, first, 8);
    std::memcpy(low + 8, second, 8);
    std::memcpy(high, first + 8, 8);
    std::memcpy(high + 8, second + 8, 8);
#endif
}

template <int64_t kRows>
int64_t lhs_bytes(int64_t padded_k) {
    return kRows * padded_k;
}

// Rows in pairs, 8 values of each. A row without a partner is read as both rows of its pair.
void pack_pairs(const int8_t* const* rows, int64_t count, int64_t padded_k, int8_t* block) {
    const int64_t stride = i8mm_pairs(count) * 16;
    for (int64_t row = 0; row < count; row += 2) {
        const int8_t *first = rows[row], *second = rows[row + 1 < count ? row + 1 : row];
        int8_t* to = block + row * 8;
        static_assert(kGroupedStep % 16 == 0, "padded_k is a multiple of what is moved at a time");
        for (int64_t l = 0; l < padded_k; l += 16, to += 2 * stride) {
            interleave_eights(first + l, second + l, to, to + stride);
        }
    }
}

// Row after row.
void pack_rows(const int8_t* const* rows, int64_t count, int64_t padded_k, int8_t* block) {
    for (int64_t row = 0; row < count; ++row) std::memcpy(block + row * padded_k, rows[row], padded_k);
}

float unit(const GroupedProblem& problem) { return problem.zero_points ? 1.0f : 0.0625f; }

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
                                        pack_pairs,
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
                                           pack_rows,
                                           kDotprodGemm,
                                           unit};

std::vector<const GroupedKernel*> neon_grouped_kernels() { return {&kGroupedNeonI8mm, &kGroupedNeonDotprod}; }

}  // namespace ao_arm
