// A kernel: one entry of the kernel table. It multiplies int8 activations by a weight that it packed itself; scales of
// tokens and channels, zero points and bias are the driver's business, but for rows that it leaves to a kernel (see
// ScaledRows), and so are threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "core/cpu_features.h"
#include "core/problem.h"

namespace ao_arm {

// The most rows that one call gets.
constexpr int64_t kMostRows = 64;

// The most rows that a kernel arranges together.
constexpr int64_t kMostRowStep = 16;

// A weight as users give it. Of int8 weights there is the first only.
struct PlainWeight {
    int8_t* qdata;       // (n, k), in the problem's range: see full_range; of 4-bit weights in [-8, 7]
    void* scale;         // (n, k / group), of the problem's scale_type
    int8_t* zero_point;  // (n, k / group), in [-8, 7]; null if the problem has none
};

// Columns of a weight.
struct Columns {
    int64_t first;
    int64_t count;
};

// Rows of a lhs block that has `of` rows in all.
struct LhsPart {
    const int8_t* const* rows;  // `count` of them, each padded_k values
    int64_t first;
    int64_t count;
    int64_t of;
};

// Rows that a kernel scales while their sums are in registers, and writes as floats instead of the sums:
//     out[i][j] = token_scale[i] * weight_scale[j] * (sums[i][j] - zero_point[i] * column_sums[j]) + bias[j]
// The order of operations is that of RowRoutines::scale, and so are the bits.
struct ScaledRows {
    int64_t count;  // the call's first rows: whole blocks of row_step rows, or 0
    float* out;
    int64_t out_stride;  // in elements
    const float* token_scale;
    const int32_t* zero_point;  // null if all are 0
    const float* weight_scale;
    const float* bias;  // null for none
};

// One call, for m <= kMostRows rows and the columns of whole column blocks:
//     int8    sums[i][j] = sum over l of lhs[i][l] * qdata[j][l], exact in int32
//     4 bits  sums[i][j] = 1 / unit * sum over groups of scale[j][g] * (sum over l in g of lhs[i][l] * (qdata[j][l] -
//             zero_point[j][g])), the inner sum exact in int32, the outer one in float, in the order of the groups
// Of `lhs` the kernel may read whole blocks, and as many rows as Kernel::rows_read says. Of `sums` it may write whole
// column blocks of round_up(m, row_step) rows. What else is there is not its own.
struct Multiplication {
    const Problem* problem;
    const int8_t* lhs;           // blocks of row_step rows, lhs_bytes apart, the last one with m % row_step rows
    bool lhs_unsigned;           // lhs holds uint8 values; only for kernels that serve them
    int64_t m;                   // rows
    const uint8_t* weight;       // the first column block
    const int32_t* column_sums;  // of int8 weights: sum over l of qdata[j][l]
    int64_t columns;             // from the first block's first one on; the last block may be cut by n
    void* sums;                  // int32 or float
    int64_t sums_stride;         // in elements
    uint8_t* scratch;            // scratch_bytes
    ScaledRows scaled;           // some only of kernels that scale, and if the columns are those of whole column blocks
};

// Stateless. `reject_reasons` is called before anything else, and only for problems that have no reasons_against; the
// other functions only for problems that it accepts. None throws, none starts a thread, and `multiply` may run on many
// threads at once. Functions that are not said to be optional are null only in entries that were not built.
struct Kernel {
    const char* id;
    const char* summary;
    Scheme scheme;
    uint32_t features;  // CPU features that it cannot run without
    // Appends each reason why it cannot serve the problem here, other than missing CPU features.
    void (*reject_reasons)(const Problem& problem, std::vector<std::string>& reasons);
    // Estimated cycles of multiplying m rows on one thread. Null if the entry is for another architecture; one that
    // was not built in still tells its cost, so that the user learns what is missed.
    double (*cost)(const Problem& problem, int64_t m, const CpuFeatures& cpu);
    // Name of the arrangement of the packed bytes, stored with them. It may depend on the CPU and on the shape.
    std::string (*packing_format)(const Problem& problem);

    // The weight: column blocks of column_step columns, or fewer at its end, are packed and multiplied as a whole.
    int64_t column_step;
    int64_t (*block_bytes)(const Problem& problem, int64_t columns);
    // Between a column block and its packed bytes. False when a library refused.
    bool (*pack)(const Problem& problem, const PlainWeight& weight, Columns columns, uint8_t* block);
    bool (*unpack)(const Problem& problem, const uint8_t* block, Columns columns, const PlainWeight& weight);

    // The activations: rows of padded_k int8 values, zero beyond k, are arranged in lhs blocks of row_step rows.
    int64_t row_step;
    int64_t (*padded_k)(const Problem& problem);
    // Optional: bytes of a lhs block. Null: those of its rows.
    int64_t (*lhs_bytes)(const Problem& problem);
    // Optional: arranges a part of a lhs block, in a way that depends on k, padded_k and lhs_bytes alone: layers share
    // blocks.
    // Null: a block is its rows.
    void (*pack_lhs)(const Problem& problem, const LhsPart& part, int8_t* block);
    int64_t lhs_step;  // `first` of a part is a multiple of it, and so is the count unless the last row is among them

    bool (*multiply)(const Multiplication& call);
    int64_t most_rows;  // that calls have: kMostRows or, if its loops go along the columns first, fewer
    bool serves_unsigned_lhs;
    bool scales;           // int8 weights: serves scaled rows
    bool reads_most_rows;  // of another library's: it may multiply surplus rows
    // Of another library's kernels: its name, and where the verdict of a trial is kept: 0 for none yet, 1, or -1 if it
    // failed. Null: it is our own.
    const char* library;
    std::atomic<int>* trial;
    // Optional: scratch memory of a call with these columns; null: none.
    int64_t (*scratch_bytes)(const Problem& problem, int64_t columns);
    // Optional: what 4-bit sums are to be multiplied by, a power of two: kernels that shift nibbles into the upper half
    // of a byte multiply by 16 on the way. Null: 1.
    float (*unit)(const Problem& problem);

    // Of `lhs`, by a call of m rows.
    int64_t rows_read(int64_t m) const { return reads_most_rows ? kMostRows : round_up(m, row_step); }
};

// An entry that has its name and its reasons only. One for a kernel that is not in this build stays like that, to say
// why; others go on from it.
constexpr Kernel named_kernel(const char* id, const char* summary, Scheme scheme, uint32_t features,
                              void (*reject_reasons)(const Problem&, std::vector<std::string>&),
                              double (*cost)(const Problem&, int64_t, const CpuFeatures&) = nullptr) {
    Kernel kernel = {};
    kernel.id = id;
    kernel.summary = summary;
    kernel.scheme = scheme;
    kernel.features = features;
    kernel.reject_reasons = reject_reasons;
    kernel.cost = cost;
    return kernel;
}

}  // namespace ao_arm
