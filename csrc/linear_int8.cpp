#include "linear_int8.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "activation_quantization.h"

namespace ao_arm {
namespace {

// Below this many multiply-accumulates a thread costs more to wake than it saves.
constexpr int64_t kMacsPerThread = 1 << 18;

int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

// How the layer is cut. Rows are taken in stretches whose quantized form stays small; a stretch is multiplied in tasks
// of one panel of columns times one block of rows, so that few rows still occupy all threads and many rows use each
// panel while it is in the cache.
struct Cut {
    int64_t stretch_rows;
    int64_t lhs_stride;

    Cut(const LinearInt8& layer, const Parallel& parallel)
        : stretch_rows(std::min<int64_t>(layer.m, kBlockRows * std::max(4, parallel.threads()))),
          lhs_stride(layer.weight.kernel->lhs_stride(layer.weight.k)) {}

    // Blocks of equal size, a multiple of 8 rows, enough of them to occupy the threads.
    int64_t block_rows(int64_t rows, int64_t panels, int threads) const {
        const int64_t wanted = std::max(divide_up(rows, kBlockRows), divide_up(threads, panels));
        return std::min<int64_t>(kBlockRows, round_up(divide_up(rows, wanted), 8));
    }
};

// Memory that each thread has to itself: accumulators of one block, and what the kernel wants.
struct ThreadScratch {
    int64_t accumulator_bytes;
    int64_t bytes;

    explicit ThreadScratch(const PackedWeight& weight) {
        const int64_t columns = std::min(weight.n, kPanelColumns);
        const int64_t last_columns = weight.columns_of(weight.panels() - 1);
        accumulator_bytes = round_up(kBlockRows * columns * 4, 64);
        // The last panel is narrower, but may be served by a micro-kernel that wants more.
        bytes = accumulator_bytes + round_up(std::max(weight.kernel->scratch_bytes(columns, weight.k),
                                                      weight.kernel->scratch_bytes(last_columns, weight.k)),
                                             64);
    }
};

// The call that multiplies `rows` rows at `lhs` by one panel, with a thread's memory at `own`.
PanelGemm panel_call(const PackedWeight& weight, int64_t panel, const int8_t* lhs, int64_t rows, int64_t lhs_stride,
                     const ThreadScratch& thread, uint8_t* own) {
    PanelGemm call = {};
    call.lhs = lhs;
    call.lhs_stride = lhs_stride;
    call.panel = weight.base + weight.panel_offset(panel);
    call.column_sums = weight.column_sums() + panel * kPanelColumns;
    call.dst = reinterpret_cast<int32_t*>(own);
    call.dst_stride = weight.columns_of(panel);
    call.m = rows;
    call.columns = weight.columns_of(panel);
    call.k = weight.k;
    call.scratch = own + thread.accumulator_bytes;
    return call;
}

// The scratch memory's parts, each 64-byte aligned. With no base, only their total size is of use.
struct Scratch {
    float* bias;
    RowRange* ranges;
    TokenQuantization* tokens;
    int8_t* lhs;
    uint8_t* threads;
    ThreadScratch thread;
    int64_t total;

    Scratch(const LinearInt8& layer, const Cut& cut, int thread_count, uint8_t* base) : thread(layer.weight) {
        const PackedWeight& weight = layer.weight;
        int64_t used = 0;
        const auto take = [&](int64_t bytes) {
            uint8_t* part = base == nullptr ? nullptr : base + used;
            used += round_up(bytes, 64);
            return part;
        };
        const bool converts_bias = layer.bias != nullptr && layer.bias_dtype != DType::kFloat32;
        bias = reinterpret_cast<float*>(take(converts_bias ? weight.n * 4 : 0));
        ranges = reinterpret_cast<RowRange*>(take(layer.per_token ? 0 : layer.m * sizeof(RowRange)));
        tokens = reinterpret_cast<TokenQuantization*>(take(cut.stretch_rows * sizeof(TokenQuantization)));
        // Kernels may read whole blocks of rows.
        lhs = reinterpret_cast<int8_t*>(take((cut.stretch_rows + kBlockRows) * cut.lhs_stride));
        threads = take(thread_count * thread.bytes);
        total = used;
    }
};

// Calls body(first, last, strip) for `parallel.threads()` strips of [0, count) of nearly equal length.
template <class Body>
void run_strips(const Parallel& parallel, int64_t count, const Body& body) {
    const int64_t strips = std::min<int64_t>(parallel.threads(), count);
    parallel.run(strips, [&](int64_t strip) { body(count * strip / strips, count * (strip + 1) / strips, strip); });
}

const void* row_at(const LinearInt8& layer, int64_t row) {
    return static_cast<const uint8_t*>(layer.input) + row * layer.weight.k * element_size(layer.dtype);
}

// One range for all tokens that are finite, so that a NaN in one token leaves the others alone.
RowRange range_of_input(const LinearInt8& layer, RowRange* ranges, const Parallel& parallel) {
    run_strips(parallel, layer.m, [&](int64_t first, int64_t last, int64_t) {
        for (int64_t row = first; row < last; ++row)
            ranges[row] = range_of_row(row_at(layer, row), layer.weight.k, layer.activation_symmetric, layer.dtype);
    });
    RowRange all = {0, 0, true};
    for (int64_t row = 0; row < layer.m; ++row) {
        if (!ranges[row].finite) continue;
        all.minimum = std::min(all.minimum, ranges[row].minimum);
        all.maximum = std::max(all.maximum, ranges[row].maximum);
    }
    return all;
}

}  // namespace

Parallel worthwhile(const LinearInt8& layer, const Parallel& parallel) {
    return parallel.limited_to(layer.m * layer.weight.n * layer.weight.k / kMacsPerThread);
}

int64_t scratch_bytes(const LinearInt8& layer, const Parallel& parallel) {
    return Scratch(layer, Cut(layer, parallel), parallel.threads(), nullptr).total;
}

bool run_linear(const LinearInt8& layer, uint8_t* base, const Parallel& parallel) {
    const PackedWeight& weight = layer.weight;
    const RowRoutines& routines = row_routines();
    const int dtype = static_cast<int>(layer.dtype);
    const Cut cut(layer, parallel);
    const Scratch scratch(layer, cut, parallel.threads(), base);

    const float* bias = static_cast<const float*>(layer.bias);
    if (layer.bias != nullptr && layer.bias_dtype != DType::kFloat32) {
        routines.to_float[static_cast<int>(layer.bias_dtype)](layer.bias, weight.n, scratch.bias);
        bias = scratch.bias;
    }
    TokenQuantization shared = {};
    if (!layer.per_token)
        shared = choose_quantization(range_of_input(layer, scratch.ranges, parallel), layer.activation_symmetric,
                                     layer.dtype);

    std::atomic<bool> succeeded{true};
    for (int64_t begin = 0; begin < layer.m; begin += cut.stretch_rows) {
        const int64_t rows = std::min(cut.stretch_rows, layer.m - begin);

        run_strips(parallel, rows, [&](int64_t first, int64_t last, int64_t) {
            for (int64_t row = first; row < last; ++row) {
                const void* input = row_at(layer, begin + row);
                TokenQuantization& token = scratch.tokens[row];
                if (layer.per_token) {
                    const RowRange range = range_of_row(input, weight.k, layer.activation_symmetric, layer.dtype);
                    token = choose_quantization(range, layer.activation_symmetric, layer.dtype);
                } else {
                    token = shared;
                    token.finite = scratch.ranges[begin + row].finite;
                }
                quantize_row(input, weight.k, cut.lhs_stride, token, layer.dtype, scratch.lhs + row * cut.lhs_stride);
            }
        });

        const int64_t block_rows = cut.block_rows(rows, weight.panels(), parallel.threads());
        const int64_t blocks = divide_up(rows, block_rows);
        run_strips(parallel, blocks * weight.panels(), [&](int64_t first, int64_t last, int64_t strip) {
            uint8_t* own = scratch.threads + strip * scratch.thread.bytes;
            for (int64_t task = first; task < last; ++task) {
                const int64_t panel = task / blocks;
                const int64_t row = task % blocks * block_rows;
                const int64_t column = panel * kPanelColumns;
                const PanelGemm call =
                    panel_call(weight, panel, scratch.lhs + row * cut.lhs_stride, std::min(block_rows, rows - row),
                               cut.lhs_stride, scratch.thread, own);
                if (!weight.kernel->gemm(call)) {
                    succeeded.store(false, std::memory_order_relaxed);
                    return;
                }
                for (int64_t i = 0; i < call.m; ++i) {
                    const TokenQuantization& token = scratch.tokens[row + i];
                    uint8_t* out = static_cast<uint8_t*>(layer.output) +
                                   ((begin + row + i) * weight.n + column) * element_size(layer.dtype);
                    if (!token.finite) {
                        routines.fill_nan[dtype](call.columns, out);
                        continue;
                    }
                    const EpilogueRow epilogue = {call.dst + i * call.dst_stride,
                                                  call.column_sums,
                                                  layer.weight_scale + column,
                                                  bias == nullptr ? nullptr : bias + column,
                                                  token.scale,
                                                  token.zero_point};
                    routines.epilogue[dtype](epilogue, call.columns, out);
                }
            }
        });
    }
    return succeeded.load();
}

int64_t matmul_scratch_bytes(const PackedWeight& weight, const Parallel& parallel) {
    return round_up(kBlockRows * weight.kernel->lhs_stride(weight.k), 64) +
           parallel.threads() * ThreadScratch(weight).bytes;
}

bool run_matmul(const PackedWeight& weight, const int8_t* qdata, int64_t m, int32_t* output, uint8_t* base,
                const Parallel& parallel) {
    const int64_t stride = weight.kernel->lhs_stride(weight.k);
    auto* lhs = reinterpret_cast<int8_t*>(base);
    uint8_t* threads = base + round_up(kBlockRows * stride, 64);
    const ThreadScratch thread(weight);
    std::atomic<bool> succeeded{true};
    for (int64_t begin = 0; begin < m; begin += kBlockRows) {
        const int64_t rows = std::min(kBlockRows, m - begin);
        for (int64_t row = 0; row < rows; ++row) {
            std::memcpy(lhs + row * stride, qdata + (begin + row) * weight.k, weight.k);
            std::memset(lhs + row * stride + weight.k, 0, stride - weight.k);
        }
        run_strips(parallel, weight.panels(), [&](int64_t first, int64_t last, int64_t strip) {
            for (int64_t panel = first; panel < last; ++panel) {
                const PanelGemm call =
                    panel_call(weight, panel, lhs, rows, stride, thread, threads + strip * thread.bytes);
                if (!weight.kernel->gemm(call)) succeeded.store(false, std::memory_order_relaxed);
                for (int64_t row = 0; row < rows; ++row)
                    std::memcpy(output + (begin + row) * weight.n + panel * kPanelColumns,
                                call.dst + row * call.dst_stride, call.columns * sizeof(int32_t));
            }
        });
    }
    return succeeded.load();
}

}  // namespace ao_arm
