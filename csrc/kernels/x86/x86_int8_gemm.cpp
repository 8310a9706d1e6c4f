// Compiled once per instruction set, with AO_ARM_ISA naming the namespace. Everything but the entry points is local.
//
// From the instruction set's header: Tile, whose sums stay in registers while add_step multiplies step after step of
// k; LhsValue, of the packed activations; a strip, the columns that a tile takes one or more of; sum_of_row.
#include "kernels/x86/x86_int8_gemm.h"

#include "core/instruction_set.h"
#include "kernels/x86/lhs_stride.h"

#if defined(__AVX512VNNI__)
#include "kernels/x86/x86_int8_tile_avx512.h"
#else
#include "kernels/x86/x86_int8_tile_avx2.h"
#endif

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

constexpr int64_t kStripsPerBlock = kX86BlockColumns / kStripColumns;

struct Operands {
    const LhsValue* lhs;
    int64_t lhs_stride;     // in values
    const int32_t* starts;  // of each row's sums
    const uint8_t* weight;
    int64_t block_bytes;
    int64_t strips;
    int64_t steps;
    int32_t* sums;
    int64_t sums_stride;
};

template <int kRows, int kStrips>
inline void multiply_tile(const Operands& given, int64_t strip) {
    const Operands operands = given;
    Tile<kRows, kStrips> tile;
    tile.start(operands.starts);
    const LhsValue* lhs = operands.lhs;
    const uint8_t* weight = operands.weight + strip / kStripsPerBlock * operands.block_bytes +
                            strip % kStripsPerBlock * kStripColumns * kX86Step;
    for (int64_t step = 0; step < operands.steps; ++step) {
        tile.add_step(lhs, operands.lhs_stride, weight, operands.block_bytes);
        lhs += kX86Step;
        weight += kX86StepBytes;
    }
    tile.store(operands.sums + strip * kStripColumns, operands.sums_stride);
}

// A tile's rows by all strips: by as many at once as fit, then by half as many.
template <int kRows, int kStrips = most_strips(kRows)>
void multiply_strips(const Operands& operands, int64_t strip) {
    for (; strip + kStrips <= operands.strips; strip += kStrips) multiply_tile<kRows, kStrips>(operands, strip);
    if constexpr (kStrips > 1) multiply_strips<kRows, (kStrips + 1) / 2>(operands, strip);
}

using MultiplyStrips = void (*)(const Operands& operands, int64_t strip);
constexpr MultiplyStrips kOfRows[] = {nullptr,
                                      multiply_strips<1>,
                                      multiply_strips<2>,
                                      multiply_strips<3>,
                                      multiply_strips<4>,
                                      multiply_strips<5>,
                                      multiply_strips<6>,
#if defined(__AVX512VNNI__)
                                      multiply_strips<7>,
                                      multiply_strips<8>
#endif
};

}  // namespace

#if !defined(__AVX512VNNI__)
void x86_pack_lhs(const Problem& problem, const LhsPart& part, int8_t* block) {
    const int64_t stride = x86_lhs_stride(problem.k);
    for (int64_t row = 0; row < part.count; ++row) {
        const int8_t* from = part.rows[row];
        LhsValue* to = reinterpret_cast<LhsValue*>(block) + (part.first + row) * stride;
        for (int64_t i = 0; i < stride; ++i) to[i] = from[i];
    }
}
#endif

extern const int64_t kX86LhsValueBytes = sizeof(LhsValue);

// Columns that a tile takes stay in the caches while the rows pass by, in tiles of about as many.
bool x86_multiply(const Multiplication& call) {
    const int64_t stride = x86_lhs_stride(call.problem->k), steps = divide_up(call.problem->k, kX86Step);
    const auto* lhs = reinterpret_cast<const LhsValue*>(call.lhs);
    int32_t starts[kMostRows];
    for (int64_t row = 0; row < call.m; ++row)
        starts[row] = -128 * sum_of_row(lhs + row * stride, round_up(call.problem->k, 64));
    const int64_t tiles = divide_up(call.m, kMostTileRows);
    const int64_t together = most_strips(static_cast<int>(divide_up(call.m, tiles)));
    const int64_t strips = divide_up(call.columns, kX86BlockColumns) * kStripsPerBlock;
    for (int64_t strip = 0; strip < strips; strip += together) {
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t row = call.m * tile / tiles, rows = call.m * (tile + 1) / tiles - row;
            const Operands operands = {lhs + row * stride,
                                       stride,
                                       starts + row,
                                       call.weight,
                                       kX86StepBytes * steps,
                                       strip + together < strips ? strip + together : strips,
                                       steps,
                                       static_cast<int32_t*>(call.sums) + row * call.sums_stride,
                                       call.sums_stride};
            kOfRows[rows](operands, strip);
        }
    }
    return true;
}

}  // namespace AO_ARM_ISA
}  // namespace ao_arm
