#include "kept_registers.h"

#if defined(__aarch64__)

namespace ao_arm {
namespace {

// x19 ... x28, then the lower halves of v8 ... v15, which is what the procedure call standard keeps of them.
constexpr int kGeneral = 10, kVectors = 8, kRegisters = kGeneral + kVectors;

}  // namespace

extern "C" uint64_t ao_arm_call_with(const void* function, const uint64_t* arguments, const uint64_t* filled,
                                     uint64_t* found);
asm(R"(
    .text
    .balign 4
    .globl ao_arm_call_with
    .hidden ao_arm_call_with
    .type ao_arm_call_with, %function
ao_arm_call_with:
    stp x29, x30, [sp, #-176]!
    mov x29, sp
    stp x19, x20, [sp, #16]
    stp x21, x22, [sp, #32]
    stp x23, x24, [sp, #48]
    stp x25, x26, [sp, #64]
    stp x27, x28, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    str x3, [sp, #160]
    ldp x19, x20, [x2]
    ldp x21, x22, [x2, #16]
    ldp x23, x24, [x2, #32]
    ldp x25, x26, [x2, #48]
    ldp x27, x28, [x2, #64]
    ldp d8, d9, [x2, #80]
    ldp d10, d11, [x2, #96]
    ldp d12, d13, [x2, #112]
    ldp d14, d15, [x2, #128]
    mov x9, x0
    mov x10, x1
    ldp x0, x1, [x10]
    ldp x2, x3, [x10, #16]
    ldp x4, x5, [x10, #32]
    blr x9
    ldr x9, [sp, #160]
    stp x19, x20, [x9]
    stp x21, x22, [x9, #16]
    stp x23, x24, [x9, #32]
    stp x25, x26, [x9, #48]
    stp x27, x28, [x9, #64]
    stp d8, d9, [x9, #80]
    stp d10, d11, [x9, #96]
    stp d12, d13, [x9, #112]
    stp d14, d15, [x9, #128]
    ldp x19, x20, [sp, #16]
    ldp x21, x22, [sp, #32]
    ldp x23, x24, [sp, #48]
    ldp x25, x26, [sp, #64]
    ldp x27, x28, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    ldp x29, x30, [sp], #176
    ret
    .size ao_arm_call_with, . - ao_arm_call_with
)");

namespace {

uint64_t float_control() {
    uint64_t value;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
}

}  // namespace

uint64_t call_with_words(const void* function, const uint64_t (&words)[kMostWords], std::string* changed) {
    uint64_t filled[kRegisters], found[kRegisters];
    for (int i = 0; i < kRegisters; ++i) filled[i] = 0xA5C3F00D00000000u + static_cast<uint64_t>(i) * 0x01010101u;
    const uint64_t control = float_control();
    const uint64_t result = ao_arm_call_with(function, words, filled, found);
    for (int i = 0; i < kRegisters; ++i)
        if (found[i] != filled[i])
            *changed += i < kGeneral ? " x" + std::to_string(19 + i) : " d" + std::to_string(8 + i - kGeneral);
    if (float_control() != control) *changed += " fpcr";
    return result;
}

}  // namespace ao_arm

#endif
