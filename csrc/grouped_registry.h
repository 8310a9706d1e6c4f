// The table of kernels for weights in groups: what there is, what fits, and what is taken.
#pragma once

#include "grouped_kernel.h"
#include "kernel_choice.h"

namespace ao_arm {

// All of them, also those that this CPU or this build cannot run.
const std::vector<const GroupedKernel*>& grouped_kernels();

// Every reason why the kernel cannot serve the problem on this CPU. Empty means that it can.
std::vector<std::string> reject_reasons(const GroupedKernel& kernel, const GroupedProblem& problem);

// As select_kernel of registry.h.
const GroupedKernel* select_grouped_kernel(const GroupedProblem& problem, const std::string& forced,
                                           std::string* error);

}  // namespace ao_arm
