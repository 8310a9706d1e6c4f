// A kernel: one row of the table. It multiplies int8 activations by a weight that it packed itself, panel by panel.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cpu_features.h"
#include "problem.h"

namespace ao_arm {

// Columns of the weight (output channels) that are packed and multiplied together. A multiple of every micro-kernel's
// width; wide enough to repay the fixed cost of a GEMM call, narrow enough that a block of rows times a panel of
// int32 stays in the second-level cache and that a single row still gives each thread a panel.
constexpr int64_t kPanelColumns = 384;

// The most rows that one GEMM call gets: with a whole panel, 96 KiB of accumulators.
constexpr int64_t kBlockRows = 64;

// Rows of activations that Kernel::pack_lhs arranges together.
constexpr int64_t kLhsGroupRows = 8;

// One call: dst[i][j] = sum over l of lhs[i][l] * weight[j][l], exact in int32, for m <= kBlockRows rows.
struct PanelGemm {
    // m rows, lhs_stride bytes apart, zero beyond k. For a kernel with pack_lhs: groups of kLhsGroupRows rows as it
    // arranged them, kLhsGroupRows * lhs_stride bytes apart; a last group of fewer rows was arranged as such.
    const int8_t* lhs;
    int64_t lhs_stride;
    bool lhs_unsigned;  // lhs holds uint8 values; only for kernels that serve them
    const uint8_t* panel;
    const int32_t* column_sums;  // sum over l of weight[j][l]
    int32_t* dst;                // room for kBlockRows rows, dst_stride elements apart
    int64_t dst_stride;
    int64_t m;
    int64_t columns;
    int64_t k;
    uint8_t* scratch;  // scratch_bytes(columns, k)
};

// Stateless. `reject_reasons` is called before anything else; the other functions only for problems it accepts.
// None throws, none starts a thread, and `gemm` may run on many threads at once.
struct Kernel {
    const char* id;
    const char* summary;
    uint32_t features;  // CPU features it cannot run without
    // Appends each reason why it cannot serve the problem here, other than missing CPU features.
    void (*reject_reasons)(const Problem& problem, std::vector<std::string>& reasons);
    // Estimated cycles of one call with m = 16; of the kernels that fit, the cheapest is taken. Null: it is for another
    // architecture. One that was not built in still tells its cost, so that the user learns what is missed.
    double (*cost)(const Problem& problem, const CpuFeatures& cpu);
    // Name of the arrangement of the packed bytes, stored with them. It may depend on the CPU and on the shape.
    std::string (*packing_format)(int64_t n, int64_t k);
    int64_t (*lhs_stride)(int64_t k);
    int64_t (*panel_bytes)(int64_t columns, int64_t k);
    int64_t (*scratch_bytes)(int64_t columns, int64_t k);
    // Between (columns, k) int8 values, k contiguous, and packed bytes. False when the library refused.
    bool (*pack)(const int8_t* values, int64_t columns, int64_t k, uint8_t* panel);
    bool (*unpack)(const uint8_t* panel, int64_t columns, int64_t k, int8_t* values);
    // Arranges m <= kLhsGroupRows rows of activations, `stride` = lhs_stride(k) bytes apart and zero beyond k, into
    // kLhsGroupRows * stride bytes that `gemm` reads in place of them. Null: `gemm` reads plain rows. The driver calls
    // it once for each group of rows, right after quantizing them, and not once for each panel.
    void (*pack_lhs)(const int8_t* rows, int64_t m, int64_t stride, int8_t* packed);
    bool (*gemm)(const PanelGemm& call);
    bool serves_unsigned_lhs;
};

}  // namespace ao_arm
