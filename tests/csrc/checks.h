// What the kernels' tests have in common.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/kernel.h"
#include "core/parallel.h"
#include "layer/linear.h"
#include "layer/packed_weight.h"

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

class Random {
   public:
    explicit Random(uint32_t seed = 1) : state_(seed) {}
    uint32_t next() { return (state_ = state_ * 1664525u + 1013904223u) >> 8; }
    int64_t between(int64_t least, int64_t greatest) { return least + next() % (greatest - least + 1); }
    float positive() { return static_cast<float>(1 + next() % 65536) / 65536; }  // 0 ... 1

   private:
    uint32_t state_;
};

// Threads of the test's own: as many as there are tasks.
Parallel own_threads(int threads);

// Runs a layer with a team of this size, however little there is to do. False if its kernel failed.
bool run(const Linear& layer, int threads);

enum class Values { kRandom, kExtreme };

std::string open(const std::vector<uint8_t>& packed, Scheme scheme, PackedWeight* weight);

// The bytes with another header, of which the checksum is made right.
template <class Change>
std::vector<uint8_t> with_header(std::vector<uint8_t> packed, const Change& change) {
    PackedHeader header;
    __builtin_memcpy(&header, packed.data(), sizeof header);
    change(header);
    complete_header(header.panel_columns, header.total_bytes, &header);
    __builtin_memcpy(packed.data(), &header, sizeof header);
    return packed;
}

// --- each file's tests; those of a kernel return whether it met a case ---

bool test_int8_kernel(const Kernel& kernel, bool exhaustive);  // int8_test.cpp
bool test_int4_kernel(const Kernel& kernel, bool exhaustive);  // int4_test.cpp
void test_damaged(const Kernel& kernel, const Problem& problem,
                  const std::vector<uint8_t>& packed);                   // hostile_test.cpp
void test_without_memory(const Kernel& kernel, const Problem& problem);  // hostile_test.cpp
void test_hostile();                                                     // hostile_test.cpp
void test_cut();                                                         // cut_test.cpp

}  // namespace ao_arm
