// Compiled once per instruction set, with AO_ARM_ISA naming the namespace. Everything but the entry points is local.
//
// From the instruction set's header: TileOf, the tile of sums for so many rows and tiles of columns, which fills at
// most 24 registers, with add_step to multiply one step of both operands, add_part to multiply a part of a lone row's
// vector (that is what kLoneRowInVectors asks for), store_row to write one row, sums_of for four columns of it, keep to
// write all sums in the arrangement from which resume reads them; interleave_rows, which turns 16 / kStep rows into a
// vector per step. A lone row stays as it is: a vector of it is 16 / kStep steps.
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

// Adds all steps of one block of rows to a tile.
template <int kRows, class Tile>
inline void add_steps(Tile& tile, const int8_t* lhs, const int8_t* rhs, int64_t steps, int64_t tile_bytes) {
    if constexpr (kRows == 1 && Tile::kLoneRowInVectors) {
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
    } else {
        do {
            tile.add_step(lhs, rhs, tile_bytes);
            lhs += lhs_step_bytes(kRows);
            rhs += kStep * kColumns;
        } while (--steps != 0);
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
    const ScaledRows* scaled;  // for the call's first rows
    const int32_t* column_sums;
    int64_t column;  // the call's, with which the tiles begin
    int64_t tiles;   // of which a micro-kernel takes kTiles at a time
};

// Where the rows of a finished tile go, block by block: to the sums ...
template <int kRows>
class Sums {
   public:
    Sums(const Operands& operands, int64_t) : stride_(operands.sums_stride) {}

    template <class Tile>
    inline void write(const Tile& tile, int64_t, int32_t* sums) const {
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row) tile.store_row(row, sums + row * stride_);
    }

   private:
    const int64_t stride_;
};

// ... or, scaled, to the output: four rows at a time, by which the scales of tokens fill a vector.
template <bool kHasZeroPoint, bool kHasBias>
class Scaled {
   public:
    Scaled(const Operands& operands, int64_t column)
        : out_(operands.scaled->out + column),
          stride_(operands.scaled->out_stride),
          token_scale_(operands.scaled->token_scale),
          zero_point_(operands.scaled->zero_point),
          weight_scale_(operands.scaled->weight_scale + column),
          column_sums_(operands.column_sums + column),
          bias_(kHasBias ? operands.scaled->bias + column : nullptr) {}

    template <class Tile>
    inline void write(const Tile& tile, int64_t row, const int32_t*) const {
#pragma GCC unroll 2
        for (int quad = 0; quad < kNeonTileRows / 4; ++quad) {
            Four four;
            four.token_scale = vld1q_f32(token_scale_ + row + 4 * quad);
            if (kHasZeroPoint) four.zero_point = vld1q_s32(zero_point_ + row + 4 * quad);
            float* const out = out_ + (row + 4 * quad) * stride_;
#pragma GCC unroll 3
            for (int vector = 0; vector < kNeonTileColumns / 4; ++vector) {
                four.weight_scale = vld1q_f32(weight_scale_ + 4 * vector);
                if (kHasZeroPoint) four.column_sums = vld1q_s32(column_sums_ + 4 * vector);
                if (kHasBias) four.bias = vld1q_f32(bias_ + 4 * vector);
                float* const to = out + 4 * vector;
                vst1q_f32(to, scaled<0>(tile.sums_of(4 * quad, vector), four));
                vst1q_f32(to + stride_, scaled<1>(tile.sums_of(4 * quad + 1, vector), four));
                vst1q_f32(to + 2 * stride_, scaled<2>(tile.sums_of(4 * quad + 2, vector), four));
                vst1q_f32(to + 3 * stride_, scaled<3>(tile.sums_of(4 * quad + 3, vector), four));
            }
        }
    }

   private:
    // Four rows by four columns.
    struct Four {
        float32x4_t token_scale, weight_scale, bias;
        int32x4_t zero_point, column_sums;
    };

    template <int kRow>
    static inline float32x4_t scaled(int32x4_t sums, const Four& four) {
        if (kHasZeroPoint) sums = vmlsq_laneq_s32(sums, four.column_sums, four.zero_point, kRow);
        const float32x4_t scale = vmulq_laneq_f32(four.weight_scale, four.token_scale, kRow);
        const float32x4_t value = vmulq_f32(scale, vcvtq_f32_s32(sums));
        return kHasBias ? vaddq_f32(value, four.bias) : value;
    }

    float* const out_;
    const int64_t stride_;
    const float* const token_scale_;
    const int32_t* const zero_point_;
    const float* const weight_scale_;
    const int32_t* const column_sums_;
    const float* const bias_;
};

using MicroKernel = void (*)(const Operands& operands);

// kRows rows by kTiles tiles of columns. The more of both, the fewer loads there are for each multiplication.
template <class Lhs, bool kInParts, int kRows, int kTiles, class Output = Sums<kRows>>
void multiply(const Operands& operands) {
    const int64_t tile_bytes = operands.steps * kStep * kColumns;
    const int64_t sums_stride = operands.sums_stride, last = operands.rows - kRows;
    [[maybe_unused]] const bool resumes = operands.first > 0;
    [[maybe_unused]] const bool ends = operands.first + operands.count == operands.steps;
    const int8_t* const lhs = operands.lhs + operands.first * lhs_step_bytes(kRows);
    const int8_t* rhs = operands.rhs + operands.first * kStep * kColumns;
    int64_t row = 0, step = kRows;
    for (int64_t first = 0; first < operands.tiles; first += kTiles) {
        const Output output(operands, operands.column + first * kColumns);
        for (; 0 <= row && row <= last; row += step) {
            int32_t* const sums = operands.sums + row * sums_stride + first * kColumns;
            TileOf<Lhs, kRows, kTiles> tile;
            if constexpr (kInParts)
                resumes ? tile.resume(sums, sums_stride) : tile.clear();
            else
                tile.clear();
            add_steps<kRows>(tile, lhs + row / kRows * operands.steps * lhs_step_bytes(kRows), rhs, operands.count,
                             tile_bytes);
            if constexpr (kInParts)
                ends ? output.write(tile, row, sums) : tile.keep(sums, sums_stride);
            else
                output.write(tile, row, sums);
        }
        rhs += kTiles * tile_bytes;
        // The next tile begins with the rows that came last: more of them are in the first-level cache.
        step = -step;
        row += step;
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

    // By whether there are zero points and a bias: a tile that is scaled.
    template <bool kHasZeroPoint, bool kHasBias>
    static constexpr MicroKernel kScaledTile =
        multiply<Lhs, kInParts, kNeonTileRows, 1, Scaled<kHasZeroPoint, kHasBias>>;
    static constexpr MicroKernel kScaledTiles[2][2] = {{kScaledTile<false, false>, kScaledTile<false, true>},
                                                       {kScaledTile<true, false>, kScaledTile<true, true>}};
};

// Some whole blocks of rows, or the last one, and some tiles.
Operands part_of(const Operands& operands, int64_t row, int64_t rows, int64_t tile, int64_t tiles) {
    Operands part = operands;
    part.lhs += row * operands.steps * kStep;
    part.rhs += tile * kColumns * operands.steps * kStep;
    part.sums += row * operands.sums_stride + tile * kColumns;
    part.rows = rows;
    part.column += tile * kColumns;
    part.tiles = tiles;
    return part;
}

// All rows by all tiles.
template <class Lhs, bool kInParts>
void multiply_all(const Operands& operands) {
    using Kernels = MicroKernels<Lhs, kInParts>;
    const int64_t rows = operands.rows, tiles = operands.tiles;
    int64_t tile = 0;
    if constexpr (!kInParts) {
        if (rows <= 4) {  // several tiles at a time
            tile = tiles - tiles % (rows <= 2 ? 4 : 2);
            if (tile > 0)
                (rows <= 2 ? Kernels::kFourTiles : Kernels::kTwoTiles)[rows](part_of(operands, 0, rows, 0, tile));
        }
    }
    const int64_t rest = rows % kNeonTileRows, whole = rows - rest;
    const ScaledRows& scaled = *operands.scaled;
    const MicroKernel of_whole = scaled.count == 0
                                     ? Kernels::kOneTile[kNeonTileRows]
                                     : Kernels::kScaledTiles[scaled.zero_point != nullptr][scaled.bias != nullptr];
    // A tile stays in the first-level cache while all rows pass by.
    const int64_t together = whole == 0 || rest == 0 ? tiles : 1;
    for (; tile < tiles; tile += together) {
        const int64_t count = together < tiles - tile ? together : tiles - tile;
        if (whole > 0) of_whole(part_of(operands, 0, whole, tile, count));
        if (rest > 0) Kernels::kOneTile[rest](part_of(operands, whole, rest, tile, count));
    }
}

template <class Lhs>
void multiply_call(const Multiplication& call) {
    const int64_t steps = divide_up(call.problem->k, kStep);
    Operands operands = {call.lhs,
                         reinterpret_cast<const int8_t*>(call.weight),
                         steps,
                         0,
                         steps,
                         static_cast<int32_t*>(call.sums),
                         call.sums_stride,
                         call.m,
                         &call.scaled,
                         call.column_sums,
                         0,
                         divide_up(call.columns, kColumns)};  // there is room for the last one's surplus columns
    if (call.m <= 4 || (kNeonTileRows + kColumns) * steps * kStep <= kFirstLevelBytes)
        return multiply_all<Lhs, false>(operands);
    const int64_t most = divide_up(steps, divide_up(steps * kStep, kPartOfK));
    for (; operands.first < steps; operands.first += most) {
        operands.count = steps - operands.first < most ? steps - operands.first : most;
        multiply_all<Lhs, true>(operands);
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
