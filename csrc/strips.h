// How the drivers share work among threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "parallel.h"

namespace ao_arm {

// Below this many multiply-accumulates a thread costs more to wake than it saves.
constexpr int64_t kMacsPerThread = 1 << 18;

inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

// Calls body(first, last, strip) for `parallel.threads()` strips of [0, count) of nearly equal length.
template <class Body>
void run_strips(const Parallel& parallel, int64_t count, const Body& body) {
    const int64_t strips = std::min<int64_t>(parallel.threads(), count);
    parallel.run(strips, [&](int64_t strip) { body(count * strip / strips, count * (strip + 1) / strips, strip); });
}

}  // namespace ao_arm
