// The kernel table: what there is, what fits, and what is taken.
#pragma once

#include <string>
#include <vector>

#include "core/kernel.h"

namespace ao_arm {

// All kernels that ao_arm knows for weights of a scheme, also those that this CPU or this build cannot run: the entries
// of the files that CMakeLists.txt lists, in that order. Each file defines a function of its own name that gives them.
const std::vector<const Kernel*>& kernels(Scheme scheme);

// Null if there is none with this id.
const Kernel* find_kernel(Scheme scheme, const std::string& id);

// Every reason why the kernel cannot serve the problem on this CPU. Empty means that it can.
std::vector<std::string> reject_reasons(const Kernel& kernel, const Problem& problem);

// How many rows calls have, for the choice of a kernel: a weight is packed for one kernel, whatever comes.
constexpr int64_t kTypicalRows[] = {1, 16, 128};

// Estimated cycles of a call: the geometric mean over kTypicalRows, so that none of them outweighs the others.
// Negative if there is no estimate: for another architecture, or for a problem that no kernel could serve.
double typical_cost(const Kernel& kernel, const Problem& problem);

// The kernel of the least typical_cost that serves the problem, or the one named `forced` (empty for none). Null, with
// *error saying why and what can be done, if there is none or the forced one is unknown or does not fit.
const Kernel* select_kernel(const Problem& problem, const std::string& forced, std::string* error);

}  // namespace ao_arm
