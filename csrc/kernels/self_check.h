// Tries a kernel of another library out before it is trusted.
#pragma once

#include "core/kernel.h"

namespace ao_arm {

// Whether two weights of this problem, packed by the kernel, unpack to what they were and multiply 5 rows right when
// they take turns. False, too, if the library throws or memory runs out.
bool self_check(const Kernel& kernel, const Problem& problem);

}  // namespace ao_arm
