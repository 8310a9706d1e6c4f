// A kernel whose every buffer lies between guard pages, and whose callers' registers are compared after each call.
#pragma once

#include "core/kernel.h"

namespace ao_arm {

// The same kernel, of which each function is called twice on copies of what it gets: once with every buffer as near as
// may be to the page behind it, once to the page before it, and with other bytes in the memory that it has to fill.
// Both times it has to give the same. It ends the program where it reads or writes what is not its own (core/kernel.h
// says what is), and counts a failed check where it gives another result or changes a register that it has to keep.
// There is one such kernel at a time.
const Kernel& guarded(const Kernel& kernel);

// The guarded kernel if this is the one that it guards.
const Kernel* guarded_or_same(const Kernel* kernel);

// What failed since `guarded`; counted in any thread.
int guarded_failures();

}  // namespace ao_arm
