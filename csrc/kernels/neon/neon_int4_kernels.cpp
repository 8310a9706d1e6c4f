// The table's entries for our own 4-bit micro-kernels on AArch64.
#include <cstring>

#include "core/architecture.h"
#include "kernels/int4_column_block.h"
#include "kernels/neon/neon_int4_gemm.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace ao_arm {
namespace {

// An instruction set's arrangements. Columns: that share a vector; Depth: bytes of each that lie together.
struct I8mm {
    using ColumnBlock = Int4ColumnBlock<kNeonInt4Columns, 2, 8, 8, false>;
    static constexpr int64_t kRows = kI8mmRows;
    static constexpr const char* kFormat = "8 columns, vectors of 2 columns by 16 of k";
};
struct Dotprod {
    using ColumnBlock = Int4ColumnBlock<kNeonInt4Columns, 4, 4, 4, false>;
    static constexpr int64_t kRows = kDotprodRows;
    static constexpr const char* kFormat = "8 columns, vectors of 4 columns by 8 of k";
};

// Modelled multiply-accumulates a cycle, and groups of an output a cycle. An i8mm instruction multiplies two rows, but
// a lone row is multiplied by dot products, at half their speed.
template <class Set, int kMacsPerCycle, int kGroupsPerCycle>
double cost(const Problem& problem, int64_t m, const CpuFeatures&) {
    const bool pairs = Set::kRows == kI8mmRows;
    const double rows = static_cast<double>(pairs ? round_up(m, 2) : m);
    const double outputs = rows * static_cast<double>(round_up(problem.n, kNeonInt4Columns));
    return 500.0 + outputs * (static_cast<double>(problem.padded_k()) / kMacsPerCycle +
                              static_cast<double>(problem.groups()) / kGroupsPerCycle);
}

template <class Set>
std::string packing_format(const Problem&) {
    return Set::kFormat;
}

int64_t padded_k(const Problem& problem) { return problem.padded_k(); }

#if defined(__aarch64__)
// The first 8 values of both rows, then the others.
inline void interleave_eights(const int8_t* first, const int8_t* second, int8_t* low, int8_t* high) {
    const int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(first)), b = vreinterpretq_s64_s8(vld1q_s8(second));
    vst1q_s8(low, vreinterpretq_s8_s64(vzip1q_s64(a, b)));
    vst1q_s8(high, vreinterpretq_s8_s64(vzip2q_s64(a, b)));
}

// Rows in pairs, 8 values of each. A row without a partner is read as both rows of its pair.
void pack_pairs(const Problem& problem, const LhsPart& part, int8_t* block) {
    const int64_t padded_k = problem.padded_k(), stride = i8mm_pairs(part.of) * 16;
    for (int64_t row = 0; row < part.count; row += 2) {
        const int8_t *one = part.rows[row], *other = part.rows[row + 1 < part.count ? row + 1 : row];
        int8_t* to = block + (part.first + row) * 8;
        static_assert(kGroupStep % 16 == 0, "padded_k is a multiple of what is moved at a time");
        for (int64_t l = 0; l < padded_k; l += 16, to += 2 * stride)
            interleave_eights(one + l, other + l, to, to + stride);
    }
}

constexpr auto kPackPairs = pack_pairs;
constexpr bool (*kI8mmMultiply)(const Multiplication&) = isa_i8mm::neon_int4_multiply;
constexpr bool (*kDotprodMultiply)(const Multiplication&) = isa_dotprod::neon_int4_multiply;
#else
constexpr void (*kPackPairs)(const Problem&, const LhsPart&, int8_t*) = nullptr;
constexpr bool (*kI8mmMultiply)(const Multiplication&) = nullptr, (*kDotprodMultiply)(const Multiplication&) = nullptr;
#endif

float unit(const Problem& problem) { return problem.zero_points ? 1.0f : 0.0625f; }

template <class Set, int kMacsPerCycle, int kGroupsPerCycle>
constexpr Kernel neon(const char* id, const char* summary, uint32_t features, bool (*multiply)(const Multiplication&)) {
    Kernel kernel = named_kernel(id, summary, Scheme::kInt4, features, reject_elsewhere<Architecture::kAArch64>);
    if (multiply == nullptr) return kernel;
    kernel.cost = cost<Set, kMacsPerCycle, kGroupsPerCycle>;
    kernel.packing_format = packing_format<Set>;
    kernel.column_step = kNeonInt4Columns;
    kernel.block_bytes = Set::ColumnBlock::block_bytes;
    kernel.pack = Set::ColumnBlock::pack;
    kernel.unpack = Set::ColumnBlock::unpack;
    kernel.row_step = Set::kRows;
    kernel.padded_k = padded_k;
    kernel.pack_lhs = Set::kRows == kI8mmRows ? kPackPairs : nullptr;
    kernel.lhs_step = Set::kRows == kI8mmRows ? 2 : 1;
    kernel.multiply = multiply;
    kernel.most_rows = 32;
    kernel.unit = unit;
    return kernel;
}

const Kernel kNeonI8mm = neon<I8mm, 110, 5>("neon/int4_i8mm", "own 4-bit micro-kernels on matrix instructions",
                                            kDotprod | kI8mm, kI8mmMultiply);
const Kernel kNeonDotprod = neon<Dotprod, 28, 5>(
    "neon/int4_dotprod", "own 4-bit micro-kernels on dot product instructions", kDotprod, kDotprodMultiply);

}  // namespace

std::vector<const Kernel*> neon_int4_kernels() { return {&kNeonI8mm, &kNeonDotprod}; }

}  // namespace ao_arm
