// Compiled once per instruction set, with AO_ARM_ISA naming the namespace. Everything but the entry points is local.
#include "kernels/portable/portable_int8_gemm.h"

#include "core/instruction_set.h"

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

#if defined(__x86_64__)
using Lhs = int16_t;  // pmaddwd
#else
using Lhs = int8_t;  // sdot, smlal
#endif

// Operands of a tile and where its sums go.
struct Operands {
    const Lhs* lhs;     // rows, k values each
    const int8_t* rhs;  // columns, k values each
    int64_t k;
    int32_t* sums;
    int64_t sums_stride;
};

// A tile of kRows x kColumns dot products along k. Each operand byte that is loaded serves a whole row or column of
// the tile; the sums stay in registers. The compiler turns the inner loop into multiply-accumulate instructions.
template <int kRows, int kColumns>
inline void multiply_tile(const Operands& given) {
    const Lhs* lhs = given.lhs;
    const int8_t* rhs = given.rhs;
    const int64_t k = given.k;
    int32_t sums[kRows][kColumns] = {};
    for (int64_t i = 0; i < k; ++i) {
        for (int row = 0; row < kRows; ++row) {
            for (int column = 0; column < kColumns; ++column)
                sums[row][column] += static_cast<int32_t>(lhs[row * k + i]) * static_cast<int32_t>(rhs[column * k + i]);
        }
    }
    for (int row = 0; row < kRows; ++row)
        for (int column = 0; column < kColumns; ++column)
            given.sums[row * given.sums_stride + column] = sums[row][column];
}

template <int kRows>
void multiply_rows(Operands operands, int64_t columns) {
    const auto advance = [&](int64_t by) {
        operands.rhs += by * operands.k;
        operands.sums += by;
        columns -= by;
    };
    for (; columns >= kPortableColumns; advance(kPortableColumns)) multiply_tile<kRows, kPortableColumns>(operands);
    for (; columns > 0; advance(1)) multiply_tile<kRows, 1>(operands);
}

}  // namespace

extern const int64_t kPortableLhsBytes = sizeof(Lhs);

void portable_pack_lhs(const Problem& problem, const LhsPart& part, int8_t* block) {
    const int64_t k = round_up(problem.k, kPortableMultiple);
    for (int64_t row = 0; row < part.count; ++row) {
        const int8_t* from = part.rows[row];
        Lhs* to = reinterpret_cast<Lhs*>(block) + (part.first + row) * k;
        for (int64_t i = 0; i < k; ++i) to[i] = from[i];
    }
}

bool portable_multiply(const Multiplication& call) {
    const int64_t k = round_up(call.problem->k, kPortableMultiple);
    Operands operands = {reinterpret_cast<const Lhs*>(call.lhs), reinterpret_cast<const int8_t*>(call.weight), k,
                         static_cast<int32_t*>(call.sums), call.sums_stride};
    int64_t row = 0;
    const auto advance = [&](int64_t by) {
        operands.lhs += by * k;
        operands.sums += by * call.sums_stride;
        row += by;
    };
    for (; row + kPortableRows <= call.m; advance(kPortableRows)) multiply_rows<kPortableRows>(operands, call.columns);
    for (; row < call.m; advance(1)) multiply_rows<1>(operands, call.columns);
    return true;
}

}  // namespace AO_ARM_ISA
}  // namespace ao_arm
