#include "linear_int8.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "activation_quantization.h"
#include "scratch.h"
#include "strips.h"

namespace ao_arm {
namespace {

// How the layer is cut. Rows are taken in stretches whose quantized form stays small; a stretch is multiplied in tasks
// of one panel of columns times one block of rows, so that few rows still occupy all threads and many rows use each
// panel while it is in the cache.
struct Cut {
    int64_t stretch_rows;
    int64_t lhs_stride;

    Cut(const LinearInt8& layer, const Parallel& parallel)
        : stretch_rows(std::min<int64_t>(layer.m, kBlockRows * std::max(4, parallel.threads()))),
          lhs_stride(layer.weight.kernel->lhs_stride(layer.weight.k)) {}

    // Blocks of equal size, a whole number of groups of rows, enough of them to occupy the threads.
    int64_t block_rows(int64_t rows, int64_t panels, int threads) const {
        const int64_t wanted = std::max(divide_up(rows, kBlockRows), divide_up(threads, panels));
        return std::min<int64_t>(kBlockRows, round_up(divide_up(rows, wanted), kLhsGroupRows));
    }
};

// Memory that each thread has to itself: accumulators of one block and what the kernel wants; earlier, if the kernel
// packs activations, one group of plain rows.
struct ThreadScratch {
    int64_t accumulator_bytes;
    int64_t bytes;

    explicit ThreadScratch(const PackedWeight& weight) {
        const Kernel& kernel = *weight.kernel;
        const int64_t columns = std::min(weight.n, kPanelColumns);
        const int64_t last_columns = weight.columns_of(weight.panels() - 1);
        accumulator_bytes = round_up(kBlockRows * columns * 4, 64);
        // The last panel is narrower, but may be served by a micro-kernel that wants more.
        bytes = accumulator_bytes + round_up(std::max(kernel.scratch_bytes(columns, weight.k),
                                                      kernel.scratch_bytes(last_columns, weight.k)),
                                             64);
        if (kernel.pack_lhs != nullptr)
            bytes = std::max(bytes, round_up(kLhsGroupRows * kernel.lhs_stride(weight.k), 64));
    }
};

// Brings a group of up to kLhsGroupRows rows into the form that the kernel reads. write_row(row, to) writes one plain
// row; `own` is the thread's memory.
template <class WriteRow>
void write_group(const Kernel& kernel, int64_t rows, int64_t lhs_stride, int8_t* group, uint8_t* own,
                 const WriteRow& write_row) {
    const bool packs = kernel.pack_lhs != nullptr;
    int8_t* plain = packs ? reinterpret_cast<int8_t*>(own) : group;
    for (int64_t row = 0; row < rows; ++row) write_row(row, plain + row * lhs_stride);
    if (packs) kernel.pack_lhs(plain, rows, lhs_stride, group);
}

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
    int32_t* offsets;
    float* multipliers;
    RowRange* ranges;
    TokenQuantization* tokens;
    int8_t* lhs;
    uint8_t* threads;
    ThreadScratch thread;
    int64_t total;

    Scratch(const LinearInt8& layer, const Cut& cut, int thread_count, uint8_t* base) : thread(layer.weight) {
        const PackedWeight& weight = layer.weight;
        ScratchParts parts(base);
        const bool converts_bias = layer.bias != nullptr && layer.bias_dtype != DType::kFloat32;
        bias = parts.take<float>(converts_bias ? weight.n : 0);
        const int64_t folded = is_float(layer.output_dtype) ? 0 : weight.n;
        offsets = parts.take<int32_t>(folded);
        multipliers = parts.take<float>(folded);
        const bool ranged = layer.activation_scale == ActivationScale::kPerTensor;
        ranges = parts.take<RowRange>(ranged ? layer.m : 0);
        tokens = parts.take<TokenQuantization>(cut.stretch_rows);
        // Kernels may read whole blocks of rows.
        lhs = parts.take<int8_t>((cut.stretch_rows + kBlockRows) * cut.lhs_stride);
        threads = parts.take<uint8_t>(thread_count * thread.bytes);
        total = parts.total();
    }
};

const void* row_at(const LinearInt8& layer, int64_t row) {
    return static_cast<const uint8_t*>(layer.input) + row * layer.weight.k * element_size(layer.input_dtype);
}

// One range for all tokens that are finite, so that a NaN in one token leaves the others alone.
RowRange range_of_input(const LinearInt8& layer, RowRange* ranges, const Parallel& parallel) {
    run_strips(parallel, layer.m, [&](int64_t first, int64_t last, int64_t) {
        for (int64_t row = first; row < last; ++row)
            ranges[row] =
                range_of_row(row_at(layer, row), layer.weight.k, layer.activation_symmetric, layer.input_dtype);
    });
    RowRange all = {0, 0, true};
    for (int64_t row = 0; row < layer.m; ++row) {
        if (!ranges[row].finite) continue;
        all.minimum = std::min(all.minimum, ranges[row].minimum);
        all.maximum = std::max(all.maximum, ranges[row].maximum);
    }
    return all;
}

TokenQuantization quantization_of(const LinearInt8& layer, int64_t row, const TokenQuantization& shared,
                                  const RowRange* ranges) {
    if (layer.activation_scale == ActivationScale::kStatic) return shared;
    if (layer.activation_scale == ActivationScale::kPerTensor)
        return {shared.scale, shared.zero_point, shared.finite && ranges[row].finite};
    const RowRange range =
        range_of_row(row_at(layer, row), layer.weight.k, layer.activation_symmetric, layer.input_dtype);
    return choose_quantization(range, layer.activation_symmetric, layer.input_dtype);
}

// Whether the kernel gets uint8 activations as they are. Others get them less 128.
bool multiplies_uint8(const LinearInt8& layer) {
    return layer.input_dtype == DType::kUInt8 && layer.weight.kernel->serves_unsigned_lhs;
}

// The zero point of the bytes that the kernel multiplies.
int32_t gemm_zero_point(const LinearInt8& layer) {
    return layer.input_zero_point + (multiplies_uint8(layer) ? 128 : 0);
}

// One row as bytes that the kernel multiplies, with zeros up to `stride`.
void quantize(const LinearInt8& layer, int64_t row, const TokenQuantization& token, int64_t stride, int8_t* lhs) {
    const int64_t k = layer.weight.k;
    const void* input = row_at(layer, row);
    if (is_float(layer.input_dtype)) {
        quantize_row(input, k, stride, token, layer.input_dtype, lhs);
        return;
    }
    if (layer.input_dtype == DType::kInt8 || multiplies_uint8(layer))
        std::memcpy(lhs, input, k);
    else
        row_routines().shift_uint8(static_cast<const uint8_t*>(input), k, lhs);
    std::memset(lhs + k, 0, stride - k);
}

// A group of rows from `row` on, in the form that the kernel reads, and how each was quantized.
void prepare_group(const LinearInt8& layer, int64_t row, int64_t rows, const TokenQuantization& shared,
                   const RowRange* ranges, int64_t lhs_stride, uint8_t* own, TokenQuantization* tokens, int8_t* lhs) {
    const Kernel& kernel = *layer.weight.kernel;
    for (int64_t i = 0; i < rows; ++i) tokens[i] = quantization_of(layer, row + i, shared, ranges);
    const bool already_bytes = layer.input_dtype == DType::kInt8 || multiplies_uint8(layer);
    if (already_bytes && kernel.pack_lhs != nullptr && lhs_stride == layer.weight.k)
        kernel.pack_lhs(static_cast<const int8_t*>(row_at(layer, row)), rows, lhs_stride, lhs);
    else
        write_group(kernel, rows, lhs_stride, lhs, own,
                    [&](int64_t i, int8_t* to) { quantize(layer, row + i, tokens[i], lhs_stride, to); });
}

// From a row of accumulators to a row of the output.
class Epilogue {
   public:
    Epilogue(const LinearInt8& layer, const float* bias, const Scratch& scratch)
        : layer_(layer),
          bias_(bias),
          offsets_(scratch.offsets),
          multipliers_(scratch.multipliers),
          clamped_(layer.least > -INFINITY || layer.greatest < INFINITY) {
        if (is_float(layer.output_dtype)) return;
        const bool is_signed = layer.output_dtype == DType::kInt8;
        least_ = std::max(is_signed ? -128 : 0, quantized(layer.least));
        greatest_ = std::min(is_signed ? 127 : 255, quantized(layer.greatest));
        row_routines().fold_columns({layer.weight_scale, layer.weight.column_sums(), bias, layer.input_scale,
                                     gemm_zero_point(layer), layer.output_scale, scratch.offsets, scratch.multipliers},
                                    layer.weight.n);
    }

    // `columns` columns from `column` on.
    void run(const TokenQuantization& token, const int32_t* accumulators, int64_t row, int64_t column,
             int64_t columns) const {
        const RowRoutines& routines = row_routines();
        const int dtype = static_cast<int>(layer_.output_dtype);
        void* out =
            static_cast<uint8_t*>(layer_.output) + (row * layer_.weight.n + column) * element_size(layer_.output_dtype);
        if (!is_float(layer_.output_dtype)) {
            const auto requantize =
                layer_.output_dtype == DType::kInt8 ? routines.requantize_int8 : routines.requantize_uint8;
            requantize(
                {accumulators, offsets_ + column, multipliers_ + column, layer_.output_zero_point, least_, greatest_},
                columns, out);
        } else if (token.finite) {
            routines.epilogue[dtype]({accumulators, layer_.weight.column_sums() + column, layer_.weight_scale + column,
                                      bias_ == nullptr ? nullptr : bias_ + column, token.scale, token.zero_point,
                                      clamped_, layer_.least, layer_.greatest},
                                     columns, out);
        } else {
            routines.fill_nan[dtype](columns, out);
        }
    }

   private:
    // A bound of the output in its steps, saturated.
    int32_t quantized(float bound) const {
        const float steps = std::nearbyint(bound / layer_.output_scale);
        return layer_.output_zero_point + static_cast<int32_t>(std::max(-1024.0f, std::min(1024.0f, steps)));
    }

    const LinearInt8& layer_;
    const float* bias_;
    const int32_t* offsets_;
    const float* multipliers_;
    bool clamped_;
    int32_t least_ = 0;
    int32_t greatest_ = 0;
};

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
    const Cut cut(layer, parallel);
    const Scratch scratch(layer, cut, parallel.threads(), base);

    const float* bias = static_cast<const float*>(layer.bias);
    if (layer.bias != nullptr && layer.bias_dtype != DType::kFloat32) {
        routines.to_float[static_cast<int>(layer.bias_dtype)](layer.bias, weight.n, scratch.bias);
        bias = scratch.bias;
    }
    const Epilogue epilogue(layer, bias, scratch);
    TokenQuantization shared = {layer.input_scale, gemm_zero_point(layer), true};
    if (layer.activation_scale == ActivationScale::kPerTensor)
        shared = choose_quantization(range_of_input(layer, scratch.ranges, parallel), layer.activation_symmetric,
                                     layer.input_dtype);

    std::atomic<bool> succeeded{true};
    for (int64_t begin = 0; begin < layer.m; begin += cut.stretch_rows) {
        const int64_t rows = std::min(cut.stretch_rows, layer.m - begin);

        run_strips(parallel, divide_up(rows, kLhsGroupRows), [&](int64_t first, int64_t last, int64_t strip) {
            uint8_t* own = scratch.threads + strip * scratch.thread.bytes;
            for (int64_t row = first * kLhsGroupRows; row < std::min(rows, last * kLhsGroupRows); row += kLhsGroupRows)
                prepare_group(layer, begin + row, std::min(kLhsGroupRows, rows - row), shared, scratch.ranges,
                              cut.lhs_stride, own, scratch.tokens + row, scratch.lhs + row * cut.lhs_stride);
        });

        const int64_t block_rows = cut.block_rows(rows, weight.panels(), parallel.threads());
        const int64_t blocks = divide_up(rows, block_rows);
        run_strips(parallel, blocks * weight.panels(), [&](int64_t first, int64_t last, int64_t strip) {
            uint8_t* own = scratch.threads + strip * scratch.thread.bytes;
            for (int64_t task = first; task < last; ++task) {
                const int64_t panel = task / blocks;
                const int64_t row = task % blocks * block_rows;
                const int64_t column = panel * kPanelColumns;
                PanelGemm call = panel_call(weight, panel, scratch.lhs + row * cut.lhs_stride,
                                            std::min(block_rows, rows - row), cut.lhs_stride, scratch.thread, own);
                call.lhs_unsigned = multiplies_uint8(layer);
                if (!weight.kernel->gemm(call)) {
                    succeeded.store(false, std::memory_order_relaxed);
                    return;
                }
                for (int64_t i = 0; i < call.m; ++i) {
                    epilogue.run(scratch.tokens[row + i], call.dst + i * call.dst_stride, begin + row + i, column,
                                 call.columns);
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
        for (int64_t row = 0; row < rows; row += kLhsGroupRows)
            write_group(*weight.kernel, std::min(kLhsGroupRows, rows - row), stride, lhs + row * stride, threads,
                        [&](int64_t i, int8_t* to) {
                            std::memcpy(to, qdata + (begin + row + i) * weight.k, weight.k);
                            std::memset(to + weight.k, 0, stride - weight.k);
                        });
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
