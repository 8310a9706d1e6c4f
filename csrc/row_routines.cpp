// Compiled once per instruction set, with AO_ARM_ISA naming the namespace. Everything but the table is local and no
// standard library template is used (see element_types.h). Products are never fused with sums (-ffp-contract=off):
// all instruction sets give the same bits.
#include "row_routines.h"

#include "element_types.h"
#include "row_blocks.h"

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

// Independent partial results, so that a reduction waits for no earlier step: a few vectors of any length.
constexpr int kLanes = 32;

// The greatest of map(bits[0]) ... map(bits[k - 1]), for k of at least 1.
template <class Bits, class Map>
inline Bits greatest_of(const Bits* bits, int64_t k, const Map& map) {
    Bits lanes[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = map(bits[0]);
    const auto take = [&](int lane, Bits pattern) {
        const Bits value = map(pattern);
        lanes[lane] = value > lanes[lane] ? value : lanes[lane];
    };
    int64_t i = 0;
    for (; i + kLanes <= k; i += kLanes)
        for (int lane = 0; lane < kLanes; ++lane) take(lane, bits[i + lane]);
    for (int lane = 0; i + lane < k; ++lane) take(lane, bits[i + lane]);
    Bits result = lanes[0];
    for (int lane = 1; lane < kLanes; ++lane) result = lanes[lane] > result ? lanes[lane] : result;
    return result;
}

// Magnitudes order as their bit patterns do, and NaN and infinity come last: one integer maximum finds both the
// largest magnitude and whether all are finite.
template <class T>
RowRange absolute_range(const void* row, int64_t k) {
    using Bits = typename T::Bits;
    const auto* bits = static_cast<const Bits*>(row);
    const auto magnitude_of = [](Bits pattern) { return static_cast<Bits>(pattern & T::kMagnitude); };
    const Bits largest = greatest_of(bits, k, magnitude_of);
    typename T::Storage value;
    __builtin_memcpy(&value, &largest, sizeof value);
    const float magnitude = T::load(value);
    return {-magnitude, magnitude, largest < T::kInfinity};
}

#if !defined(__aarch64__)
// As signed integers, bit patterns order like their values once the magnitude bits of negative ones are flipped.
template <class T>
RowRange range(const void* row, int64_t k) {
    using Bits = typename T::Bits;
    const auto* bits = static_cast<const Bits*>(row);
    constexpr int kSignBit = 8 * sizeof(Bits) - 1;  // shifting by it spreads the sign over all bits
    const auto ordered_of = [](Bits pattern) {
        return static_cast<Bits>(pattern ^ (static_cast<Bits>(pattern >> kSignBit) & T::kMagnitude));
    };
    const auto reversed_of = [&](Bits pattern) { return static_cast<Bits>(~ordered_of(pattern)); };
    const Bits greatest = greatest_of(bits, k, ordered_of);
    const Bits least = static_cast<Bits>(~greatest_of(bits, k, reversed_of));
    const auto value_of = [&](Bits ordered) {
        const Bits pattern = ordered_of(ordered);  // its own inverse
        typename T::Storage value;
        __builtin_memcpy(&value, &pattern, sizeof value);
        return T::load(value);
    };
    const Bits lowest_finite = static_cast<Bits>(~T::kInfinity);  // just below the smallest finite value
    return {value_of(least), value_of(greatest), least > lowest_finite && greatest < T::kInfinity};
}
#endif

// Rounds half to even, into [-512, 511]; a NaN becomes 0. Adding 1.5 * 2^23 leaves no bits for a fraction, so the low
// bits of the sum hold the integer.
inline int32_t rounded(float value) {
    value = value == value ? value : 0.0f;
    value = value > -512.0f ? value : -512.0f;
    value = value < 511.0f ? value : 511.0f;
    return bits_of(value + kMagic) - 0x4B400000;
}

inline int32_t clamped(int32_t value, int32_t least, int32_t greatest) {
    value = value < least ? least : value;
    return value > greatest ? greatest : value;
}

template <class T, bool kFits>
void quantize_of(const void* row, int64_t k, float inverse_scale, int32_t zero_point, int8_t* q) {
    const auto* x = static_cast<const typename T::Storage*>(row);
    for (int64_t i = quantize_blocks<T, kFits>(x, k, inverse_scale, zero_point, q); i < k; ++i)
        q[i] = static_cast<int8_t>(clamped(rounded(T::load(x[i]) * inverse_scale) + zero_point, -128, 127));
}

template <class T>
void quantize(const void* row, int64_t k, float inverse_scale, int32_t zero_point, int8_t* q) {
    quantize_of<T, false>(row, k, inverse_scale, zero_point, q);
}

template <class T>
void quantize_fitting(const void* row, int64_t k, float inverse_scale, int32_t zero_point, int8_t* q) {
    quantize_of<T, true>(row, k, inverse_scale, zero_point, q);
}

inline int32_t saturating_sum(int32_t a, int32_t b) {
    const int32_t sum = static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
    const int32_t limit = (a >> 31) ^ INT32_MAX;
    return ((a ^ sum) & (b ^ sum)) < 0 ? limit : sum;
}

void fold_columns(const FoldedColumns& columns, int64_t n) {
    const float input_scale = columns.input_scale, inverse_output_scale = 1.0f / columns.output_scale;
    const uint32_t zero_point = static_cast<uint32_t>(-columns.input_zero_point);
    for (int64_t j = fold_columns_blocks(columns, n); j < n; ++j) {
        const float scale = input_scale * columns.weight_scale[j];
        float bias = columns.bias == nullptr ? 0.0f : __builtin_rintf(columns.bias[j] / scale);
        bias = bias == bias ? bias : 0.0f;
        bias = bias > -kLargestBias ? bias : -kLargestBias;
        bias = bias < kLargestBias ? bias : kLargestBias;
        const uint32_t shift = zero_point * static_cast<uint32_t>(columns.column_sums[j]);
        columns.offsets[j] = saturating_sum(static_cast<int32_t>(bias), static_cast<int32_t>(shift));
        columns.multipliers[j] = scale * inverse_output_scale;
    }
}

template <class Byte>
void requantize(const RequantizeRow& row, int64_t n, void* out) {
    auto* bytes = static_cast<Byte*>(out);
    const int32_t* accumulators = row.accumulators;
    const int32_t* offsets = row.offsets;
    const float* multipliers = row.multipliers;
    const int32_t zero_point = row.zero_point, least = row.least, greatest = row.greatest;
    for (int64_t j = requantize_blocks(row, n, bytes); j < n; ++j) {
        const float sum = static_cast<float>(saturating_sum(accumulators[j], offsets[j]));
        bytes[j] = static_cast<Byte>(clamped(rounded(sum * multipliers[j]) + zero_point, least, greatest));
    }
}

template <class T, bool kHasZeroPoint, bool kHasBias, bool kClamped>
void epilogue_of(const EpilogueRow& row, int64_t n, typename T::Storage* out) {
    const int32_t* accumulators = row.accumulators;
    const int32_t* column_sums = row.column_sums;
    const float* weight_scale = row.weight_scale;
    const float* bias = row.bias;
    const float token_scale = row.token_scale, least = row.least, greatest = row.greatest;
    const uint32_t zero_point = static_cast<uint32_t>(row.zero_point);
    for (int64_t j = epilogue_blocks<T, kHasZeroPoint, kHasBias, kClamped>(row, n, out); j < n; ++j) {
        uint32_t sum = static_cast<uint32_t>(accumulators[j]);
        if (kHasZeroPoint) sum -= zero_point * static_cast<uint32_t>(column_sums[j]);
        float value = (token_scale * weight_scale[j]) * static_cast<float>(static_cast<int32_t>(sum));
        if (kHasBias) value += bias[j];
        if (kClamped) {
            value = value < least ? least : value;
            value = value > greatest ? greatest : value;
        }
        out[j] = T::store(value);
    }
}

template <class T>
void epilogue(const EpilogueRow& row, int64_t n, void* out) {
    auto* typed = static_cast<typename T::Storage*>(out);
    using Function = void (*)(const EpilogueRow&, int64_t, typename T::Storage*);
    constexpr Function kFunctions[] = {
        epilogue_of<T, false, false, false>, epilogue_of<T, false, false, true>, epilogue_of<T, false, true, false>,
        epilogue_of<T, false, true, true>,   epilogue_of<T, true, false, false>, epilogue_of<T, true, false, true>,
        epilogue_of<T, true, true, false>,   epilogue_of<T, true, true, true>,
    };
    kFunctions[4 * (row.zero_point != 0) + 2 * (row.bias != nullptr) + row.clamped](row, n, typed);
}

template <class T, bool kHasBias, bool kClamps>
void scale_sums_of(const SumsRows& rows, int64_t n, typename T::Storage* out) {
    int64_t together = 1;
    for (int64_t row = 0; row < rows.rows; row += together) {
        together = rows.rows - row < 2 ? 1 : 2;
        const int64_t done = together == 2 ? scale_sums_blocks<T, kHasBias, kClamps, 2>(rows, row, n, out)
                                           : scale_sums_blocks<T, kHasBias, kClamps, 1>(rows, row, n, out);
        for (int64_t i = row; i < row + together; ++i) {
            const SumsRows local = rows;  // `out` may not alias it
            const float* sums = local.sums + i * local.sums_stride;
            const float token_scale = local.token_scale[i], zero_point = local.zero_point[i];
            for (int64_t j = done; j < n; ++j) {
                float value = token_scale * (sums[j] - zero_point * local.column_sums[j]);
                if (kHasBias) value += local.bias[j];
                if (kClamps) {
                    value = value < local.least ? local.least : value;  // a NaN stays one
                    value = value > local.greatest ? local.greatest : value;
                }
                out[j] = T::store(value);
            }
            out += local.out_stride;
        }
    }
}

template <class T>
void scale_sums(const SumsRows& rows, int64_t n, void* out) {
    auto* typed = static_cast<typename T::Storage*>(out);
    const int32_t infinity = 0x7F800000;
    if (rows.least > -float_of(infinity) || rows.greatest < float_of(infinity)) {
        rows.bias ? scale_sums_of<T, true, true>(rows, n, typed) : scale_sums_of<T, false, true>(rows, n, typed);
    } else {
        rows.bias ? scale_sums_of<T, true, false>(rows, n, typed) : scale_sums_of<T, false, false>(rows, n, typed);
    }
}

template <class T>
void to_float(const void* row, int64_t n, float* out) {
    const auto* x = static_cast<const typename T::Storage*>(row);
    for (int64_t i = 0; i < n; ++i) out[i] = T::load(x[i]);
}

void shift_uint8(const uint8_t* row, int64_t n, int8_t* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<int8_t>(row[i] ^ 0x80);
}

template <class T>
void fill_nan(int64_t n, void* out) {
    auto* typed = static_cast<typename T::Storage*>(out);
    const typename T::Storage nan = T::store(float_of(0x7FC00000));
    for (int64_t i = 0; i < n; ++i) typed[i] = nan;
}

}  // namespace

#define AO_ARM_EACH_DTYPE(routine) {routine<Float32>, routine<BFloat16>, routine<Float16>}
extern const RowRoutines kRowRoutines = {
    AO_ARM_EACH_DTYPE(absolute_range),
    AO_ARM_EACH_DTYPE(range),
    AO_ARM_EACH_DTYPE(quantize),
    AO_ARM_EACH_DTYPE(quantize_fitting),
    AO_ARM_EACH_DTYPE(epilogue),
    fold_columns,
    requantize<int8_t>,
    requantize<uint8_t>,
    shift_uint8,
    AO_ARM_EACH_DTYPE(scale_sums),
    AO_ARM_EACH_DTYPE(to_float),
    AO_ARM_EACH_DTYPE(fill_nan),
};
#undef AO_ARM_EACH_DTYPE

}  // namespace AO_ARM_ISA
}  // namespace ao_arm
