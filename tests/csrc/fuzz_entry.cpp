// Where libFuzzer enters.
#include "fuzzed.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
    ao_arm::judged(bytes, size);
    return 0;
}
