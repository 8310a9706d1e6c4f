// Calls functions with known values in the registers that a function has to leave as they are.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

namespace ao_arm {

#if defined(__aarch64__)
constexpr int kMostWords = 6;

// Calls it with these words in the first registers; returns what it left in x0, and appends to `changed` which of
// x19 ... x28, d8 ... d15 (the halves of v8 ... v15 that count) and fpcr it left in another state.
uint64_t call_with_words(const void* function, const uint64_t (&words)[kMostWords], std::string* changed);

// An argument as it is passed in registers: a reference is an address.
template <class Parameter>
void add_words(uint64_t** to, const std::remove_reference_t<Parameter>& argument) {
    if constexpr (std::is_reference_v<Parameter>) {
        *(*to)++ = reinterpret_cast<uint64_t>(&argument);
    } else {
        static_assert(sizeof(Parameter) % 8 == 0 && sizeof(Parameter) <= 16, "fills whole registers");
        std::memcpy(*to, &argument, sizeof argument);
        *to += sizeof argument / 8;
    }
}
#endif

// A parameter that is not deduced.
template <class T>
struct Same {
    using Type = T;
};

// What the function gives. On other architectures than AArch64 it is called, and nothing is compared.
template <class Result, class... Parameters>
Result called(std::string* changed, Result (*function)(Parameters...), typename Same<Parameters>::Type... arguments) {
#if defined(__aarch64__)
    uint64_t words[kMostWords] = {}, *next = words;
    (add_words<Parameters>(&next, arguments), ...);
    const uint64_t result = call_with_words(reinterpret_cast<const void*>(function), words, changed);
    return static_cast<Result>((result & 0xFF) != 0);
#else
    static_cast<void>(changed);
    return function(arguments...);
#endif
}

}  // namespace ao_arm
