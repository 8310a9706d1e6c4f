// Activations come in pairs of rows, 8 values of each: one operand of a matrix instruction. A vector of the weight
// holds two columns by 8 values along k in its low nibbles, and two other columns in its high ones.
#include "kernels/neon/neon_int4_tile.h"

namespace ao_arm {
namespace isa_i8mm {
namespace {

// Two zero points, each for one half of the vector.
inline int8x16_t zeros_of_pair(const uint8_t* zeros) {
    const auto* at = reinterpret_cast<const int8_t*>(zeros);
    return vcombine_s8(vld1_dup_s8(at), vld1_dup_s8(at + 1));
}

// Two of four scales, twice.
inline float32x4_t for_pair(float32x4_t scales, int pair) {
    const float64x2_t two = vreinterpretq_f64_f32(scales);
    return vreinterpretq_f32_f64(pair == 0 ? vdupq_laneq_f64(two, 0) : vdupq_laneq_f64(two, 1));
}

inline float32x4_t low_halves(float32x4_t a, float32x4_t b) {
    return vreinterpretq_f32_f64(vtrn1q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}

inline float32x4_t high_halves(float32x4_t a, float32x4_t b) {
    return vreinterpretq_f32_f64(vtrn2q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}

// In the order in which it is written, as load_here.
inline void multiply_here(int32x4_t& acc, int8x16_t lhs, int8x16_t rhs) {
    asm volatile("smmla %0.4s, %1.16b, %2.16b" : "+w"(acc) : "w"(lhs), "w"(rhs));
}

inline void dot_here(int32x4_t& acc, int8x16_t lhs, int8x16_t rhs) {
    asm volatile("sdot %0.4s, %1.16b, %2.16b" : "+w"(acc) : "w"(lhs), "w"(rhs));
}

// Where the sums of a pair of rows and a pair of columns, counted from kPair on, start: `starts` if nothing corrects
// them.
template <int kPair, bool kZeros, bool kRaw>
inline const int32_t* start_of(const int32_t* low_starts, int pair, const int32_t* starts) {
    if (kZeros) return starts;
    return kPair < 2 ? low_starts + 4 * pair : kRaw ? low_starts + 4 * (int4_bytes_start(kI8mmRows) + pair) : starts;
}

// kPairs pairs of rows by kColumnPairs pairs of columns, from kFirstPair on. The first two pairs of columns are low
// nibbles, the others high ones. The units that multiply are what there is
// least of, so accumulators get their first value by loads. Groups of 32 are finished pair of rows by pair of rows,
// with two pairs of columns unpacked in registers beside up to 16 vectors of sums. In longer groups all accumulators
// stay in registers, and so do as many of the sums as there is room for; the rest is kept in memory. Where all columns
// are multiplied together, whole bytes are in place of the high nibbles, as for one row.
template <int kPairs, int kColumnPairs, int kFirstPair, Kind kKind, bool kZeros, class Scale>
AO_ARM_TILE tile(const Part& part) {
    constexpr int kSums = kPairs * kColumnPairs;
    constexpr bool kRaw = kKind != k32 && kColumnPairs == 4 && !kZeros;
    constexpr int kInRegisters = kKind == k32 ? kSums : 24 - kSums < kSums ? 24 - kSums : kSums;
    float memory[kInRegisters < kSums ? kSums * 4 : 1];
    int32_t starts[4];
    vst1q_s32(starts, start<kKind>());

    float32x4_t sums[kPairs][kColumnPairs];
    const int64_t to_stride = part.to_stride, vector_bytes = part.vector_bytes, group_bytes = part.group_bytes;
    float* const to = part.to + 2 * kFirstPair;
    float* row = to;
    unrolled<kPairs * kColumnPairs / 2>(AO_ARM_UNROLLED(i) {
        constexpr int p = i / (kColumnPairs / 2), c = i % (kColumnPairs / 2) * 2;
        if (part.first) {
            sums[p][c] = sums[p][c + 1] = vdupq_n_f32(0);
        } else {
            const float32x4_t upper = vld1q_f32(row + 2 * c), lower = vld1q_f32(row + to_stride + 2 * c);
            sums[p][c] = low_halves(upper, lower);
            sums[p][c + 1] = high_halves(upper, lower);
        }
        if (c + 2 == kColumnPairs) row += 2 * to_stride;
        if constexpr (p * kColumnPairs + c >= kInRegisters) {
            vst1q_f32(memory + (p * kColumnPairs + c) * 4, sums[p][c]);
            vst1q_f32(memory + (p * kColumnPairs + c + 1) * 4, sums[p][c + 1]);
        }
    });
    const int8_t* lhs = part.lhs;
    const int32_t* low_starts = part.starts;
    const uint8_t* weight = part.weight;
    const uint8_t* scales = part.scales + 2 * kFirstPair * sizeof(Scale);
    const uint8_t* zeros = part.zeros + 2 * kFirstPair;
    const int64_t chunks = kKind == k32 ? 2 : part.chunks;
    int32x4_t acc[kPairs][kColumnPairs];  // of a long group
    if constexpr (kKind != k32) {
        unrolled<kPairs>(AO_ARM_UNROLLED(p) {
            unrolled<kColumnPairs>(AO_ARM_UNROLLED(c) {
                acc[p][c] = load_here(start_of<kFirstPair + c / 2 * 2, kZeros, kRaw>(low_starts, p, starts));
            });
        });
    }
    for (int64_t g = part.groups; g > 0; --g) {
        low_starts += kInt4StartVectors * 4;  // those of the group after
        if constexpr (kKind == k32) {
            unrolled<kColumnPairs / 2>(AO_ARM_UNROLLED(turn) {
                constexpr int c0 = turn * 2;
                constexpr bool kLow = kFirstPair + c0 < 2;
                const uint8x16_t mask = load_here(kMasks[!kLow]);
                int8x16_t values[2][4];  // by pair of columns and by 8 values of k
                unrolled<2>(AO_ARM_UNROLLED(c) {
                    const int8x16_t zero = kZeros ? zeros_of_pair(zeros + 2 * (c0 + c)) : vdupq_n_s8(0);
                    unrolled<4>(AO_ARM_UNROLLED(i) {
                        const uint8x16_t bytes = load_here(weight + c * vector_bytes + i * 16);
                        values[c][i] = values_of<!kLow, kZeros>(bytes, mask, zero);
                    });
                });
                const float32x4_t four = load_scales(scales, 2 * c0, Scale());
                const float32x4_t scale[2] = {for_pair(four, 0), for_pair(four, 1)};
                unrolled<kPairs>(AO_ARM_UNROLLED(p) {
                    const int32_t* const start = kLow && !kZeros ? low_starts + 4 * (p - kInt4StartVectors) : starts;
                    int32x4_t of_group[2] = {load_here(start), load_here(start)};
                    unrolled<4>(AO_ARM_UNROLLED(step) {
                        const int8x16_t pair = load_here(lhs + (step * kPairs + p) * 16);
                        unrolled<2>(AO_ARM_UNROLLED(c) { multiply_here(of_group[c], pair, values[c][step]); });
                    });
                    unrolled<2>(AO_ARM_UNROLLED(c) {
                        sums[p][c0 + c] =
                            vfmaq_f32(sums[p][c0 + c], to_float < kKind, kLow && !kZeros > (of_group[c]), scale[c]);
                    });
                });
            });
        } else {
            int8x16_t zero[kColumnPairs];
            unrolled<kColumnPairs>(
                AO_ARM_UNROLLED(c) { zero[c] = kZeros ? zeros_of_pair(zeros + 2 * c) : vdupq_n_s8(0); });
            each_chunk<kKind>(chunks, [&](int64_t i) __attribute__((always_inline)) {
                int8x16_t values[2][kColumnPairs];
                unrolled<2>(AO_ARM_UNROLLED(eight) {
                    unrolled<2>(AO_ARM_UNROLLED(v) {
                        const uint8x16_t bytes = vld1q_u8(weight + v * vector_bytes + (2 * i + eight) * 16);
                        unrolled<kColumnPairs / 2>(AO_ARM_UNROLLED(of) {
                            constexpr int kHalf = kFirstPair / 2 + of, c = 2 * of + v;
                            values[eight][c] = kRaw && kHalf == 1
                                                   ? vreinterpretq_s8_u8(bytes)
                                                   : values_of<kHalf, kZeros>(bytes, vld1q_u8(kMasks[kHalf]), zero[c]);
                        });
                    });
                });
                unrolled<2 * kPairs>(AO_ARM_UNROLLED(step) {
                    constexpr int p = step % kPairs;
                    const int8x16_t pair = load_here(lhs + (i * 2 * kPairs + step) * 16);
                    unrolled<kColumnPairs>(
                        AO_ARM_UNROLLED(c) { multiply_here(acc[p][c], pair, values[step / kPairs][c]); });
                });
            });
            float* kept = memory;
            asm volatile("" : "+r"(kept)::"memory");
            float32x4_t four[kColumnPairs / 2];
            unrolled<kColumnPairs / 2>(AO_ARM_UNROLLED(i) { four[i] = load_scales(scales, 4 * i, Scale()); });
            unrolled<kColumnPairs>(AO_ARM_UNROLLED(from_last) {
                constexpr int c = kColumnPairs - 1 - from_last;  // whole bytes' sums need those of the low nibbles
                const float32x4_t scale = for_pair(four[c / 2], c % 2);
                unrolled<kPairs>(AO_ARM_UNROLLED(p) {
                    constexpr bool kCorrected = kFirstPair + c < 2 && !kZeros;
                    if constexpr (kRaw && c >= 2) acc[p][c] = less(acc[p][c], acc[p][c - 2]);
                    const float32x4_t of_group = to_float<kKind, kCorrected>(acc[p][c]);
                    acc[p][c] = load_here(start_of<kFirstPair + c / 2 * 2, kZeros, kRaw>(low_starts, p, starts));
                    if constexpr (p * kColumnPairs + c >= kInRegisters) {
                        float* const sum = kept + (p * kColumnPairs + c) * 4;
                        vst1q_f32(sum, vfmaq_f32(vld1q_f32(sum), of_group, scale));
                    } else {
                        sums[p][c] = vfmaq_f32(sums[p][c], of_group, scale);
                    }
                });
            });
        }
        lhs += chunks * kPairs * 32;
        weight += group_bytes;
        scales += group_bytes;
        zeros += group_bytes;
    }
    row = to;
    unrolled<kPairs * kColumnPairs / 2>(AO_ARM_UNROLLED(i) {
        constexpr int p = i / (kColumnPairs / 2), c = i % (kColumnPairs / 2) * 2;
        if constexpr (p * kColumnPairs + c >= kInRegisters) {
            sums[p][c] = vld1q_f32(memory + (p * kColumnPairs + c) * 4);
            sums[p][c + 1] = vld1q_f32(memory + (p * kColumnPairs + c + 1) * 4);
        }
        vst1q_f32(row + 2 * c, low_halves(sums[p][c], sums[p][c + 1]));
        vst1q_f32(row + to_stride + 2 * c, high_halves(sums[p][c], sums[p][c + 1]));
        if (c + 2 == kColumnPairs) row += 2 * to_stride;
    });
}

// One row by a whole column block. The row comes twice, so that a vector holds the same 8 values for both columns
// of a vector of the weight; a dot product then leaves two sums for each column. Without zero points whole bytes are
// multiplied for the high nibbles, and what the low ones add to that is taken off in the end. Of longer groups each sum
// has two accumulators.
template <Kind kKind, bool kZeros, class Scale>
AO_ARM_TILE row_tile(const Part& part) {
    constexpr int kSplit = kKind == k32 ? 1 : 2;
    // Of the two sums of a column one starts at the number that to_float takes off.
    int32_t starts[8] = {};
    vst1q_s32(starts, vzip1q_s32(start<kKind>(), vdupq_n_s32(0)));
    float32x4_t sums[2];  // of the low nibbles, of the high ones
    for (int half = 0; half < 2; ++half) sums[half] = part.first ? vdupq_n_f32(0) : vld1q_f32(part.to + 4 * half);
    const int8_t* lhs = part.lhs;
    const int32_t* own_starts = part.starts;
    const uint8_t *weight = part.weight, *scales = part.scales, *zeros = part.zeros;
    const int64_t chunks = kKind == k32 ? 2 : part.chunks;
    const uint8x16_t masks[2] = {vld1q_u8(kMasks[0]), vld1q_u8(kMasks[1])};
    int32x4_t acc[2][2][kSplit];  // by half and vector
    const auto begin_group = [&]() __attribute__((always_inline)) {
        unrolled<4>(AO_ARM_UNROLLED(c) {
            constexpr int half = c / 2, v = c % 2;
            acc[half][v][0] = load_here(kZeros ? starts : own_starts + 4 * (half * int4_bytes_start(1)));
            if constexpr (kSplit == 2) acc[half][v][1] = load_here(starts + 4);
        });
        own_starts += int4_start_vectors(1) * 4;
    };
    begin_group();
    for (int64_t g = 0; g < part.groups; ++g) {
        int8x16_t zero[2][2];
        unrolled<4>(AO_ARM_UNROLLED(c) { zero[c / 2][c % 2] = kZeros ? zeros_of_pair(zeros + 2 * c) : vdupq_n_s8(0); });
        each_chunk<kKind>(chunks, [&](int64_t i) __attribute__((always_inline)) {
            unrolled<2>(AO_ARM_UNROLLED(eight) {
                const int8x16_t row = vld1q_s8(lhs + (2 * i + eight) * 16);
                unrolled<2>(AO_ARM_UNROLLED(v) {
                    const uint8x16_t bytes = vld1q_u8(weight + v * part.vector_bytes + (2 * i + eight) * 16);
                    const int8x16_t low = values_of<0, kZeros>(bytes, masks[0], zero[0][v]);
                    const int8x16_t high =
                        kZeros ? values_of<1, kZeros>(bytes, masks[1], zero[1][v]) : vreinterpretq_s8_u8(bytes);
                    dot_here(acc[0][v][eight % kSplit], low, row);
                    dot_here(acc[1][v][eight % kSplit], high, row);
                });
            });
        });
        int32x4_t of_group[2];
        unrolled<2>(AO_ARM_UNROLLED(half) {
            if constexpr (kSplit == 2)
                unrolled<2>(AO_ARM_UNROLLED(v) { acc[half][v][0] = vaddq_s32(acc[half][v][0], acc[half][v][1]); });
            of_group[half] = vpaddq_s32(acc[half][0][0], acc[half][1][0]);
        });
        if (!kZeros) of_group[1] = less(of_group[1], of_group[0]);
        sums[0] = vfmaq_f32(sums[0], to_float<kKind, !kZeros>(of_group[0]), load_scales(scales, 0, Scale()));
        sums[1] = vfmaq_f32(sums[1], to_float<kKind, false>(of_group[1]), load_scales(scales, 4, Scale()));
        begin_group();
        lhs += chunks * 32;
        weight += part.group_bytes;
        scales += part.group_bytes;
        zeros += part.group_bytes;
    }
    for (int half = 0; half < 2; ++half) vst1q_f32(part.to + 4 * half, sums[half]);
}

// The tiles that make up a column block.
template <int kPairs, Kind kKind, bool kZeros, class Scale>
AO_ARM_TILE row_block(const Part& part) {
    if constexpr (kPairs <= 4) {
        tile<kPairs, 4, 0, kKind, kZeros, Scale>(part);
    } else {
        tile<kPairs, 2, 0, kKind, kZeros, Scale>(part);
        tile<kPairs, 2, 2, kKind, kZeros, Scale>(part);
    }
}

struct Tiles {
    static constexpr int64_t kRows = kI8mmRows;
    static constexpr int64_t kVectorColumns = 2;

    static int64_t interleaved_rows(int64_t rows) { return 2 * i8mm_pairs(rows); }

    template <Kind kKind, bool kZeros, class Scale>
    static MultiplyPart multiply_part(int64_t rows) {
        if (rows == 1) return each_column_block<row_tile<kKind, kZeros, Scale>>;
        switch (i8mm_pairs(rows)) {
            case 1:
                return each_column_block<row_block<1, kKind, kZeros, Scale>>;
            case 2:
                return each_column_block<row_block<2, kKind, kZeros, Scale>>;
            case 3:
                return each_column_block<row_block<3, kKind, kZeros, Scale>>;
            case 4:
                return each_column_block<row_block<4, kKind, kZeros, Scale>>;
            case 6:
                return each_column_block<row_block<6, kKind, kZeros, Scale>>;
            default:
                return each_column_block<row_block<8, kKind, kZeros, Scale>>;
        }
    }
};

}  // namespace

bool neon_int4_multiply(const Multiplication& call) { return multiply_blocks<Tiles>(call); }

}  // namespace isa_i8mm
}  // namespace ao_arm
