// Compiled once per instruction set, with AO_ARM_ISA naming the namespace. Everything but the entry points is local.
//
// From the instruction set's header: Tile, whose sums fill at most 24 registers, with add_step to multiply one step of
// both operands, add_part to multiply a part of a lone row's vector, and store_row to write one row; interleave_rows,
// which turns 16 / kStep rows into a vector per step. A lone row stays as it is: a vector of it is 16 / kStep steps.
#include "neon_gemm.h"

#if defined(__ARM_FEATURE_MATMUL_INT8)
#include "neon_tile_i8mm.h"
#else
#include "neon_tile_dotprod.h"
#endif

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

constexpr int64_t kColumns = kNeonTileColumns;
constexpr int64_t kRowsPerVector = 16 / kStep;

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

// Adds all steps of one group of rows to a tile; returns where the next group begins.
template <int kRows, class Tile>
inline const int8_t* add_steps(Tile& tile, const int8_t* lhs, const int8_t* rhs, int64_t steps, int64_t tile_bytes) {
    if constexpr (kRows == 1) {
        constexpr int64_t kParts = 16 / kStep;
        for (; steps >= kParts; steps -= kParts) {
            int8x16_t row = vld1q_s8(lhs);
            __asm__(""
                    : "+w"(row));  // or the compiler would load each part by itself, and loads are what this waits for
            add_parts<0>(tile, row, rhs, tile_bytes, kParts);
            lhs += 16;
            rhs += kParts * kStep * kColumns;
        }
        // Reads beyond the row, into what belongs to its group as well.
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

// What a micro-kernel multiplies: whole groups of its rows by its tiles of columns.
struct Block {
    const int8_t* lhs;
    const int8_t* rhs;
    int64_t steps;
    int32_t* dst;
    int64_t dst_stride;
    int64_t rows;
};

using MicroKernel = void (*)(const Block& block);

// kRows rows by kTiles tiles of columns. The more of both, the fewer loads there are for each multiplication.
template <class Lhs, int kRows, int kTiles>
void multiply(const Block& block) {
    const int64_t tile_bytes = block.steps * kStep * kColumns;
    const int64_t dst_stride = block.dst_stride;
    const int8_t* lhs = block.lhs;
    int32_t* dst = block.dst;
    for (int64_t row = 0; row < block.rows; row += kRows) {
        Tile<Lhs, kRows, kTiles> tile;
        tile.clear();
        lhs = add_steps<kRows>(tile, lhs, block.rhs, block.steps, tile_bytes);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
            tile.store_row(i, dst);
            dst += dst_stride;
        }
    }
}

// By rows. With few of them, several tiles of columns fit in the registers.
template <class Lhs>
struct MicroKernels {
    static constexpr MicroKernel kOneTile[] = {nullptr,
                                               multiply<Lhs, 1, 1>,
                                               multiply<Lhs, 2, 1>,
                                               multiply<Lhs, 3, 1>,
                                               multiply<Lhs, 4, 1>,
                                               multiply<Lhs, 5, 1>,
                                               multiply<Lhs, 6, 1>,
                                               multiply<Lhs, 7, 1>,
                                               multiply<Lhs, 8, 1>};
    static constexpr MicroKernel kTwoTiles[] = {nullptr, multiply<Lhs, 1, 2>, multiply<Lhs, 2, 2>, multiply<Lhs, 3, 2>,
                                                multiply<Lhs, 4, 2>};
    static constexpr MicroKernel kFourTiles[] = {nullptr, multiply<Lhs, 1, 4>, multiply<Lhs, 2, 4>};
};

// All rows by one or more tiles of columns, which stay in the first-level cache while the rows pass by.
template <class Lhs>
void multiply_all(Block block, int tiles) {
    using Kernels = MicroKernels<Lhs>;
    const int64_t rest = block.rows % kLhsGroupRows;
    if (tiles == 4) return Kernels::kFourTiles[rest](block);
    if (tiles == 2) return Kernels::kTwoTiles[rest](block);
    block.rows -= rest;
    Kernels::kOneTile[kLhsGroupRows](block);
    if (rest == 0) return;
    block.lhs += block.rows * block.steps * kStep;
    block.dst += block.rows * block.dst_stride;
    block.rows = rest;
    Kernels::kOneTile[rest](block);
}

template <class Lhs>
void gemm_of(const PanelGemm& call) {
    const int64_t steps = (call.k + kStep - 1) / kStep;
    const auto* rhs = reinterpret_cast<const int8_t*>(call.panel);
    int64_t column = 0;
    while (column + kColumns <= call.columns) {
        const int64_t left = call.columns - column;
        const int tiles = call.m <= 2 && left >= 4 * kColumns ? 4 : call.m <= 4 && left >= 2 * kColumns ? 2 : 1;
        multiply_all<Lhs>({call.lhs, rhs, steps, call.dst + column, call.dst_stride, call.m}, tiles);
        rhs += tiles * kColumns * steps * kStep;
        column += tiles * kColumns;
    }
    if (column == call.columns) return;
    // The micro-kernels write whole tiles; dst has no room for the rest of the last one.
    int32_t last[kBlockRows * kColumns];
    multiply_all<Lhs>({call.lhs, rhs, steps, last, kColumns, call.m}, 1);
    for (int64_t i = 0; i < call.m; ++i)
        for (int64_t j = column; j < call.columns; ++j)
            call.dst[i * call.dst_stride + j] = last[i * kColumns + j - column];
}

}  // namespace

void neon_pack_lhs(const int8_t* rows, int64_t m, int64_t stride, int8_t* packed) {
    if (m == 1) {
        __builtin_memcpy(packed, rows, stride);
        return;
    }
    const int64_t vectors = vectors_of(m);
    for (int64_t vector = 0; vector < vectors; ++vector) {
        const int8_t* together[kRowsPerVector];
        for (int64_t i = 0; i < kRowsPerVector; ++i) {
            const int64_t row = vector * kRowsPerVector + i;
            together[i] = rows + (row < m ? row : 0) * stride;  // what comes of the surplus rows is not stored
        }
        interleave_rows(together, stride, packed + 16 * vector, 16 * vectors);
    }
}

bool neon_gemm(const PanelGemm& call) {
    kServesUnsignedLhs&& call.lhs_unsigned ? gemm_of<UnsignedLhs>(call) : gemm_of<SignedLhs>(call);
    return true;
}

}  // namespace AO_ARM_ISA
}  // namespace ao_arm
