#include "linear_int4.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "activation_quantization.h"
#include "scratch.h"
#include "strips.h"

namespace ao_arm {
namespace {

// Rows and columns of a task at most: its sums stay in the first-level cache until they are scaled.
constexpr int64_t kTaskRows = 32;
constexpr int64_t kTaskColumns = 256;

constexpr int64_t kStretchRows = 64;  // of each thread

// How the layer is cut. Rows are taken in stretches whose quantized form stays small; a stretch is multiplied in tasks
// of some blocks of columns times some blocks of rows.
struct Cut {
    int64_t stretch_rows;
    int64_t task_rows;
    int64_t task_columns;
    int64_t column_tasks;
    int64_t lhs_bytes;  // of a block of rows

    Cut(const LinearInt4& layer, const Parallel& parallel) {
        const GroupedKernel& kernel = *layer.weight.kernel;
        const int64_t n = layer.weight.problem.n, threads = parallel.threads();
        stretch_rows = std::min(round_up(layer.m, kernel.row_step), kStretchRows * std::max<int64_t>(4, threads));
        task_rows = std::min(stretch_rows, kTaskRows);
        const int64_t row_tasks = divide_up(std::min(stretch_rows, layer.m), task_rows);
        const int64_t share = divide_up(n, divide_up(threads, row_tasks));
        task_columns = round_up(std::min(share, kTaskColumns), kernel.column_step);
        column_tasks = divide_up(n, task_columns);
        lhs_bytes = kernel.lhs_bytes(layer.weight.problem.padded_k());
    }
};

// The scratch memory's parts, each 64-byte aligned. With no base, only their total size is of use.
struct Scratch {
    float* bias;
    TokenQuantization* tokens;
    int8_t* lhs;
    uint8_t* threads;
    int64_t thread_bytes;  // of each: sums of a task, earlier a block of quantized rows
    int64_t total;

    Scratch(const LinearInt4& layer, const Cut& cut, const Parallel& parallel, uint8_t* base) {
        const PackedGroupedWeight& weight = layer.weight;
        ScratchParts parts(base);
        const bool converts_bias = layer.bias != nullptr && layer.bias_dtype != DType::kFloat32;
        bias = parts.take<float>(converts_bias ? weight.problem.n : 0);
        tokens = parts.take<TokenQuantization>(cut.stretch_rows);
        lhs = parts.take<int8_t>(divide_up(cut.stretch_rows, weight.kernel->row_step) * cut.lhs_bytes);
        const int64_t block_bytes = weight.kernel->row_step * weight.problem.padded_k();
        thread_bytes = round_up(std::max<int64_t>(cut.task_rows * cut.task_columns * sizeof(float), block_bytes), 64);
        threads = parts.take<uint8_t>(parallel.threads() * thread_bytes);
        total = parts.total();
    }
};

// The token's scale and zero point, and its quantized values with zeros up to padded_k at `q`, or where they are
// already if they need no padding.
const int8_t* quantized(const LinearInt4& layer, int64_t row, TokenQuantization* token, int8_t* q) {
    const int64_t k = layer.weight.problem.k, padded_k = layer.weight.problem.padded_k();
    const void* input = static_cast<const uint8_t*>(layer.input) + row * k * element_size(layer.dtype);
    if (layer.token_scale != nullptr) {
        const int32_t zero = layer.token_zero == nullptr ? 0 : layer.token_zero[row];
        *token = {layer.token_scale[row], zero, std::isfinite(layer.token_scale[row])};
    }
    if (layer.qdata != nullptr) {
        const int8_t* from = layer.qdata + row * k;
        if (k == padded_k) return from;
        std::memcpy(q, from, k);
        std::memset(q + k, 0, padded_k - k);
        return q;
    }
    const RowRange range = range_of_row(input, k, false, layer.dtype);
    if (layer.token_scale == nullptr) *token = choose_quantization(range, false, layer.dtype);
    token->finite = token->finite && range.finite;
    quantize_row(input, k, padded_k, *token, layer.dtype, q);
    return q;
}

}  // namespace

Parallel worthwhile(const LinearInt4& layer, const Parallel& parallel) {
    return parallel.limited_to(layer.m * layer.weight.problem.n * layer.weight.problem.k / kMacsPerThread);
}

int64_t scratch_bytes(const LinearInt4& layer, const Parallel& parallel) {
    return Scratch(layer, Cut(layer, parallel), parallel, nullptr).total;
}

void run_linear(const LinearInt4& layer, uint8_t* base, const Parallel& parallel) {
    const PackedGroupedWeight& weight = layer.weight;
    const GroupedKernel& kernel = *weight.kernel;
    const int64_t n = weight.problem.n, padded_k = weight.problem.padded_k();
    const RowRoutines& routines = row_routines();
    const int dtype = static_cast<int>(layer.dtype);
    const float unit = kernel.unit(weight.problem), inverse_unit = 1.0f / unit;  // powers of two
    const Cut cut(layer, parallel);
    const Scratch scratch(layer, cut, parallel, base);

    const float* bias = static_cast<const float*>(layer.bias);
    if (layer.bias != nullptr && layer.bias_dtype != DType::kFloat32) {
        routines.to_float[static_cast<int>(layer.bias_dtype)](layer.bias, n, scratch.bias);
        bias = scratch.bias;
    }
    for (int64_t begin = 0; begin < layer.m; begin += cut.stretch_rows) {
        const int64_t rows = std::min(cut.stretch_rows, layer.m - begin);

        run_strips(parallel, divide_up(rows, kernel.row_step), [&](int64_t first, int64_t last, int64_t strip) {
            auto* own = reinterpret_cast<int8_t*>(scratch.threads + strip * scratch.thread_bytes);
            for (int64_t block = first; block < last; ++block) {
                const int64_t row = block * kernel.row_step, count = std::min(kernel.row_step, rows - row);
                const int8_t* block_rows[kMaxRowStep];
                for (int64_t i = 0; i < count; ++i)
                    block_rows[i] = quantized(layer, begin + row + i, &scratch.tokens[row + i], own + i * padded_k);
                kernel.pack_lhs(block_rows, count, padded_k, scratch.lhs + block * cut.lhs_bytes);
            }
        });

        const int64_t row_tasks = divide_up(rows, cut.task_rows);
        run_strips(parallel, row_tasks * cut.column_tasks, [&](int64_t first, int64_t last, int64_t strip) {
            GroupedGemm call = {};
            call.problem = &weight.problem;
            call.dst = reinterpret_cast<float*>(scratch.threads + strip * scratch.thread_bytes);
            call.dst_stride = cut.task_columns;
            for (int64_t task = first; task < last; ++task) {
                const int64_t column = task / row_tasks * cut.task_columns;
                const int64_t row = task % row_tasks * cut.task_rows;
                call.lhs = scratch.lhs + row / kernel.row_step * cut.lhs_bytes;
                call.m = std::min(cut.task_rows, rows - row);
                call.blocks = weight.base + weight.block_offset(column / kernel.column_step);
                call.columns = std::min(cut.task_columns, n - column);
                kernel.gemm(call);
                const int64_t element = element_size(layer.dtype);
                uint8_t* out = static_cast<uint8_t*>(layer.output) + ((begin + row) * n + column) * element;
                const TokenQuantization* tokens = scratch.tokens + row;
                float token_scale[kTaskRows], zero_point[kTaskRows];
                for (int64_t i = 0; i < call.m; ++i) {
                    token_scale[i] = tokens[i].scale * unit;
                    zero_point[i] = static_cast<float>(tokens[i].zero_point) * inverse_unit;
                }
                const SumsRows sums = {call.m,
                                       call.dst,
                                       call.dst_stride,
                                       weight.column_sums() + column,
                                       bias == nullptr ? nullptr : bias + column,
                                       token_scale,
                                       zero_point,
                                       layer.least,
                                       layer.greatest,
                                       n};
                routines.scale_sums[dtype](sums, call.columns, out);
                for (int64_t i = 0; i < call.m; ++i)
                    if (!tokens[i].finite) routines.fill_nan[dtype](call.columns, out + i * n * element);
            }
        });
    }
}

}  // namespace ao_arm
