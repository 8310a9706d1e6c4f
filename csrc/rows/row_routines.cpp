// Compiled once per instruction set, with AO_ARM_ISA naming the namespace. Everything but the table is local and no
// standard library template is used (see element_types.h). Products are never fused with sums (-ffp-contract=off):
// all instruction sets give the same bits.
#include "rows/row_routines.h"

#include "core/instruction_set.h"
#include "rows/element_types.h"

// What is done by hand: how many columns, of which the loops here do what is left over.
#if defined(__aarch64__)
#include "rows/row_blocks_neon.h"
#define AO_ARM_BLOCKS(...) __VA_ARGS__
#else
#define AO_ARM_BLOCKS(...) 0
#endif

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

template <int kValue>
struct Constant {
    constexpr operator int64_t() const { return kValue; }
};

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

// Rounds half to even, into [-512, 511]; a NaN becomes 0.
inline int32_t rounded(float value) {
    value = value == value ? value : 0.0f;
    value = value > -512.0f ? value : -512.0f;
    value = value < 511.0f ? value : 511.0f;
    return bits_of(value + kMagic) - kMagicBits;
}

inline int32_t clamped(int32_t value, int32_t least, int32_t greatest) {
    value = value < least ? least : value;
    return value > greatest ? greatest : value;
}

template <class T, bool kFits>
void quantize_of(const void* row, int64_t k, float inverse_scale, int32_t zero_point, int8_t* q) {
    const auto* x = static_cast<const typename T::Storage*>(row);
    for (int64_t i = AO_ARM_BLOCKS(quantize_blocks<T, kFits>(x, k, inverse_scale, zero_point, q)); i < k; ++i)
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
    for (int64_t j = AO_ARM_BLOCKS(fold_columns_blocks(columns, n)); j < n; ++j) {
        const float scale = input_scale * columns.weight_scale[j];
        float bias = columns.bias == nullptr ? 0.0f : __builtin_rintf(columns.bias[j] / scale);
        bias = bias == bias ? bias : 0.0f;
        bias = bias > -kBelow2To31 ? bias : -kBelow2To31;
        bias = bias < kBelow2To31 ? bias : kBelow2To31;
        const uint32_t shift = zero_point * static_cast<uint32_t>(columns.column_sums[j]);
        columns.offsets[j] = saturating_sum(static_cast<int32_t>(bias), static_cast<int32_t>(shift));
        float multiplier = scale * inverse_output_scale;
        multiplier = multiplier == multiplier ? multiplier : 0.0f;
        multiplier = multiplier > -kMostFloat ? multiplier : -kMostFloat;
        columns.multipliers[j] = multiplier < kMostFloat ? multiplier : kMostFloat;
    }
}

// Calls body(row, rows) for the rows of a tile, two at a time, which share what they load of the columns.
template <class Body>
inline void each_pair(int64_t rows, const Body& body) {
    int64_t row = 0;
    for (; row + 2 <= rows; row += 2) body(row, Constant<2>());
    if (row < rows) body(row, Constant<1>());
}

template <class Byte>
void requantize(const RequantizedTile& tile) {
    each_pair(tile.rows, [&](int64_t row, auto rows) {
        const int64_t done = AO_ARM_BLOCKS(requantize_blocks<Byte, rows>(tile, row));
        const RequantizedTile local = tile;  // `out` may not alias it
        for (int64_t i = row; i < row + rows; ++i) {
            const int32_t* sums = local.sums + i * local.sums_stride;
            auto* out = static_cast<Byte*>(local.out) + i * local.out_stride;
            for (int64_t j = done; j < local.columns; ++j) {
                const float sum = static_cast<float>(saturating_sum(sums[j], local.offsets[j]));
                out[j] = static_cast<Byte>(
                    clamped(rounded(sum * local.multipliers[j]) + local.zero_point, local.least, local.greatest));
            }
        }
    });
}

// A NaN stays one.
template <bool kClamps>
inline float bounded(float value, float least, float greatest) {
    if (!kClamps) return value;
    value = value < least ? least : value;
    return value > greatest ? greatest : value;
}

template <class T, bool kHasZeroPoint, bool kHasBias, bool kClamps>
void scale_of(const ScaledTile& tile) {
    each_pair(tile.rows, [&](int64_t row, auto rows) {
        const int64_t done = AO_ARM_BLOCKS(scale_blocks<T, kHasZeroPoint, kHasBias, kClamps, rows>(tile, row));
        const ScaledTile local = tile;
        for (int64_t i = row; i < row + rows; ++i) {
            const int32_t* sums = local.sums + i * local.sums_stride;
            auto* out = static_cast<typename T::Storage*>(local.out) + i * local.out_stride;
            const float token_scale = local.token_scale[i];
            const uint32_t zero_point = static_cast<uint32_t>(local.zero_point[i]);
            for (int64_t j = done; j < local.columns; ++j) {
                uint32_t sum = static_cast<uint32_t>(sums[j]);
                if (kHasZeroPoint) sum -= zero_point * static_cast<uint32_t>(local.column_sums[j]);
                float value = (token_scale * local.weight_scale[j]) * static_cast<float>(static_cast<int32_t>(sum));
                if (kHasBias) value += local.bias[j];
                out[j] = T::store(bounded<kClamps>(value, local.least, local.greatest));
            }
        }
    });
}

// a * b + c as the blocks compute it, so that it does not matter which columns are left over.
inline float multiply_add(float a, float b, float c) {
#if defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

template <class T, bool kHasBias, bool kClamps>
void scale_int4_of(const Int4Tile& tile) {
    each_pair(tile.rows, [&](int64_t row, auto rows) {
        const int64_t done = AO_ARM_BLOCKS(scale_int4_blocks<T, kHasBias, kClamps, rows>(tile, row));
        const Int4Tile local = tile;
        for (int64_t i = row; i < row + rows; ++i) {
            const float* sums = local.sums + i * local.sums_stride;
            auto* out = static_cast<typename T::Storage*>(local.out) + i * local.out_stride;
            const float token_scale = local.token_scale[i], zero_point = local.zero_point[i];
            for (int64_t j = done; j < local.columns; ++j) {
                const float sum = multiply_add(-zero_point, local.column_sums[j], sums[j]);
                const float value = kHasBias ? multiply_add(token_scale, sum, local.bias[j]) : token_scale * sum;
                out[j] = T::store(bounded<kClamps>(value, local.least, local.greatest));
            }
        }
    });
}

template <class Tile>
bool clamps(const Tile& tile) {
    const float infinity = float_of(0x7F800000);
    return tile.least > -infinity || tile.greatest < infinity;
}

template <class T>
void scale(const ScaledTile& tile) {
    constexpr void (*kFunctions[])(const ScaledTile&) = {
        scale_of<T, false, false, false>, scale_of<T, false, false, true>, scale_of<T, false, true, false>,
        scale_of<T, false, true, true>,   scale_of<T, true, false, false>, scale_of<T, true, false, true>,
        scale_of<T, true, true, false>,   scale_of<T, true, true, true>,
    };
    kFunctions[4 * (tile.column_sums != nullptr) + 2 * (tile.bias != nullptr) + clamps(tile)](tile);
}

template <class T>
void scale_int4(const Int4Tile& tile) {
    constexpr void (*kFunctions[])(const Int4Tile&) = {
        scale_int4_of<T, false, false>,
        scale_int4_of<T, false, true>,
        scale_int4_of<T, true, false>,
        scale_int4_of<T, true, true>,
    };
    kFunctions[2 * (tile.bias != nullptr) + clamps(tile)](tile);
}

template <class T>
void to_float(const void* row, int64_t n, float* out) {
    const auto* x = static_cast<const typename T::Storage*>(row);
    for (int64_t i = 0; i < n; ++i) out[i] = T::load(x[i]);
}

void shift_uint8(const uint8_t* row, int64_t n, int8_t* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<int8_t>(row[i] ^ 0x80);
}

}  // namespace

#define AO_ARM_EACH_DTYPE(routine) {routine<Float32>, routine<BFloat16>, routine<Float16>}
extern const RowRoutines kRowRoutines = {
    AO_ARM_EACH_DTYPE(absolute_range),
    AO_ARM_EACH_DTYPE(range),
    AO_ARM_EACH_DTYPE(quantize),
    AO_ARM_EACH_DTYPE(quantize_fitting),
    AO_ARM_EACH_DTYPE(scale),
    AO_ARM_EACH_DTYPE(scale_int4),
    fold_columns,
    requantize<int8_t>,
    requantize<uint8_t>,
    shift_uint8,
    AO_ARM_EACH_DTYPE(to_float),
};
#undef AO_ARM_EACH_DTYPE

}  // namespace AO_ARM_ISA
}  // namespace ao_arm
