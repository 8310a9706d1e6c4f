#include "layer/epilogue.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "rows/row_routines.h"

namespace ao_arm {
namespace {

bool is_requantized(const Linear& layer) {
    return layer.output_dtype == DType::kInt8 || layer.output_dtype == DType::kUInt8;
}

bool converts_bias(const Linear& layer) { return layer.bias != nullptr && layer.bias_dtype != DType::kFloat32; }

}  // namespace

Epilogue::Epilogue(const Linear& layer, bool has_zero_points) : layer_(layer), has_zero_points_(has_zero_points) {
    const Kernel& kernel = *layer.weight.kernel;
    if (kernel.unit != nullptr) unit_ = kernel.unit(layer.weight.problem);
    if (is_requantized(layer)) {
        const bool is_signed = layer.output_dtype == DType::kInt8;
        least_ = std::max(is_signed ? -128 : 0, quantized(layer.least));
        greatest_ = std::min(is_signed ? 127 : 255, quantized(layer.greatest));
    }
}

// A bound of the output in its steps, saturated.
int32_t Epilogue::quantized(float bound) const {
    const float steps = std::nearbyint(bound / layer_.output_scale);
    return layer_.output_zero_point + static_cast<int32_t>(std::max(-1024.0f, std::min(1024.0f, steps)));
}

Epilogue::TileColumns::TileColumns(const Linear& layer, int64_t most_columns, ScratchParts* parts) {
    converted_bias = parts->take<float>(converts_bias(layer) ? most_columns : 0);
    offsets = parts->take<int32_t>(is_requantized(layer) ? most_columns : 0);
    multipliers = parts->take<float>(is_requantized(layer) ? most_columns : 0);
}

void Epilogue::begin(int64_t first, int64_t count, TileColumns* columns) const {
    const RowRoutines& routines = row_routines();
    columns->first = first;
    columns->count = count;
    columns->bias = layer_.bias == nullptr ? nullptr : static_cast<const float*>(layer_.bias) + first;
    if (converts_bias(layer_)) {
        const auto* bias = static_cast<const uint8_t*>(layer_.bias) + first * element_size(layer_.bias_dtype);
        routines.to_float[static_cast<int>(layer_.bias_dtype)](bias, count, columns->converted_bias);
        columns->bias = columns->converted_bias;
    }
    if (is_requantized(layer_))
        routines.fold_columns({layer_.weight_scale + first, static_cast<const int32_t*>(layer_.weight.sums(first)),
                               columns->bias, layer_.input_scale, layer_.multiplied_zero_point(), layer_.output_scale,
                               columns->offsets, columns->multipliers},
                              count);
}

bool Epilogue::leaves_scaling_to_kernel() const {
    return layer_.weight.kernel->scales && layer_.output_dtype == DType::kFloat32 && layer_.least == -INFINITY &&
           layer_.greatest == INFINITY;
}

ScaledRows Epilogue::scaled(const TileColumns& columns, int64_t row, int64_t count, const Tokens& tokens) const {
    if (count == 0) return {};  // what follows may not exist then
    const int64_t n = layer_.weight.problem.n;
    return {count,
            static_cast<float*>(layer_.output) + row * n + columns.first,
            n,
            tokens.scale,
            has_zero_points_ ? tokens.zero_point : nullptr,
            layer_.weight_scale + columns.first,
            columns.bias};
}

template <class Sum>
SumsTile<Sum> Epilogue::tile(const TileColumns& columns, int64_t row, int64_t rows, const void* sums,
                             int64_t sums_stride) const {
    const int64_t n = layer_.weight.problem.n;
    void* out = static_cast<uint8_t*>(layer_.output) + (row * n + columns.first) * element_size(layer_.output_dtype);
    return {rows, columns.count, static_cast<const Sum*>(sums), sums_stride, out, n};
}

void Epilogue::finish(const TileColumns& columns, int64_t row, int64_t rows, const void* sums, int64_t sums_stride,
                      const Tokens& tokens) const {
    const RowRoutines& routines = row_routines();
    const int dtype = static_cast<int>(layer_.output_dtype);
    if (layer_.weight.problem.scheme == Scheme::kInt4) {
        // Both powers of two, so that nothing is rounded.
        float token_scale[kMostRows], zero_point[kMostRows];
        for (int64_t i = 0; i < rows; ++i) {
            token_scale[i] = tokens.scale[i] * unit_;
            zero_point[i] = static_cast<float>(tokens.zero_point[i]) * (1.0f / unit_);
        }
        routines.scale_int4[dtype]({tile<float>(columns, row, rows, sums, sums_stride),
                                    static_cast<const float*>(layer_.weight.sums(columns.first)), columns.bias,
                                    token_scale, zero_point, layer_.least, layer_.greatest});
        return;
    }
    const SumsTile<int32_t> of_int32 = tile<int32_t>(columns, row, rows, sums, sums_stride);
    if (is_float(layer_.output_dtype)) {
        const auto* column_sums = static_cast<const int32_t*>(layer_.weight.sums(columns.first));
        routines.scale[dtype]({of_int32, layer_.weight_scale + columns.first, has_zero_points_ ? column_sums : nullptr,
                               columns.bias, tokens.scale, tokens.zero_point, layer_.least, layer_.greatest});
    } else if (is_requantized(layer_)) {
        const bool is_signed = layer_.output_dtype == DType::kInt8;
        (is_signed ? routines.requantize_int8 : routines.requantize_uint8)(
            {of_int32, columns.offsets, columns.multipliers, layer_.output_zero_point, least_, greatest_});
    } else {
        for (int64_t i = 0; i < rows; ++i)
            std::memcpy(static_cast<int32_t*>(of_int32.out) + i * of_int32.out_stride, of_int32.sums + i * sums_stride,
                        columns.count * sizeof(int32_t));
    }
}

}  // namespace ao_arm
