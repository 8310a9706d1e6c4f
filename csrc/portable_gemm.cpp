// Compiled once per instruction set, with AO_ARM_ISA naming the namespace and AO_ARM_LHS saying in which form its
// multiply-accumulate instructions want the activations. Everything but the entry point is local.
#include "portable_gemm.h"

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

#define AO_ARM_SIGNED_BYTES 0    // sdot, smlal
#define AO_ARM_UNSIGNED_BYTES 1  // vpdpbusd: a + 128; the surplus of 128 * sum(b) is taken off at the end
#define AO_ARM_INT16 2           // pmaddwd
#if AO_ARM_LHS == AO_ARM_SIGNED_BYTES
using Lhs = int8_t;
#elif AO_ARM_LHS == AO_ARM_UNSIGNED_BYTES
using Lhs = uint8_t;
#else
using Lhs = int16_t;
#endif
constexpr int32_t kSurplus = AO_ARM_LHS == AO_ARM_UNSIGNED_BYTES ? 128 : 0;

// A tile of kRows x kColumns dot products along k. Each operand byte that is loaded serves a whole row or column of
// the tile; the sums stay in registers. The compiler turns the inner loop into multiply-accumulate instructions.
template <int kRows, int kColumns>
inline void tile(const Lhs* lhs, int64_t lhs_stride, const int8_t* rhs, int64_t k, const int32_t* column_sums,
                 int32_t* dst, int64_t dst_stride) {
    int32_t sums[kRows][kColumns] = {};
    for (int64_t i = 0; i < k; ++i) {
        for (int row = 0; row < kRows; ++row) {
            for (int column = 0; column < kColumns; ++column)
                sums[row][column] +=
                    static_cast<int32_t>(lhs[row * lhs_stride + i]) * static_cast<int32_t>(rhs[column * k + i]);
        }
    }
    for (int row = 0; row < kRows; ++row) {
        for (int column = 0; column < kColumns; ++column) {
            const uint32_t surplus = kSurplus * static_cast<uint32_t>(column_sums[column]);
            dst[row * dst_stride + column] = static_cast<int32_t>(static_cast<uint32_t>(sums[row][column]) - surplus);
        }
    }
}

template <int kRows>
void row_block(const PanelGemm& call, const Lhs* lhs, int64_t lhs_stride, int64_t k, int64_t row) {
    constexpr int kColumns = 4;
    const int8_t* rhs = reinterpret_cast<const int8_t*>(call.panel);
    int32_t* dst = call.dst + row * call.dst_stride;
    lhs += row * lhs_stride;
    int64_t column = 0;
    for (; column + kColumns <= call.columns; column += kColumns)
        tile<kRows, kColumns>(lhs, lhs_stride, rhs + column * k, k, call.column_sums + column, dst + column,
                              call.dst_stride);
    for (; column < call.columns; ++column)
        tile<kRows, 1>(lhs, lhs_stride, rhs + column * k, k, call.column_sums + column, dst + column, call.dst_stride);
}

#if AO_ARM_LHS == AO_ARM_SIGNED_BYTES
const Lhs* converted(const PanelGemm& call, int64_t, int64_t* stride) {
    *stride = call.lhs_stride;
    return call.lhs;
}
#else
const Lhs* converted(const PanelGemm& call, int64_t k, int64_t* stride) {
    Lhs* rows = reinterpret_cast<Lhs*>(call.scratch);
    for (int64_t row = 0; row < call.m; ++row) {
        const int8_t* from = call.lhs + row * call.lhs_stride;
        Lhs* to = rows + row * k;
        for (int64_t i = 0; i < k; ++i) to[i] = static_cast<Lhs>(from[i] + kSurplus);
    }
    *stride = k;
    return rows;
}
#endif

}  // namespace

bool portable_gemm(const PanelGemm& call) {
    const int64_t k = round_up(call.k, kPortableRowMultiple);
    int64_t lhs_stride = 0;
    const Lhs* lhs = converted(call, k, &lhs_stride);
    int64_t row = 0;
    for (; row + 4 <= call.m; row += 4) row_block<4>(call, lhs, lhs_stride, k, row);
    for (; row < call.m; ++row) row_block<1>(call, lhs, lhs_stride, k, row);
    return true;
}

}  // namespace AO_ARM_ISA
}  // namespace ao_arm
