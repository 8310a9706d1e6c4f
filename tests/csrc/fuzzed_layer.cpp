// Fuzzed: layers of all kinds, on which all kernels and numbers of threads have to agree.
#include "chosen_layer.h"
#include "fuzzed.h"

namespace ao_arm {

uint64_t judged(const uint8_t* bytes, size_t size) {
    const Verdict verdict = judged_layer(Choices(bytes, size));
    if (!verdict.disagreement.empty()) give_up(verdict.disagreement);
    return verdict.digest;
}

}  // namespace ao_arm
