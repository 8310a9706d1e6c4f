// What the kernels' tests have in common.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/kernel.h"
#include "guarded_memory.h"
#include "layer/packed_weight.h"
#include "layer_runs.h"

namespace ao_arm {

// While it is there, this thread gets no memory: `new` throws.
class NoMemory {
   public:
    NoMemory();
    ~NoMemory();
};

// Counts a check, and prints it if it failed.
void check(bool ok, const std::string& what);

// Checks that passed and failed so far.
int passed();
int failed();

enum class Values { kRandom, kExtreme };

// The bytes with another header, of which the checksum is made right.
template <class Change>
Bytes with_header(Bytes packed, const Change& change) {
    PackedHeader header;
    __builtin_memcpy(&header, packed.data(), sizeof header);
    change(header);
    complete_header(header.panel_columns, header.total_bytes, &header);
    __builtin_memcpy(packed.data(), &header, sizeof header);
    return packed;
}

// --- each file's tests; those of a kernel return whether it met a case ---

bool test_int8_kernel(const Kernel& kernel, bool exhaustive);                          // int8_test.cpp
bool test_int4_kernel(const Kernel& kernel, bool exhaustive);                          // int4_test.cpp
void test_damaged(const Kernel& kernel, const Problem& problem, const Bytes& packed);  // hostile_test.cpp
void test_without_memory(const Kernel& kernel, const Problem& problem);                // hostile_test.cpp
void test_hostile();                                                                   // hostile_test.cpp
void test_cut();                                                                       // cut_test.cpp
void test_guards();                                                                    // guards_test.cpp
void test_layers(bool exhaustive);                                                     // layer_test.cpp

}  // namespace ao_arm
