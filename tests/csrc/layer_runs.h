// Runs layers as their callers do, between guard pages and on threads of its own.
#pragma once

#include <cstdint>
#include <string>

#include "core/parallel.h"
#include "guarded_memory.h"
#include "layer/linear.h"
#include "layer/packed_weight.h"

namespace ao_arm {

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

// Runs layers of one input with a team of this size, however little there is to do. False if their kernel failed.
bool run(const Linears& layers, int threads);
inline bool run(const Linear& layer, int threads) { return run(Linears{&layer, 1}, threads); }

// With the guarded kernel, where it is that one.
std::string open(const Bytes& packed, Scheme scheme, PackedWeight* weight);

}  // namespace ao_arm
