// The table's entries for our own 4-bit micro-kernels on AArch64.
#include <cstring>

#include "core/architecture.h"
#include "kernels/int4_column_block.h"
#include "kernels/neon/neon_int4_gemm.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#include "rows/element_types.h"
#endif

namespace ao_arm {
namespace {

// An instruction set's arrangements. Columns: of each half that share a vector; Depth: bytes of each that lie together.
struct I8mm {
    using ColumnBlock = Int4ColumnPairs<kNeonInt4Columns, 2, 8>;
    static constexpr int64_t kRows = kI8mmRows;
    static constexpr const char* kFormat = "8 columns, vectors of 2 and 2 columns by 8 of k";
};
struct Dotprod {
    using ColumnBlock = Int4ColumnPairs<kNeonInt4Columns, 4, 4>;
    static constexpr int64_t kRows = kDotprodRows;
    static constexpr const char* kFormat = "8 columns, vectors of 4 and 4 columns by 4 of k";
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

template <class Set>
int64_t lhs_bytes(const Problem& problem) {
    return neon_int4_lhs_bytes(problem, Set::kRows);
}

#if defined(__aarch64__)
// Where the sums of low nibbles start, less 8 times the sum of the activations, and those of whole bytes; 0 where
// groups' sums may leave the range of the micro-kernels' trick.
struct Starts {
    int32x4_t low;
    int32x4_t bytes;

    explicit Starts(const Problem& problem) {
        const bool is_long = problem.group > kLongInt4Group;
        low = vdupq_n_s32(is_long ? 0 : kMagicOf16Bits);
        // Beyond 2^31 it wraps around, as the sums do that are added to it.
        const uint32x4_t wrapped = vaddq_u32(vreinterpretq_u32_s32(low), vdupq_n_u32(is_long ? 0 : kMagicBits));
        bytes = vreinterpretq_s32_u32(wrapped);
    }
};

// Adds up the values of two rows of a group.
class SumsOfPair {
   public:
    void add(const int8x16_t (&first)[2], const int8x16_t (&second)[2]) {
        const auto of_row = [](const int8x16_t(&row)[2]) { return vpadalq_s8(vpaddlq_s8(row[0]), row[1]); };
        sums_ = vpadalq_s16(sums_, vpaddq_s16(of_row(first), of_row(second)));
    }

    // 8 times the sum of the one, twice, and of the other, twice.
    int32x4_t eightfold() const {
        const int32x4_t sums = vshlq_n_s32(vpaddq_s32(sums_, sums_), 3);
        return vzip1q_s32(sums, sums);
    }

   private:
    int32x4_t sums_ = vdupq_n_s32(0);
};

inline void load_two(const int8_t* from, int8x16_t (&to)[2]) {
    to[0] = vld1q_s8(from);
    to[1] = vld1q_s8(from + 16);
}

// The first 8 values of both rows, then the others.
inline void interleave_eights(int8x16_t first, int8x16_t second, int8_t* low, int8_t* high) {
    const int64x2_t a = vreinterpretq_s64_s8(first), b = vreinterpretq_s64_s8(second);
    vst1q_s8(low, vreinterpretq_s8_s64(vzip1q_s64(a, b)));
    vst1q_s8(high, vreinterpretq_s8_s64(vzip2q_s64(a, b)));
}

static_assert(kGroupStep == 32, "values that are taken at a time");

// Rows in pairs, 8 values of each. A row without a partner is read as both rows of its pair.
template <int64_t kGroup>
void pack_pairs(const Problem& problem, const LhsPart& part, int8_t* block) {
    const int64_t padded_k = problem.padded_k(), stride = i8mm_pairs(part.of) * 16;
    const int64_t group = kGroup == 0 ? problem.padded_group() : kGroup;
    const int64_t bytes_start = int4_bytes_start(part.of);
    const Starts of_sums(problem);
    // Of a lone row each column has two sums, each with half of the start.
    const int32x4_t shift = vdupq_n_s32(part.of == 1 ? -1 : 0);
    for (int64_t row = 0; row < part.count; row += 2) {
        const int8_t *one = part.rows[row], *other = part.rows[row + 1 < part.count ? row + 1 : row];
        int8_t* to = block + (part.first + row) * 8;
        auto* starts = reinterpret_cast<int32_t*>(block + kI8mmRows * padded_k);
        for (int64_t g = 0; g < padded_k; g += group, starts += 4 * int4_start_vectors(part.of)) {
            SumsOfPair sums;
            for (int64_t l = g; l < g + group; l += 32, to += 4 * stride) {
                int8x16_t first[2], second[2];
                load_two(one + l, first);
                load_two(other + l, second);
                interleave_eights(first[0], second[0], to, to + stride);
                interleave_eights(first[1], second[1], to + 2 * stride, to + 3 * stride);
                sums.add(first, second);
            }
            const int64_t at = (part.first + row) / 2;
            const int32x4_t low = vsubq_s32(of_sums.low, sums.eightfold());
            const int32x4_t bytes = vsubq_s32(of_sums.bytes, sums.eightfold());
            vst1q_s32(starts + 4 * at, vshlq_s32(low, shift));
            if ((part.of + 1) / 2 <= bytes_start) vst1q_s32(starts + 4 * (bytes_start + at), vshlq_s32(bytes, shift));
        }
    }
}

// Rows as they are; a row's start is in all lanes of a vector.
template <int64_t kGroup>
void pack_rows(const Problem& problem, const LhsPart& part, int8_t* block) {
    const int64_t padded_k = problem.padded_k(), group = kGroup == 0 ? problem.padded_group() : kGroup;
    const int64_t bytes_start = int4_bytes_start(part.of);
    const Starts of_sums(problem);
    for (int64_t i = 0; i < part.count; i += 2) {
        const int64_t at = part.first + i;
        const bool paired = i + 1 < part.count;
        const int8_t *one = part.rows[i], *other = part.rows[paired ? i + 1 : i];
        auto* starts = reinterpret_cast<int32_t*>(block + kDotprodRows * padded_k);
        std::memcpy(block + at * padded_k, one, padded_k);
        if (paired) std::memcpy(block + (at + 1) * padded_k, other, padded_k);
        for (int64_t g = 0; g < padded_k; g += group, starts += 4 * int4_start_vectors(part.of)) {
            SumsOfPair sums;
            for (int64_t l = g; l < g + group; l += 32) {
                int8x16_t first[2], second[2];
                load_two(one + l, first);
                load_two(other + l, second);
                sums.add(first, second);
            }
            const int64x2_t both = vreinterpretq_s64_s32(sums.eightfold());
            const int32x4_t eightfold[2] = {vreinterpretq_s32_s64(vdupq_laneq_s64(both, 0)),
                                            vreinterpretq_s32_s64(vdupq_laneq_s64(both, 1))};
            for (int64_t of = 0; of < (paired ? 2 : 1); ++of) {
                vst1q_s32(starts + 4 * (at + of), vsubq_s32(of_sums.low, eightfold[of]));
                if (part.of <= bytes_start)
                    vst1q_s32(starts + 4 * (bytes_start + at + of), vsubq_s32(of_sums.bytes, eightfold[of]));
            }
        }
    }
}

// Groups of 32, which are most, have no loop.
void pack_any_pairs(const Problem& problem, const LhsPart& part, int8_t* block) {
    (problem.padded_group() == 32 ? pack_pairs<32> : pack_pairs<0>)(problem, part, block);
}

void pack_any_rows(const Problem& problem, const LhsPart& part, int8_t* block) {
    (problem.padded_group() == 32 ? pack_rows<32> : pack_rows<0>)(problem, part, block);
}

constexpr void (*kPackPairs)(const Problem&, const LhsPart&, int8_t*) = pack_any_pairs;
constexpr void (*kPackRows)(const Problem&, const LhsPart&, int8_t*) = pack_any_rows;
constexpr bool (*kI8mmMultiply)(const Multiplication&) = isa_i8mm::neon_int4_multiply;
constexpr bool (*kDotprodMultiply)(const Multiplication&) = isa_dotprod::neon_int4_multiply;
#else
constexpr void (*kPackPairs)(const Problem&, const LhsPart&, int8_t*) = nullptr;
constexpr void (*kPackRows)(const Problem&, const LhsPart&, int8_t*) = nullptr;
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
    kernel.lhs_bytes = lhs_bytes<Set>;
    kernel.pack_lhs = Set::kRows == kI8mmRows ? kPackPairs : kPackRows;
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
