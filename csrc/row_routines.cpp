// Compiled once per instruction set, with AO_ARM_ISA naming the namespace. Everything but the table is local and no
// standard library template is used (see element_types.h). Products are never fused with sums (-ffp-contract=off):
// all instruction sets give the same bits.
#include "row_routines.h"

#include "element_types.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

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

#if defined(__aarch64__)
// Whole blocks of a row; each returns how many elements it did. NEON rounds half to even and saturates while it
// converts and narrows, which compilers do not find out by themselves.
inline void load16(const float* x, float32x4_t (&v)[4], Float32) {
    for (int i = 0; i < 4; ++i) v[i] = vld1q_f32(x + 4 * i);
}

inline void load16(const uint16_t* x, float32x4_t (&v)[4], BFloat16) {
    for (int i = 0; i < 2; ++i) {
        const uint16x8_t bits = vld1q_u16(x + 8 * i);
        v[2 * i] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bits), 16));
        v[2 * i + 1] = vreinterpretq_f32_u32(vshll_high_n_u16(bits, 16));
    }
}

inline void load16(const uint16_t* x, float32x4_t (&v)[4], Float16) {
    for (int i = 0; i < 2; ++i) {
        const float16x8_t half = vreinterpretq_f16_u16(vld1q_u16(x + 8 * i));
        v[2 * i] = vcvt_f32_f16(vget_low_f16(half));
        v[2 * i + 1] = vcvt_high_f32_f16(half);
    }
}

template <class T>
int64_t quantize_blocks(const typename T::Storage* x, int64_t k, float inverse_scale, int32_t zero_point, int8_t* q) {
    const int16x8_t offset = vdupq_n_s16(static_cast<int16_t>(zero_point));
    int64_t i = 0;
    for (; i + 16 <= k; i += 16) {
        float32x4_t v[4];
        load16(x + i, v, T());
        int32x4_t r[4];
        for (int part = 0; part < 4; ++part) r[part] = vcvtnq_s32_f32(vmulq_n_f32(v[part], inverse_scale));
        const int16x8_t low = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(r[0]), r[1]), offset);
        const int16x8_t high = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(r[2]), r[3]), offset);
        vst1q_s8(q + i, vqmovn_high_s16(vqmovn_s16(low), high));
    }
    return i;
}

inline void store8(float* out, float32x4_t low, float32x4_t high, Float32) {
    vst1q_f32(out, low);
    vst1q_f32(out + 4, high);
}

inline void store8(uint16_t* out, float32x4_t low, float32x4_t high, BFloat16) {
    const auto rounded = [](float32x4_t value) {
        const uint32x4_t bits = vreinterpretq_u32_f32(value);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        const uint32x4_t sum = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7FFF)), odd);
        return vbslq_u32(vceqq_f32(value, value), sum, vdupq_n_u32(0x7FC00000));  // a NaN stays one
    };
    vst1q_u16(out, vshrn_high_n_u32(vshrn_n_u32(rounded(low), 16), rounded(high), 16));
}

inline void store8(uint16_t* out, float32x4_t low, float32x4_t high, Float16) {
    vst1q_u16(out, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(low), high)));
}

template <class T, bool kHasZeroPoint, bool kHasBias>
int64_t epilogue_blocks(const EpilogueRow& row, int64_t n, typename T::Storage* out) {
    const int32x4_t zero_point = vdupq_n_s32(row.zero_point);
    const auto value_at = [&](int64_t j) {
        int32x4_t sum = vld1q_s32(row.accumulators + j);
        if (kHasZeroPoint) sum = vmlsq_s32(sum, zero_point, vld1q_s32(row.column_sums + j));
        const float32x4_t scale = vmulq_n_f32(vld1q_f32(row.weight_scale + j), row.token_scale);
        const float32x4_t value = vmulq_f32(scale, vcvtq_f32_s32(sum));
        return kHasBias ? vaddq_f32(value, vld1q_f32(row.bias + j)) : value;
    };
    int64_t j = 0;
    for (; j + 8 <= n; j += 8) store8(out + j, value_at(j), value_at(j + 4), T());
    return j;
}
#else
template <class T>
int64_t quantize_blocks(const typename T::Storage*, int64_t, float, int32_t, int8_t*) {
    return 0;
}

template <class T, bool kHasZeroPoint, bool kHasBias>
int64_t epilogue_blocks(const EpilogueRow&, int64_t, typename T::Storage*) {
    return 0;
}
#endif

// Adding 1.5 * 2^23 leaves no bits for a fraction, so the sum is rounded half to even and its low bits hold the
// integer. Exact for magnitudes below 2^22; here they are at most a few hundred.
template <class T>
void quantize(const void* row, int64_t k, float inverse_scale, int32_t zero_point, int8_t* q) {
    const auto* x = static_cast<const typename T::Storage*>(row);
    constexpr float kShift = 12582912.0f;
    constexpr int32_t kShiftBits = 0x4B400000;
    const int32_t offset = zero_point - kShiftBits;
    for (int64_t i = quantize_blocks<T>(x, k, inverse_scale, zero_point, q); i < k; ++i) {
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
    for (int64_t j = epilogue_blocks<T, kHasZeroPoint, kHasBias>(row, n, out); j < n; ++j) {
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
