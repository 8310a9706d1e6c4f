// Whole layers of all kinds, chosen at random: what fuzzed_layer.cpp searches for, on some that are the same each time.
#include "checks.h"
#include "chosen_layer.h"

namespace ao_arm {

void test_layers(bool exhaustive) {
    Random random;
    for (int i = 0; i < (exhaustive ? 2000 : 200); ++i) {
        uint8_t bytes[48];
        for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.next() >> 8);
        const Verdict verdict = judged_layer(Choices(bytes, sizeof bytes));
        check(verdict.disagreement.empty(), "layer " + std::to_string(i) + ": " + verdict.disagreement);
    }
}

}  // namespace ao_arm
