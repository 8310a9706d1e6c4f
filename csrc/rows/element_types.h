// Element types: their storage, the bit patterns of magnitudes that are not finite, and exact conversions.
// Everything is local to the including file on purpose: files compiled for different instruction sets include this,
// and of functions with a shared name the linker would keep one copy, perhaps the one this CPU cannot run.
#pragma once

#include <cstdint>

namespace ao_arm {
namespace {

// 1.5 * 2^23: added to a float of less than 2^22 it leaves no bits for a fraction, so that the sum's low bits hold the
// rounded integer.
constexpr float kMagic = 12582912.0f;
constexpr int32_t kMagicBits = 0x4B400000;
// 1.5 * 2^27: one more in its bits is 16 more.
constexpr float kMagicOf16 = 201326592.0f;
constexpr int32_t kMagicOf16Bits = 0x4D400000;
constexpr float kBelow2To31 = 2147483520.0f;  // the last float that is
constexpr float kMostFloat = 3.40282347e38f;

inline int32_t bits_of(float value) {
    int32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of(int32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

struct Float32 {
    using Storage = float;
    using Bits = int32_t;
    static constexpr Bits kMagnitude = 0x7FFFFFFF, kInfinity = 0x7F800000;
    static inline float load(Storage value) { return value; }
    static inline Storage store(float value) { return value; }
};

struct BFloat16 {
    using Storage = uint16_t;
    using Bits = int16_t;
    static constexpr Bits kMagnitude = 0x7FFF, kInfinity = 0x7F80;
    static inline float load(Storage value) {
        return float_of(static_cast<int32_t>(static_cast<uint32_t>(value) << 16));
    }
    // Round half to even; a NaN stays one.
    static inline Storage store(float value) {
        const uint32_t bits = static_cast<uint32_t>(bits_of(value));
        const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
        return static_cast<Storage>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
    }
};

struct Float16 {
    using Storage = uint16_t;
    using Bits = int16_t;
    static constexpr Bits kMagnitude = 0x7FFF, kInfinity = 0x7C00;
#if defined(__aarch64__)
    static inline float load(Storage value) {
        __fp16 half;
        __builtin_memcpy(&half, &value, sizeof half);
        return static_cast<float>(half);
    }
    static inline Storage store(float value) {
        const __fp16 half = static_cast<__fp16>(value);
        Storage bits;
        __builtin_memcpy(&bits, &half, sizeof bits);
        return bits;
    }
#else
    // The exponent is moved by a multiplication with 2^112, which also brings subnormals right.
    static inline float load(Storage value) {
        const int32_t magnitude = static_cast<int32_t>(value & 0x7FFFu) << 13;
        const int32_t sign = static_cast<int32_t>(static_cast<uint32_t>(value & 0x8000u) << 16);
        const int32_t finite = bits_of(float_of(magnitude) * 5.192296858534828e33f);
        const int32_t special = magnitude | 0x7F800000;
        return float_of((magnitude >= (0x7C00 << 13) ? special : finite) | sign);
    }
    // Rounds half to even: normal results by adding to the bits that fall off, subnormal ones by adding 0.5, whose
    // last place is the spacing of subnormals.
    static inline Storage store(float value) {
        const int32_t bits = bits_of(value);
        const int32_t magnitude = bits & 0x7FFFFFFF;
        const int32_t sign = static_cast<int32_t>((static_cast<uint32_t>(bits) >> 16) & 0x8000u);
        const int32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000;
        const int32_t normal = (magnitude - (112 << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13;
        int32_t half = magnitude < (113 << 23) ? subnormal : normal;
        half = magnitude >= 0x477FF000 ? 0x7C00 : half;  // 65520 and more round to infinity
        half = magnitude > 0x7F800000 ? 0x7E00 : half;
        return static_cast<Storage>(half | sign);
    }
#endif
};

}  // namespace
}  // namespace ao_arm
