// A vector of the weight holds four columns by 4 values along k in its low nibbles, and four others in its high ones; a
// vector of activations holds 16 values of one row: four lanes, each of which is multiplied by all four columns.
#include "kernels/neon/neon_int4_tile.h"

namespace ao_arm {
namespace isa_dotprod {
namespace {

// Four zero points, each for four lanes.
inline int8x16_t zeros_of_four(const uint8_t* zeros) {
    uint32_t four;
    __builtin_memcpy(&four, zeros, sizeof four);
    const uint8x8_t once = vreinterpret_u8_u32(vdup_n_u32(four));
    const uint16x4_t twice = vreinterpret_u16_u8(vzip1_u8(once, once));
    return vreinterpretq_s8_u16(vcombine_u16(vzip1_u16(twice, twice), vzip2_u16(twice, twice)));
}

// In the order in which it is written, as load_here.
template <int kLane>
inline void multiply_here(int32x4_t& acc, int8x16_t columns, int8x16_t row) {
    asm volatile("sdot %0.4s, %1.16b, %2.4b[%3]" : "+w"(acc) : "w"(columns), "w"(row), "i"(kLane));
}

// The values of the low (0) or the high (1) columns by kChunk values along k; raw: for the high ones whole bytes.
template <int kHalf, bool kZeros, bool kRaw>
__attribute__((always_inline)) inline void unpack(const uint8_t* at, int8x16_t zero, int8x16_t* values) {
    const uint8x16_t mask = vld1q_u8(kMasks[kHalf]);
    for (int lane = 0; lane < 4; ++lane) {
        const uint8x16_t bytes = load_here(at + 16 * lane);
        values[lane] = kRaw && kHalf == 1 ? vreinterpretq_s8_u8(bytes) : values_of<kHalf, kZeros>(bytes, mask, zero);
    }
}

// kRowsOfTile rows by 8 columns. Groups of 32 are finished row by row, with four columns unpacked in registers; in
// longer groups each row has an accumulator, a lone row two; few rows take all columns in one go, a lone row in groups
// of 32 as well. Those are, without zero points, multiplied by whole bytes in place of the high nibbles, and what the
// low ones add to that is taken off in the end.
template <int kRowsOfTile, Kind kKind, bool kZeros, class Scale>
AO_ARM_TILE tile(const Part& part) {
    constexpr int kTogether = kRowsOfTile <= 4 ? 2 : 1;
    constexpr int kSplit = kRowsOfTile == 1 && kKind != k32 ? 2 : 1;
    constexpr bool kRaw = kTogether == 2 && (kRowsOfTile == 1 || kKind != k32) && !kZeros;
    const int64_t lhs_stride = part.lhs_stride, group_bytes = part.group_bytes;
    int32_t starts[8];  // of a sum, and of its second part
    vst1q_s32(starts, start<kKind>());
    vst1q_s32(starts + 4, vdupq_n_s32(0));
    float32x4_t sums[kRowsOfTile][2];
    float* row = part.to;
    unrolled<kRowsOfTile>(AO_ARM_UNROLLED(r) {
        sums[r][0] = part.first ? vdupq_n_f32(0) : vld1q_f32(row);
        sums[r][1] = part.first ? vdupq_n_f32(0) : vld1q_f32(row + 4);
        row += part.to_stride;
    });
    const int8_t* lhs = part.lhs;
    const int32_t* own_starts = part.starts;
    const uint8_t *weight = part.weight, *scales = part.scales, *zeros = part.zeros;
    const int64_t chunks = kKind == k32 ? 2 : part.chunks;
    for (int64_t g = part.groups; g > 0; --g) {
        if constexpr (kKind == k32 && !kRaw) {
            unrolled<2>(AO_ARM_UNROLLED(c) {
                constexpr bool kCorrected = c == 0 && !kZeros;
                const int8x16_t zero = kZeros ? zeros_of_four(zeros + 4 * c) : vdupq_n_s8(0);
                const float32x4_t scale = load_scales(scales, 4 * c, Scale());
                int8x16_t values[8];
                unpack<c, kZeros, false>(weight, zero, values);
                unpack<c, kZeros, false>(weight + 64, zero, values + 4);
                const int8_t* from = lhs;
                unrolled<kRowsOfTile>(AO_ARM_UNROLLED(r) {
                    int32x4_t acc = load_here(kCorrected ? own_starts + 4 * r : starts);
                    unrolled<2>(AO_ARM_UNROLLED(i) {
                        const int8x16_t part_of_row = load_here(from + i * kChunk);
                        unrolled<4>(
                            AO_ARM_UNROLLED(lane) { multiply_here<lane>(acc, values[4 * i + lane], part_of_row); });
                    });
                    from += lhs_stride;
                    sums[r][c] = vfmaq_f32(sums[r][c], to_float<kKind, kCorrected>(acc), scale);
                });
            });
        } else {
            unrolled<2 / kTogether>(AO_ARM_UNROLLED(turn) {
                constexpr int c0 = turn * kTogether;
                int8x16_t zero[kTogether];
                int32x4_t acc[kRowsOfTile][kTogether][kSplit];
                unrolled<kTogether>(AO_ARM_UNROLLED(c) {
                    zero[c] = kZeros ? zeros_of_four(zeros + 4 * (c0 + c)) : vdupq_n_s8(0);
                    unrolled<kRowsOfTile>(AO_ARM_UNROLLED(r) {
                        constexpr bool kCorrected = kRaw || (c0 + c == 0 && !kZeros);
                        acc[r][c][0] = load_here(
                            kCorrected ? own_starts + 4 * ((c0 + c) * int4_bytes_start(kRowsOfTile) + r) : starts);
                        if constexpr (kSplit == 2) acc[r][c][1] = load_here(starts + 4);
                    });
                });
                each_chunk<kKind>(chunks, [&](int64_t i) __attribute__((always_inline)) {
                    int8x16_t values[kTogether][4];
                    unrolled<kTogether>(
                        AO_ARM_UNROLLED(c) { unpack<c0 + c, kZeros, kRaw>(weight + i * 64, zero[c], values[c]); });
                    const int8_t* from = lhs + i * kChunk;
                    unrolled<kRowsOfTile>(AO_ARM_UNROLLED(r) {
                        const int8x16_t part_of_row = load_here(from);
                        from += lhs_stride;
                        unrolled<4 * kTogether>(AO_ARM_UNROLLED(step) {
                            constexpr int lane = step / kTogether, c = step % kTogether;
                            multiply_here<lane>(acc[r][c][lane % kSplit], values[c][lane], part_of_row);
                        });
                    });
                });
                unrolled<kTogether>(AO_ARM_UNROLLED(c) {
                    const float32x4_t scale = load_scales(scales, 4 * (c0 + c), Scale());
                    unrolled<kRowsOfTile>(AO_ARM_UNROLLED(r) {
                        int32x4_t& of_group = acc[r][c][0];
                        if constexpr (kSplit == 2) of_group = vaddq_s32(of_group, acc[r][c][1]);
                        if constexpr (kRaw && c == 1) of_group = less(of_group, acc[r][0][0]);
                        const float32x4_t values = to_float < kKind, c0 + c == 0 && !kZeros > (of_group);
                        sums[r][c0 + c] = vfmaq_f32(sums[r][c0 + c], values, scale);
                    });
                });
            });
        }
        lhs += chunks * kChunk;
        own_starts += int4_start_vectors(kRowsOfTile) * 4;
        weight += group_bytes;
        scales += group_bytes;
        zeros += group_bytes;
    }
    row = part.to;
    unrolled<kRowsOfTile>(AO_ARM_UNROLLED(r) {
        vst1q_f32(row, sums[r][0]);
        vst1q_f32(row + 4, sums[r][1]);
        row += part.to_stride;
    });
}

struct Tiles {
    static constexpr int64_t kRows = kDotprodRows;
    static constexpr int64_t kVectorColumns = 4;

    static int64_t interleaved_rows(int64_t) { return 1; }

    template <Kind kKind, bool kZeros, class Scale>
    static MultiplyPart multiply_part(int64_t rows) {
        switch (rows) {
            case 1:
                return each_column_block<tile<1, kKind, kZeros, Scale>>;
            case 2:
                return each_column_block<tile<2, kKind, kZeros, Scale>>;
            case 3:
                return each_column_block<tile<3, kKind, kZeros, Scale>>;
            case 4:
                return each_column_block<tile<4, kKind, kZeros, Scale>>;
            case 5:
            case 6:
                return each_column_block<tile<6, kKind, kZeros, Scale>>;
            default:
                return each_column_block<tile<8, kKind, kZeros, Scale>>;
        }
    }
};

}  // namespace

bool neon_int4_multiply(const Multiplication& call) { return multiply_blocks<Tiles>(call); }

}  // namespace isa_dotprod
}  // namespace ao_arm
