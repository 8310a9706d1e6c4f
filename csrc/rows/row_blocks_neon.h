// What row_routines.cpp does by hand on AArch64: a row's range, and whole blocks of columns. It says what they compute;
// the loops there do what is left over. All is local to it (see element_types.h).
#pragma once

#include <arm_neon.h>

#include "core/instruction_set.h"
#include "rows/element_types.h"
#include "rows/row_routines.h"

namespace ao_arm {
namespace AO_ARM_ISA {
namespace {

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

// NEON's minimum and maximum keep a NaN, so the extremes alone tell whether all are finite.
template <class T>
RowRange range(const void* row, int64_t k) {
    const auto* x = static_cast<const typename T::Storage*>(row);
    float32x4_t low0, low1, high0, high1, v[4];
    low0 = low1 = high0 = high1 = vdupq_n_f32(T::load(x[0]));
    const auto take = [&]() __attribute__((always_inline)) {
        low0 = vminq_f32(low0, vminq_f32(v[0], v[1]));
        low1 = vminq_f32(low1, vminq_f32(v[2], v[3]));
        high0 = vmaxq_f32(high0, vmaxq_f32(v[0], v[1]));
        high1 = vmaxq_f32(high1, vmaxq_f32(v[2], v[3]));
    };
    const int64_t blocks_end = k / 16 * 16;
    if (blocks_end < k) {
        typename T::Storage rest[16];
        for (int lane = 0; lane < 16; ++lane) rest[lane] = x[blocks_end + lane < k ? blocks_end + lane : 0];
        load16(rest, v, T());
        take();
    }
    for (int64_t i = 0; i < blocks_end; i += 16) {
        load16(x + i, v, T());
        take();
    }
    const float minimum = vminvq_f32(vminq_f32(low0, low1)), maximum = vmaxvq_f32(vmaxq_f32(high0, high1));
    const auto finite = [](float value) { return (bits_of(value) & 0x7FFFFFFF) < 0x7F800000; };
    return {minimum, maximum, finite(minimum) && finite(maximum)};
}

// Whole blocks of a row; each returns how many elements it did. NEON rounds half to even and saturates while it
// converts and narrows, which compilers do not find out by themselves. What fits in 16 bits is rounded
// by adding 1.5 * 2^23, as elsewhere here: cheaper than a conversion, and it leaves the integer in the low bits.
template <class T, bool kFits>
int64_t quantize_blocks(const typename T::Storage* x, int64_t k, float inverse_scale, int32_t zero_point, int8_t* q) {
    const int16x8_t offset = vdupq_n_s16(static_cast<int16_t>(zero_point));
    const auto narrowed = [](float32x4_t low, float32x4_t high) __attribute__((always_inline)) {
        if (!kFits) return vqmovn_high_s32(vqmovn_s32(vcvtnq_s32_f32(low)), vcvtnq_s32_f32(high));
        const float32x4_t magic = vdupq_n_f32(kMagic);
        return vuzp1q_s16(vreinterpretq_s16_f32(vaddq_f32(low, magic)), vreinterpretq_s16_f32(vaddq_f32(high, magic)));
    };
    int64_t i = 0;
    for (; i + 16 <= k; i += 16) {
        float32x4_t v[4];
        load16(x + i, v, T());
        for (int part = 0; part < 4; ++part) v[part] = vmulq_n_f32(v[part], inverse_scale);
        const int16x8_t low = vqaddq_s16(narrowed(v[0], v[1]), offset);
        const int16x8_t high = vqaddq_s16(narrowed(v[2], v[3]), offset);
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

// The next three do kRows rows from `row` on and return how many columns they did. They copy the tile: a store to its
// output might change what is read through it, as far as the compiler knows.
template <class T, bool kHasZeroPoint, bool kHasBias, bool kClamps, int kRows>
int64_t scale_blocks(const ScaledTile& given, int64_t row) {
    const ScaledTile tile = given;
    const float32x4_t least = vdupq_n_f32(tile.least), greatest = vdupq_n_f32(tile.greatest);
    const int32_t* const sums = tile.sums + row * tile.sums_stride;
    auto* const out = static_cast<typename T::Storage*>(tile.out) + row * tile.out_stride;
    float32x4_t token_scale[kRows];
    int32x4_t zero_point[kRows];
    for (int i = 0; i < kRows; ++i) {
        token_scale[i] = vdupq_n_f32(tile.token_scale[row + i]);
        zero_point[i] = vdupq_n_s32(tile.zero_point[row + i]);
    }
    int64_t j = 0;
    for (; j + 8 <= tile.columns; j += 8) {
        float32x4_t values[kRows][2];
        for (int half = 0; half < 2; ++half) {
            const float32x4_t weight_scale = vld1q_f32(tile.weight_scale + j + 4 * half);
            int32x4_t of_column;
            float32x4_t bias;
            if (kHasZeroPoint) of_column = vld1q_s32(tile.column_sums + j + 4 * half);
            if (kHasBias) bias = vld1q_f32(tile.bias + j + 4 * half);
            for (int i = 0; i < kRows; ++i) {
                int32x4_t sum = vld1q_s32(sums + i * tile.sums_stride + j + 4 * half);
                if (kHasZeroPoint) sum = vmlsq_s32(sum, zero_point[i], of_column);
                float32x4_t value = vmulq_f32(vmulq_f32(weight_scale, token_scale[i]), vcvtq_f32_s32(sum));
                if (kHasBias) value = vaddq_f32(value, bias);
                values[i][half] = kClamps ? vminq_f32(vmaxq_f32(value, least), greatest) : value;
            }
        }
        for (int i = 0; i < kRows; ++i) store8(out + i * tile.out_stride + j, values[i][0], values[i][1], T());
    }
    return j;
}

template <class T, bool kHasBias, bool kClamps, int kRows>
int64_t scale_int4_blocks(const Int4Tile& given, int64_t row) {
    const Int4Tile tile = given;
    const float32x4_t least = vdupq_n_f32(tile.least), greatest = vdupq_n_f32(tile.greatest);
    const float* const sums = tile.sums + row * tile.sums_stride;
    auto* const out = static_cast<typename T::Storage*>(tile.out) + row * tile.out_stride;
    float token_scale[kRows], zero_point[kRows];
    for (int i = 0; i < kRows; ++i) {
        token_scale[i] = tile.token_scale[row + i];
        zero_point[i] = tile.zero_point[row + i];
    }
    int64_t j = 0;
    for (; j + 8 <= tile.columns; j += 8) {
        float32x4_t values[kRows][2];
        for (int half = 0; half < 2; ++half) {
            const float32x4_t of_column = vld1q_f32(tile.column_sums + j + 4 * half);
            float32x4_t bias;
            if (kHasBias) bias = vld1q_f32(tile.bias + j + 4 * half);
            for (int i = 0; i < kRows; ++i) {
                const float32x4_t sum =
                    vfmsq_n_f32(vld1q_f32(sums + i * tile.sums_stride + j + 4 * half), of_column, zero_point[i]);
                const float32x4_t value =
                    kHasBias ? vfmaq_n_f32(bias, sum, token_scale[i]) : vmulq_n_f32(sum, token_scale[i]);
                values[i][half] = kClamps ? vminq_f32(vmaxq_f32(value, least), greatest) : value;
            }
        }
        for (int i = 0; i < kRows; ++i) store8(out + i * tile.out_stride + j, values[i][0], values[i][1], T());
    }
    return j;
}

// Clamped values are rounded by adding 1.5 * 2^23 (see rounded in row_routines.cpp), which runs on more pipes than a
// conversion, and leaves the integer in the low bytes.
template <class Byte, int kRows>
int64_t requantize_blocks(const RequantizedTile& given, int64_t row) {
    const RequantizedTile tile = given;
    const float32x4_t least = vdupq_n_f32(static_cast<float>(tile.least - tile.zero_point));
    const float32x4_t greatest = vdupq_n_f32(static_cast<float>(tile.greatest - tile.zero_point));
    const uint8x16_t zero_point = vdupq_n_u8(static_cast<uint8_t>(tile.zero_point));
    const int32_t* const sums = tile.sums + row * tile.sums_stride;
    auto* const out = reinterpret_cast<uint8_t*>(tile.out) + row * tile.out_stride;
    // Of four columns, in the low bytes.
    const auto four = [&](int64_t at, uint16x8_t(&integers)[kRows]) __attribute__((always_inline)) {
        const int32x4_t offset = vld1q_s32(tile.offsets + at);
        const float32x4_t multiplier = vld1q_f32(tile.multipliers + at);
        for (int i = 0; i < kRows; ++i) {
            const int32x4_t sum = vqaddq_s32(vld1q_s32(sums + i * tile.sums_stride + at), offset);
            const float32x4_t value = vmulq_f32(vcvtq_f32_s32(sum), multiplier);
            const float32x4_t within = vminq_f32(vmaxq_f32(value, least), greatest);
            integers[i] = vreinterpretq_u16_f32(vaddq_f32(within, vdupq_n_f32(kMagic)));
        }
    };
    int64_t j = 0;
    for (; j + 16 <= tile.columns; j += 16) {
        uint16x8_t quarter[4][kRows];
        for (int part = 0; part < 4; ++part) four(j + 4 * part, quarter[part]);
        for (int i = 0; i < kRows; ++i) {
            const uint16x8_t low = vuzp1q_u16(quarter[0][i], quarter[1][i]);
            const uint16x8_t high = vuzp1q_u16(quarter[2][i], quarter[3][i]);
            const uint8x16_t bytes = vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
            vst1q_u8(out + i * tile.out_stride + j, vaddq_u8(bytes, zero_point));
        }
    }
    for (; j + 4 <= tile.columns; j += 4) {
        uint16x8_t integers[kRows];
        four(j, integers);
        for (int i = 0; i < kRows; ++i) {
            const uint8x16_t low = vreinterpretq_u8_u16(vuzp1q_u16(integers[i], integers[i]));
            const uint8x16_t bytes = vaddq_u8(vuzp1q_u8(low, low), zero_point);
            const uint32_t word = vgetq_lane_u32(vreinterpretq_u32_u8(bytes), 0);
            __builtin_memcpy(out + i * tile.out_stride + j, &word, sizeof word);
        }
    }
    return j;
}

// vcvtnq makes 0 of a NaN, as the plain loop does; multipliers are made finite alike.
template <bool kHasBias>
int64_t fold_columns_blocks_of(const FoldedColumns& given, int64_t n) {
    const FoldedColumns columns = given;  // a store might change what is read through it, as far as the compiler knows
    const float input_scale = columns.input_scale, inverse_output_scale = 1.0f / columns.output_scale;
    const int32x4_t zero_point = vdupq_n_s32(-columns.input_zero_point);
    const float32x4_t greatest = vdupq_n_f32(kBelow2To31), least = vnegq_f32(greatest);
    const float32x4_t most = vdupq_n_f32(kMostFloat);
    int64_t j = 0;
    for (; j + 4 <= n; j += 4) {
        const float32x4_t scale = vmulq_n_f32(vld1q_f32(columns.weight_scale + j), input_scale);
        int32x4_t offset = vmulq_s32(zero_point, vld1q_s32(columns.column_sums + j));
        if (kHasBias) {
            const float32x4_t bias = vdivq_f32(vld1q_f32(columns.bias + j), scale);
            offset = vqaddq_s32(vcvtnq_s32_f32(vminq_f32(vmaxq_f32(bias, least), greatest)), offset);
        }
        vst1q_s32(columns.offsets + j, offset);
        const float32x4_t multiplier = vmulq_n_f32(scale, inverse_output_scale);
        const float32x4_t finite = vminq_f32(vmaxq_f32(multiplier, vnegq_f32(most)), most);
        const uint32x4_t is_number = vceqq_f32(multiplier, multiplier);
        vst1q_f32(columns.multipliers + j, vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(finite), is_number)));
    }
    return j;
}

inline int64_t fold_columns_blocks(const FoldedColumns& columns, int64_t n) {
    return columns.bias == nullptr ? fold_columns_blocks_of<false>(columns, n)
                                   : fold_columns_blocks_of<true>(columns, n);
}

}  // namespace
}  // namespace AO_ARM_ISA
}  // namespace ao_arm
