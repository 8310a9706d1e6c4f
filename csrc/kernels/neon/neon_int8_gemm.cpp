// Compiled once per instruction set, with AO_ARM_ISA naming the namespace. Everything but the entry points is local.
//
// From the instruction set's header: Tile, whose sums fill at most 24 registers, with add_step to multiply one step of
// both operands, add_part to multiply a part of a lone row's vector, store_row to write one row, keep to write all sums
// in the arrangement from which resume reads them; interleave_rows, which turns 16 / kStep rows into a vector per step.
// A lone row stays as it is: a vector of it is 16 / kStep steps. With kLoneRowInVectors it is multiplied so, by
// add_part, without it step by step.
#include "kernels/neon/neon_int8_gemm.h"

#include "core/instruction_set.h"

#if defined(__ARM_FEATURE_SVE_MATMUL_INT8)
#include "kernels/neon/neon_int8_tile_sve.h"
#elif defined(__ARM_FEATURE_MATMUL_INT8)
#include "kernels/neon/neon_int8_tile_i8mm.h"
#else
#include "kernels/neon/neon_int8_tile_dotprod.h"
#endif

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

constexpr int64_t kColumns = kNeonTileColumns;
constexpr int64_t kRowsPerVector = 16 / kStep;

// Where the rows and columns of a tile do not fit in the first-level cache, here of a Neoverse core, both come anew for
// each tile. There all of them are multiplied in a part of k, of so many values, before the next part.
constexpr int64_t kFirstLevelBytes = 64 * 1024;
constexpr int64_t kPartOfK = 2048;

constexpr int64_t vectors_of(int64_t rows) { return (rows + kRowsPerVector - 1) / kRowsPerVector; }

// Bytes of `rows` rows for one step.
constexpr int64_t lhs_step_bytes(int64_t rows) { return rows == 1 ? kStep : 16 * vectors_of(rows); }

// Multiplies a lone row's vector, or `parts` parts of it, by as many steps of the columns.
template <int kPart, class Tile>
inline void add_parts(Tile& tile, int8x16_t row, const int8_t* rhs, int64_t tile_bytes, int64_t parts) {
    if constexpr (kPart < 16 / kStep) {
        if (kPart >= parts) return;
        tile.template add_part<kPart>(row, rhs + kPart * kStep * kColumns, tile_bytes);
        add_parts<kPart + 1>(tile, row, rhs, tile_bytes, parts);
    }
}

// Adds all steps of one block of rows to a tile; returns where the next block begins.
template <int kRows, class Tile>
inline const int8_t* add_steps(Tile& tile, const int8_t* lhs, const int8_t* rhs, int64_t steps, int64_t tile_bytes) {
    if constexpr (kRows == 1 && kLoneRowInVectors) {
        constexpr int64_t kParts = 16 / kStep;
        for (; steps >= kParts; steps -= kParts) {
            int8x16_t row = vld1q_s8(lhs);
            __asm__(""
                    : "+w"(row));  // or the compiler would load each part by itself, and loads are what this waits for
            add_parts<0>(tile, row, rhs, tile_bytes, kParts);
            lhs += 16;
            rhs += kParts * kStep * kColumns;
        }
        // Reads beyond the row, into what belongs to its block as well.
        if (steps > 0) add_parts<0>(tile, vld1q_s8(lhs), rhs, tile_bytes, steps);
        return lhs + steps * kStep;
    } else {
        do {
            tile.add_step(lhs, rhs, tile_bytes);
            lhs += lhs_step_bytes(kRows);
            rhs += kStep * kColumns;
        } while (--steps != 0);
        return lhs;
    }
}

// What a micro-kernel multiplies: whole blocks of its rows by its tiles of columns, in all of k or a part.
struct Operands {
    const int8_t* lhs;
    const int8_t* rhs;
    int64_t steps;  // of all k
    int64_t first;  // of the part
    int64_t count;
    int32_t* sums;
    int64_t sums_stride;
    int64_t rows;
};

using MicroKernel = void (*)(const Operands& operands);

// kRows rows by kTiles tiles of columns. The more of both, the fewer loads there are for each multiplication.
template <class Lhs, bool kInParts, int kRows, int kTiles>
void multiply(const Operands& operands) {
    const int64_t tile_bytes = operands.steps * kStep * kColumns;
    const int64_t sums_stride = operands.sums_stride;
    const int64_t others = (operands.steps - operands.count) * lhs_step_bytes(kRows);
    const bool resumes = kInParts && operands.first > 0;
    const bool ends = !kInParts || operands.first + operands.count == operands.steps;
    const int8_t* lhs = operands.lhs + operands.first * lhs_step_bytes(kRows);
    const int8_t* rhs = operands.rhs + operands.first * kStep * kColumns;
    int32_t* sums = operands.sums;
    for (int64_t row = 0; row < operands.rows; row += kRows) {
        Tile<Lhs, kRows, kTiles> tile;
        resumes ? tile.resume(sums, sums_stride) : tile.clear();
        lhs = add_steps<kRows>(tile, lhs, rhs, operands.count, tile_bytes) + (kInParts ? others : 0);
        if (!ends) {
            tile.keep(sums, sums_stride);
            sums += kRows * sums_stride;
            continue;
        }
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
            tile.store_row(i, sums);
            sums += sums_stride;
        }
    }
}

// By rows. With few of them, several tiles of columns fit in the registers.
template <class Lhs, bool kInParts>
struct MicroKernels {
    template <int kRows, int kTiles>
    static constexpr MicroKernel kKernel = multiply<Lhs, kInParts, kRows, kTiles>;
    static constexpr MicroKernel kOneTile[] = {nullptr,       kKernel<1, 1>, kKernel<2, 1>,
                                               kKernel<3, 1>, kKernel<4, 1>, kKernel<5, 1>,
                                               kKernel<6, 1>, kKernel<7, 1>, kKernel<8, 1>};
    static constexpr MicroKernel kTwoTiles[] = {nullptr, kKernel<1, 2>, kKernel<2, 2>, kKernel<3, 2>, kKernel<4, 2>};
    static constexpr MicroKernel kFourTiles[] = {nullptr, kKernel<1, 4>, kKernel<2, 4>};
};

// All rows by one or more tiles of columns, which stay in the first-level cache while the rows pass by.
template <class Lhs, bool kInParts>
void multiply_all(Operands operands, int tiles) {
    using Kernels = MicroKernels<Lhs, kInParts>;
    const int64_t rest = operands.rows % kNeonTileRows;
    if constexpr (!kInParts) {
        if (tiles == 4) return Kernels::kFourTiles[rest](operands);
        if (tiles == 2) return Kernels::kTwoTiles[rest](operands);
    }
    operands.rows -= rest;
    Kernels::kOneTile[kNeonTileRows](operands);
    if (rest == 0) return;
    operands.lhs += operands.rows * operands.steps * kStep;
    operands.sums += operands.rows * operands.sums_stride;
    operands.rows = rest;
    Kernels::kOneTile[rest](operands);
}

// All rows by all columns. With few rows in all of k, several tiles at a time.
template <class Lhs, bool kInParts>
void multiply_columns(Operands operands, int64_t tiles) {
    const int64_t most = kInParts || operands.rows > 4 ? 1 : operands.rows > 2 ? 2 : 4;
    while (tiles > 0) {
        const int together = static_cast<int>(tiles < most ? 1 : most);
        multiply_all<Lhs, kInParts>(operands, together);
        operands.rhs += together * kColumns * operands.steps * kStep;
        operands.sums += together * kColumns;
        tiles -= together;
    }
}

template <class Lhs>
void multiply_call(const Multiplication& call) {
    const int64_t steps = divide_up(call.problem->k, kStep);
    const int64_t tiles = divide_up(call.columns, kColumns);  // there is room for the last one's surplus columns
    Operands operands = {call.lhs,
                         reinterpret_cast<const int8_t*>(call.weight),
                         steps,
                         0,
                         steps,
                         static_cast<int32_t*>(call.sums),
                         call.sums_stride,
                         call.m};
    if (call.m <= 4 || (kNeonTileRows + kColumns) * steps * kStep <= kFirstLevelBytes)
        return multiply_columns<Lhs, false>(operands, tiles);
    const int64_t most = divide_up(steps, divide_up(steps * kStep, kPartOfK));
    for (; operands.first < steps; operands.first += most) {
        operands.count = steps - operands.first < most ? steps - operands.first : most;
        multiply_columns<Lhs, true>(operands, tiles);
    }
}

}  // namespace

void neon_pack_lhs(const Problem& problem, const LhsPart& part, int8_t* block) {
    const int64_t bytes = (problem.k + kStep - 1) / kStep * kStep;
    if (part.of == 1) {
        __builtin_memcpy(block, part.rows[0], bytes);
        return;
    }
    const int64_t vectors = vectors_of(part.of);
    for (int64_t i = 0; i < part.count; i += kRowsPerVector) {
        const int8_t* together[kRowsPerVector];
        for (int64_t row = 0; row < kRowsPerVector; ++row)
            together[row] = part.rows[i + row < part.count ? i + row : i];  // what comes of surplus rows is not stored
        interleave_rows(together, bytes, block + 16 * ((part.first + i) / kRowsPerVector), 16 * vectors);
    }
}

bool neon_multiply(const Multiplication& call) {
    kServesUnsignedLhs&& call.lhs_unsigned ? multiply_call<UnsignedLhs>(call) : multiply_call<SignedLhs>(call);
    return true;
}

}  // namespace AO_ARM_ISA
}  // namespace ao_arm
