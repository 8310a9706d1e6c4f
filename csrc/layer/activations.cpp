#include "layer/activations.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace ao_arm {
namespace {

// Modelled on Neoverse V1, float32: finding a row's range and quantizing it.
constexpr double kCyclesPerFloat = 0.42;
constexpr double kCyclesPerByte = 0.1;
constexpr double kCyclesPerRow = 50;

bool has_own_scales(const Linear& layer) {
    return layer.activation_scale == ActivationScale::kPerToken ||
           layer.activation_scale == ActivationScale::kPerTensor;
}

}  // namespace

Activations::Activations(const Linear& layer, RowRange* ranges, const Parallel& parallel, int64_t threads)
    : layer_(layer), ranges_(ranges), shared_{layer.input_scale, layer.multiplied_zero_point()} {
    if (layer.activation_scale != ActivationScale::kPerTensor) return;
    parallel.run_strips(std::min(threads, layer.m), layer.m, [&](int64_t first, int64_t last, int64_t) {
        for (int64_t row = first; row < last; ++row)
            ranges[row] =
                range_of_row(row_at(row), layer.weight.problem.k, layer.activation_symmetric, layer.input_dtype);
    });
    // One range for all tokens that are finite, so that a NaN in one token leaves the others alone.
    RowRange all = {0, 0, true};
    for (int64_t row = 0; row < layer.m; ++row) {
        if (!ranges[row].finite) continue;
        all.minimum = std::min(all.minimum, ranges[row].minimum);
        all.maximum = std::max(all.maximum, ranges[row].maximum);
    }
    shared_ = choose_quantization(all, layer.activation_symmetric, layer.input_dtype);
}

int64_t Activations::own_bytes(const Linear& layer) {
    const Kernel& kernel = *layer.weight.kernel;
    return kernel.pack_lhs == nullptr ? 0 : kernel.row_step * layer.weight.padded_k;
}

double Activations::cost(const Linear& layer, int64_t rows) {
    const double value = is_float(layer.input_dtype) ? kCyclesPerFloat : kCyclesPerByte;
    return static_cast<double>(rows) * (kCyclesPerRow + value * static_cast<double>(layer.weight.problem.k));
}

void Activations::arrange(int64_t begin, int64_t rows, int64_t first, int64_t last, uint8_t* own, const Tokens& tokens,
                          int8_t* lhs) const {
    const Kernel& kernel = *layer_.weight.kernel;
    const Problem& problem = layer_.weight.problem;
    const int64_t padded_k = layer_.weight.padded_k;
    const bool packs = kernel.pack_lhs != nullptr;
    for (int64_t row = first; row < last;) {
        const int64_t at = row % kernel.row_step, block = row - at;
        const int64_t of = std::min(kernel.row_step, rows - block), count = std::min(of - at, last - row);
        int8_t* to = lhs + block / kernel.row_step * layer_.weight.lhs_bytes;
        int8_t* plain = packs ? reinterpret_cast<int8_t*>(own) : to + at * padded_k;
        const int8_t* sources[kMostRowStep];
        for (int64_t i = 0; i < count; ++i) {
            const TokenQuantization token = quantization_of(begin + row + i);
            tokens.scale[row + i] = token.scale;
            tokens.zero_point[row + i] = token.zero_point;
            sources[i] = quantized(begin + row + i, token, !packs, plain + i * padded_k);
        }
        if (packs) kernel.pack_lhs(problem, {sources, at, count, of}, to);
        row += count;
    }
}

bool Activations::zero_points_are_zero() const {
    if (layer_.activation_scale == ActivationScale::kGiven) return layer_.token_zero_point == nullptr;
    return has_own_scales(layer_) ? layer_.activation_symmetric : shared_.zero_point == 0;
}

const void* Activations::row_at(int64_t row) const {
    return static_cast<const uint8_t*>(layer_.input) + row * layer_.weight.problem.k * element_size(layer_.input_dtype);
}

TokenQuantization Activations::quantization_of(int64_t row) const {
    const auto range = [&] {
        return range_of_row(row_at(row), layer_.weight.problem.k, layer_.activation_symmetric, layer_.input_dtype);
    };
    TokenQuantization token = shared_;
    bool finite = true;
    switch (layer_.activation_scale) {
        case ActivationScale::kStatic:
            return shared_;
        case ActivationScale::kPerToken:
            return choose_quantization(range(), layer_.activation_symmetric, layer_.input_dtype);
        case ActivationScale::kPerTensor:
            finite = ranges_[row].finite;
            token.fits = false;
            break;
        case ActivationScale::kGiven:
            token = {layer_.token_scale[row], layer_.token_zero_point == nullptr ? 0 : layer_.token_zero_point[row]};
            finite = std::isfinite(token.scale) && (!is_float(layer_.input_dtype) || range().finite);
            break;
    }
    if (!finite) token.scale = std::nanf("");
    return token;
}

// One row as bytes that the kernel multiplies, with zeros up to padded_k: at `to` or, if it need not be there, where it
// lies already.
const int8_t* Activations::quantized(int64_t row, const TokenQuantization& token, bool in_place, int8_t* to) const {
    const int64_t k = layer_.weight.problem.k, padded_k = layer_.weight.padded_k;
    const void* input = row_at(row);
    if (is_float(layer_.input_dtype)) {
        quantize_row(input, k, padded_k, token, layer_.input_dtype, to);
        return to;
    }
    const bool shifts = layer_.input_dtype == DType::kUInt8 && !layer_.multiplies_uint8();
    if (!in_place && !shifts && k == padded_k) return static_cast<const int8_t*>(input);
    if (shifts)
        row_routines().shift_uint8(static_cast<const uint8_t*>(input), k, to);
    else
        std::memcpy(to, input, k);
    std::memset(to + k, 0, padded_k - k);
    return to;
}

}  // namespace ao_arm
