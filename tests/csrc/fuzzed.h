// What is fuzzed: each fuzzed_*.cpp defines it for a program of its own, which libFuzzer drives or replay.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace ao_arm {

// Ends the program if something is wrong with what these bytes make. Returns a digest of what has to be the same on
// every CPU.
uint64_t judged(const uint8_t* bytes, size_t size);

[[noreturn]] inline void give_up(const std::string& what) {
    std::fprintf(stderr, "%s\n", what.c_str());
    std::abort();
}

}  // namespace ao_arm
