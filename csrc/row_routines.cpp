// Compiled once per instruction set, with AO_ARM_ISA naming the namespace. Everything but the table is local and no
// standard library template is used (see element_types.h). Products are never fused with sums (-ffp-contract=off):
// all instruction sets give the same bits.
#include "row_routines.h"

#include "element_types.h"

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

// Magnitudes order as their bit patterns do, and NaN and infinity come last: one integer maximum finds both the
// largest magnitude and whether all are finite.
template <class T>
RowRange absolute_range(const void* row, int64_t k) {
    const auto* bits = static_cast<const typename T::Bits*>(row);
    typename T::Bits largest = 0;
    for (int64_t i = 0; i < k; ++i) {
        const typename T::Bits magnitude = bits[i] & T::kMagnitude;
        largest = magnitude > largest ? magnitude : largest;
    }
    typename T::Storage value;
    __builtin_memcpy(&value, &largest, sizeof value);
    const float magnitude = T::load(value);
    return {-magnitude, magnitude, largest < T::kInfinity};
}

// As signed integers, bit patterns order like their values once the magnitude bits of negative ones are flipped.
template <class T>
RowRange range(const void* row, int64_t k) {
    using Bits = typename T::Bits;
    const auto* bits = static_cast<const Bits*>(row);
    Bits least = T::kMagnitude, greatest = static_cast<Bits>(~T::kMagnitude);
    for (int64_t i = 0; i < k; ++i) {
        const Bits ordered = static_cast<Bits>(bits[i] ^ ((bits[i] < 0 ? Bits(-1) : Bits(0)) & T::kMagnitude));
        least = ordered < least ? ordered : least;
        greatest = ordered > greatest ? ordered : greatest;
    }
    const auto value_of = [](Bits ordered) {
        const Bits pattern = static_cast<Bits>(ordered ^ ((ordered < 0 ? Bits(-1) : Bits(0)) & T::kMagnitude));
        typename T::Storage value;
        __builtin_memcpy(&value, &pattern, sizeof value);
        return T::load(value);
    };
    const Bits lowest_finite = static_cast<Bits>(~T::kInfinity);  // just below the smallest finite value
    return {value_of(least), value_of(greatest), least > lowest_finite && greatest < T::kInfinity};
}

// Adding 1.5 * 2^23 leaves no bits for a fraction, so the sum is rounded half to even and its low bits hold the
// integer. Exact for magnitudes below 2^22; here they are at most a few hundred.
template <class T>
void quantize(const void* row, int64_t k, float inverse_scale, int32_t zero_point, int8_t* q) {
    const auto* x = static_cast<const typename T::Storage*>(row);
    constexpr float kShift = 12582912.0f;
    constexpr int32_t kShiftBits = 0x4B400000;
    const int32_t offset = zero_point - kShiftBits;
    for (int64_t i = 0; i < k; ++i) {
        const float shifted = T::load(x[i]) * inverse_scale + kShift;
        int32_t value = bits_of(shifted) + offset;
        value = value < -128 ? -128 : value;
        value = value > 127 ? 127 : value;
        q[i] = static_cast<int8_t>(value);
    }
}

template <class T, bool kHasZeroPoint, bool kHasBias>
void epilogue_of(const EpilogueRow& row, int64_t n, typename T::Storage* out) {
    const int32_t* accumulators = row.accumulators;
    const int32_t* column_sums = row.column_sums;
    const float* weight_scale = row.weight_scale;
    const float* bias = row.bias;
    const float token_scale = row.token_scale;
    const uint32_t zero_point = static_cast<uint32_t>(row.zero_point);
    for (int64_t j = 0; j < n; ++j) {
        uint32_t sum = static_cast<uint32_t>(accumulators[j]);
        if (kHasZeroPoint) sum -= zero_point * static_cast<uint32_t>(column_sums[j]);
        float value = (token_scale * weight_scale[j]) * static_cast<float>(static_cast<int32_t>(sum));
        if (kHasBias) value += bias[j];
        out[j] = T::store(value);
    }
}

template <class T>
void epilogue(const EpilogueRow& row, int64_t n, void* out) {
    auto* typed = static_cast<typename T::Storage*>(out);
    if (row.zero_point != 0) {
        row.bias ? epilogue_of<T, true, true>(row, n, typed) : epilogue_of<T, true, false>(row, n, typed);
    } else {
        row.bias ? epilogue_of<T, false, true>(row, n, typed) : epilogue_of<T, false, false>(row, n, typed);
    }
}

template <class T>
void to_float(const void* row, int64_t n, float* out) {
    const auto* x = static_cast<const typename T::Storage*>(row);
    for (int64_t i = 0; i < n; ++i) out[i] = T::load(x[i]);
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
    AO_ARM_EACH_DTYPE(absolute_range), AO_ARM_EACH_DTYPE(range),    AO_ARM_EACH_DTYPE(quantize),
    AO_ARM_EACH_DTYPE(epilogue),       AO_ARM_EACH_DTYPE(to_float), AO_ARM_EACH_DTYPE(fill_nan),
};
#undef AO_ARM_EACH_DTYPE

}  // namespace AO_ARM_ISA
}  // namespace ao_arm
