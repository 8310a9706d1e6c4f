// Compiled once per instruction set, with AO_ARM_ISA naming the namespace. Everything but the entry points is local.
//
// Nibbles hold q + 8, in [0, 15], and multiply-accumulate instructions of x86 take them as they are, unsigned. What is
// too much, (zero_point + 8) * (sum of the activations), is taken off each group's sum.
#include "kernels/portable/portable_int4_gemm.h"

#include "core/instruction_set.h"
#include "rows/element_types.h"

// multiply_step<kRows>: acc[r][j] += sum over kGroupStep values of row r times column j.
#if defined(__aarch64__)
#include "kernels/neon/int4_step_neon.h"
#endif

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

#if !defined(__aarch64__)
// Products and their sums over 8 values fit in int16, of which vectors hold twice as many.
template <int kRows>
inline void multiply_step(const int8_t* lhs, int64_t lhs_stride, const uint8_t* weight,
                          int32_t (*acc)[kPortableInt4Columns]) {
    for (int v = 0; v < kInt4StepVectors; ++v) {
        int16_t values[8][kPortableInt4Columns];
        for (int j = 0; j < kPortableInt4Columns; ++j) {
            for (int l = 0; l < 4; ++l) {
                const uint8_t byte = weight[v * kInt4VectorBytes + j * 4 + l];
                values[l][j] = static_cast<int16_t>(byte & 15);
                values[4 + l][j] = static_cast<int16_t>(byte >> 4);
            }
        }
        for (int r = 0; r < kRows; ++r) {
            int16_t sums[kPortableInt4Columns] = {};
            for (int l = 0; l < 8; ++l) {
                const int16_t activation = lhs[r * lhs_stride + v * 8 + l];
                for (int j = 0; j < kPortableInt4Columns; ++j)
                    sums[j] = static_cast<int16_t>(sums[j] + static_cast<int16_t>(activation * values[l][j]));
            }
            for (int j = 0; j < kPortableInt4Columns; ++j) acc[r][j] += sums[j];
        }
    }
}
#endif

// One column block.
struct ColumnBlock {
    const uint8_t* block;
    int64_t groups;
    int64_t padded_group;
    int64_t scale_bytes;
    bool zero_points;
};

template <int kRows>
void multiply_tile(const int8_t* lhs, int64_t padded_k, const int32_t* step_sums, const ColumnBlock& columns, float* to,
                   int64_t to_stride) {
    const int64_t steps = columns.padded_group / kGroupStep, all_steps = padded_k / kGroupStep;
    const uint8_t* weight = columns.block;
    float sums[kRows][kPortableInt4Columns] = {};
    for (int64_t g = 0; g < columns.groups; ++g) {
        int32_t acc[kRows][kPortableInt4Columns] = {};
        int32_t activations[kRows] = {};
        for (int64_t step = 0; step < steps; ++step) {
            multiply_step<kRows>(lhs, padded_k, weight, acc);
            for (int r = 0; r < kRows; ++r) activations[r] += step_sums[r * all_steps];
            lhs += kGroupStep;
            weight += kInt4StepVectors * kInt4VectorBytes;
            ++step_sums;
        }
        float scales[kPortableInt4Columns];
        int32_t zeros[kPortableInt4Columns];
        for (int j = 0; j < kPortableInt4Columns; ++j) {
            uint16_t half;
            __builtin_memcpy(&half, weight + 2 * j, sizeof half);
            scales[j] = BFloat16::load(half);
        }
        if (columns.scale_bytes == 4) __builtin_memcpy(scales, weight, sizeof scales);
        weight += kPortableInt4Columns * columns.scale_bytes;
        for (int j = 0; j < kPortableInt4Columns; ++j) zeros[j] = columns.zero_points ? weight[j] : 8;
        weight += columns.zero_points ? kPortableInt4Columns : 0;
        for (int r = 0; r < kRows; ++r)
            for (int j = 0; j < kPortableInt4Columns; ++j)
                sums[r][j] += scales[j] * static_cast<float>(acc[r][j] - zeros[j] * activations[r]);
    }
    for (int r = 0; r < kRows; ++r)
        for (int j = 0; j < kPortableInt4Columns; ++j) to[r * to_stride + j] = sums[r][j];
}

}  // namespace

bool portable_int4_multiply(const Multiplication& call) {
    const Problem& problem = *call.problem;
    const int64_t padded_k = problem.padded_k(), steps = padded_k / kGroupStep;
    ColumnBlock columns = {call.weight, problem.groups(), problem.padded_group(), problem.scale_bytes(),
                           problem.zero_points};
    const int64_t block_bytes =
        kPortableInt4Columns *
        (padded_k / 2 + problem.groups() * (columns.scale_bytes + (problem.zero_points ? 1 : 0)));
    for (int64_t column = 0; column < call.columns; column += kPortableInt4Columns, columns.block += block_bytes) {
        const int8_t* block = call.lhs;
        for (int64_t row = 0; row < call.m; row += kPortableInt4Rows, block += portable_int4_lhs_bytes(padded_k)) {
            const int64_t rows = call.m - row < kPortableInt4Rows ? call.m - row : kPortableInt4Rows;
            const int32_t* step_sums = portable_int4_lhs_sums(block, padded_k);
            float* sums = static_cast<float*>(call.sums) + row * call.sums_stride + column;
            int64_t r = 0;
            for (; r + 4 <= rows; r += 4)
                multiply_tile<4>(block + r * padded_k, padded_k, step_sums + r * steps, columns,
                                 sums + r * call.sums_stride, call.sums_stride);
            for (; r < rows; ++r)
                multiply_tile<1>(block + r * padded_k, padded_k, step_sums + r * steps, columns,
                                 sums + r * call.sums_stride, call.sums_stride);
        }
    }
    return true;
}

}  // namespace AO_ARM_ISA
}  // namespace ao_arm
