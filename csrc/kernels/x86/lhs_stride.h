// How far apart x86 micro-kernels want the rows of activations.
#pragma once

#include <cstdint>

#include "core/problem.h"

namespace ao_arm {

// Values of a row with its padding: an odd number of cache lines, so that the rows of a tile, at one place of k, do not
// compete for the same few lines of the first-level cache.
inline int64_t x86_lhs_stride(int64_t k) { return 64 * (divide_up(k, 64) | 1); }

}  // namespace ao_arm
