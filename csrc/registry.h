// The kernel table: what there is, what fits, and what is taken.
#pragma once

#include <string>
#include <vector>

#include "kernel.h"
#include "kernel_choice.h"

namespace ao_arm {

// All kernels that ao_arm knows, also those that this CPU or this build cannot run.
const std::vector<const Kernel*>& kernels();

// Every reason why the kernel cannot serve the problem on this CPU. Empty means that it can.
std::vector<std::string> reject_reasons(const Kernel& kernel, const Problem& problem);

// The cheapest kernel that serves the problem, or the one named `forced` (empty for none). Null, with *error saying
// why and what can be done, if there is none or the forced one is unknown or does not fit.
const Kernel* select_kernel(const Problem& problem, const std::string& forced, std::string* error);

}  // namespace ao_arm
