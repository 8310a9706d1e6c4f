// Tries a kernel out before it is trusted: those of other libraries, of which any version may be linked.
#pragma once

#include "core/kernel.h"

namespace ao_arm {

// Whether two weights, which hold -128 if the kernel claims to serve such ones, packed by the kernel, unpack to what
// they were and multiply right when they take turns. Done once; the kernel's `trial` keeps the verdict.
bool passes_trial(const Kernel& kernel);

}  // namespace ao_arm
