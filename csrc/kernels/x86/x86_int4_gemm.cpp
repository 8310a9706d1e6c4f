// Compiled once per instruction set, with AO_ARM_ISA naming the namespace. Everything but the entry points is local.
//
// Nibbles hold q + 8, in [0, 15], and multiply-accumulate instructions of x86 take them as they are, unsigned. What is
// too much, (zero_point + 8) * (sum of the activations), is where each group's sum starts from, negated.
//
// From the instruction set's header: Tile, whose sums of a group stay in registers while add_steps multiplies
// kGroupStep values of k after kGroupStep; a strip, the columns that a tile takes one or more of.
#include "kernels/x86/x86_int4_gemm.h"

#include "core/instruction_set.h"

#if defined(__AVX512VNNI__)
#include "kernels/x86/x86_int4_tile_avx512.h"
#else
#include "kernels/x86/x86_int4_tile_avx2.h"
#endif

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

constexpr int64_t kStripsPerBlock = kX86Int4Columns / kStripColumns;

// What each tile of a call multiplies by.
struct Weight {
    const uint8_t* blocks;
    int64_t block_bytes;
    int64_t groups;
    int64_t group_steps;
    int64_t scale_bytes;
    bool zero_points;
};

// Rows that a tile takes together.
struct Rows {
    const int8_t* values;
    int64_t stride;
    const int32_t* sums;  // before a group
    int64_t sums_stride;
};

template <int kRows, int kStrips>
inline void multiply_tile(const Rows& given_rows, const Weight& given_weight, int64_t strip, float* to,
                          int64_t to_stride) {
    const Rows rows = given_rows;
    const Weight weight = given_weight;
    const int64_t column = strip % kStripsPerBlock * kStripColumns;
    const uint8_t* block = weight.blocks + strip / kStripsPerBlock * weight.block_bytes;
    const int8_t* values = rows.values;
    const int32_t* sums = rows.sums;
    for (int r = 0; r < kRows; ++r)
        for (int j = 0; j < kStrips * kStripColumns; ++j) to[r * to_stride + j] = 0;
    for (int64_t g = 0; g < weight.groups; ++g) {
        const uint8_t* scales = block + weight.group_steps * kX86Int4StepBytes;
        const uint8_t* zeros = scales + kX86Int4Columns * weight.scale_bytes;
        Tile<kRows, kStrips> tile;
        tile.start(sums, sums + weight.group_steps, rows.sums_stride, weight.zero_points ? zeros + column : nullptr,
                   weight.block_bytes);
        tile.add_steps(values, rows.stride, block + column * 4, weight.block_bytes, weight.group_steps);
        tile.finish(scales + column * weight.scale_bytes, weight.scale_bytes, weight.block_bytes, to, to_stride);
        values += weight.group_steps * kGroupStep;
        sums += weight.group_steps;
        block = zeros + (weight.zero_points ? kX86Int4Columns : 0);
    }
}

// A tile's rows by strips up to `end`: by as many at once as fit, then by half as many.
template <int kRows, int kStrips = most_strips(kRows)>
void multiply_strips(const Rows& rows, const Weight& weight, int64_t strip, int64_t end, float* sums,
                     int64_t sums_stride) {
    for (; strip + kStrips <= end; strip += kStrips)
        multiply_tile<kRows, kStrips>(rows, weight, strip, sums + strip * kStripColumns, sums_stride);
    if constexpr (kStrips > 1) multiply_strips<kRows, kStrips / 2>(rows, weight, strip, end, sums, sums_stride);
}

using MultiplyStrips = void (*)(const Rows&, const Weight&, int64_t, int64_t, float*, int64_t);
constexpr MultiplyStrips kOfRows[] = {nullptr,
                                      multiply_strips<1>,
                                      multiply_strips<2>,
                                      multiply_strips<3>,
                                      multiply_strips<4>,
#if defined(__AVX512VNNI__)
                                      multiply_strips<5>,
                                      multiply_strips<6>,
                                      multiply_strips<7>,
                                      multiply_strips<8>
#endif
};

int32_t sum_of_step(const int8_t* values) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
    const __m256i moved = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));  // to [0, 255]
    const __m256i sums = _mm256_sad_epu8(moved, _mm256_setzero_si256());
    const __m128i halves = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    return _mm_cvtsi128_si32(halves) + _mm_extract_epi32(halves, 2) - 128 * static_cast<int32_t>(kGroupStep);
}

}  // namespace

void x86_int4_pack_lhs(const Problem& problem, const LhsPart& part, int8_t* block) {
    const int64_t k = problem.padded_k(), stride = x86_lhs_stride(k);
    auto* sums = reinterpret_cast<int32_t*>(block + kX86Int4Rows * stride) + part.first * x86_int4_sums(k);
    for (int64_t row = 0; row < part.count; ++row) {
        __builtin_memcpy(block + (part.first + row) * stride, part.rows[row], k);
        int32_t sum = 0;
        *sums++ = sum;
        for (int64_t l = 0; l < k; l += kGroupStep) *sums++ = sum += sum_of_step(part.rows[row] + l);
    }
}

// Columns that a tile takes stay in the caches while the rows pass by, in tiles of about as many.
bool x86_int4_multiply(const Multiplication& call) {
    const Problem& problem = *call.problem;
    const int64_t k = problem.padded_k(), stride = x86_lhs_stride(k), row_sums = x86_int4_sums(k);
    const int64_t strips = divide_up(call.columns, kX86Int4Columns) * kStripsPerBlock;
    const int64_t column_bytes = problem.scale_bytes() + (problem.zero_points ? 1 : 0);
    const int64_t block_bytes = kX86Int4Columns * (k / 2 + problem.groups() * column_bytes);
    const Weight weight = {call.weight,           block_bytes,
                           problem.groups(),      problem.padded_group() / kGroupStep,
                           problem.scale_bytes(), problem.zero_points};
    static_assert(kX86Int4Rows % kMostTileRows == 0, "a tile's rows are of one block");
    constexpr int64_t kTogether = 2 * most_strips(kMostTileRows);
    for (int64_t strip = 0; strip < strips; strip += kTogether) {
        const int64_t end = strip + kTogether < strips ? strip + kTogether : strips;
        const int8_t* block = call.lhs;
        for (int64_t row = 0; row < call.m;) {
            const int64_t at = row % kX86Int4Rows;
            const int64_t rows = call.m - row < kMostTileRows ? call.m - row : kMostTileRows;
            const auto* sums = reinterpret_cast<const int32_t*>(block + kX86Int4Rows * stride);
            kOfRows[rows]({block + at * stride, stride, sums + at * row_sums, row_sums}, weight, strip, end,
                          static_cast<float*>(call.sums) + row * call.sums_stride, call.sums_stride);
            row += rows;
            if (row % kX86Int4Rows == 0) block += x86_int4_lhs_bytes(k);
        }
    }
    return true;
}

}  // namespace AO_ARM_ISA
}  // namespace ao_arm
