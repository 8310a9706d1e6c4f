// The hot loops of 4-bit layers in groups of 32, with bfloat16 scales and no zero points, on SVE vectors of 256 bits:
// for llvm-mca alone. A vector of the weight holds four columns by 8 values along k in its low nibbles, and four other
// columns in its high ones. What the loops compute is what neon_int4_i8mm.cpp does.
#include <arm_sve.h>

#include <cstdint>

using Bytes = svint8_t __attribute__((arm_sve_vector_bits(256)));
using Sums = svint32_t __attribute__((arm_sve_vector_bits(256)));
using Floats = svfloat32_t __attribute__((arm_sve_vector_bits(256)));

namespace {

inline Floats load_scales(const uint8_t* at) {
    return svreinterpret_f32_u32(
        svlsl_n_u32_x(svptrue_b32(), svld1uh_u32(svptrue_b32(), reinterpret_cast<const uint16_t*>(at)), 16));
}

inline Floats to_float(Sums sums, float magic) {
    return svsub_n_f32_x(svptrue_b32(), svreinterpret_f32_s32(sums), magic);
}

// Loads that stay where they are written.
inline Sums load_here(const int32_t* from) {
    Sums value;
    asm volatile("ldr %0, [%1]" : "=w"(value) : "r"(from));
    return value;
}
inline Bytes load_rows_here(const int8_t* from) {
    Bytes value;
    asm volatile("ld1rqb {%0.b}, %1/z, [%2]" : "=w"(value) : "Upl"(svptrue_b8()), "r"(from));
    return value;
}

}  // namespace

// kPairs pairs of rows by 8 columns.
template <int kPairs>
void tile(const int8_t* lhs, const uint8_t* weight, const int32_t* starts, float* to, int64_t groups) {
    Floats sums[2][kPairs];
#pragma GCC unroll 16
    for (int i = 0; i < 2 * kPairs; ++i) sums[i / kPairs][i % kPairs] = svdup_f32(0);
    for (; groups > 0; --groups) {
        const Floats eight = load_scales(weight + 128);
        const svint64_t pairs = svreinterpret_s64_f32(eight);
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            const Floats scale = svreinterpret_f32_s64(half == 0 ? svzip1_s64(pairs, pairs) : svzip2_s64(pairs, pairs));
            Bytes values[4];
#pragma GCC unroll 4
            for (int step = 0; step < 4; ++step)
                values[step] = svreinterpret_s8_u8(
                    svand_n_u8_x(svptrue_b8(), svld1_u8(svptrue_b8(), weight + 32 * step), half == 0 ? 0x0F : 0xF0));
#pragma GCC unroll 8
            for (int pair = 0; pair < kPairs; ++pair) {
                Sums of_group = load_here(starts + 8 * (half * kPairs + pair));
#pragma GCC unroll 4
                for (int step = 0; step < 4; ++step)
                    of_group = svmmla_s32(of_group, load_rows_here(lhs + 16 * (kPairs * step + pair)), values[step]);
                sums[half][pair] = svmla_f32_x(svptrue_b32(), sums[half][pair],
                                               to_float(of_group, half == 0 ? 201326592.0f : 12582912.0f), scale);
            }
        }
        lhs += kPairs * 64;
        weight += 144;
        starts += kPairs * 16;
    }
#pragma GCC unroll 16
    for (int i = 0; i < 2 * kPairs; ++i) svst1_f32(svptrue_b32(), to + 8 * i, sums[i / kPairs][i % kPairs]);
}
template void tile<4>(const int8_t*, const uint8_t*, const int32_t*, float*, int64_t);
template void tile<8>(const int8_t*, const uint8_t*, const int32_t*, float*, int64_t);

// One row by 8 columns.
void row(const int8_t* lhs, const uint8_t* weight, const int32_t* starts, float* to, int64_t groups) {
    Floats sums = svdup_f32(0);
    for (; groups > 0; --groups) {
        Sums low = load_here(starts), high = load_here(starts + 8);
#pragma GCC unroll 4
        for (int step = 0; step < 4; ++step) {
            const Bytes values = svreinterpret_s8_s64(svdup_s64(*reinterpret_cast<const int64_t*>(lhs + 8 * step)));
            const svuint8_t bytes = svld1_u8(svptrue_b8(), weight + 32 * step);
            low = svdot_s32(low, svreinterpret_s8_u8(svand_n_u8_x(svptrue_b8(), bytes, 0x0F)), values);
            high = svdot_s32(high, svreinterpret_s8_u8(bytes), values);
        }
        high = svsub_s32_x(svptrue_b32(), high, low);
        const Sums both = svadd_s32_x(svptrue_b32(), svuzp1_s32(low, high), svuzp2_s32(low, high));
        sums = svmla_f32_x(svptrue_b32(), sums, to_float(both, 12582912.0f), load_scales(weight + 128));
        lhs += 32;
        weight += 144;
        starts += 16;
    }
    svst1_f32(svptrue_b32(), to, sums);
}
