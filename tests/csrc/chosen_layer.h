// A layer of any kind that the ops can make, chosen by bytes, and whether all kernels of this CPU agree on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace ao_arm {

// Numbers made of given bytes, one after another; once these are used up, the least that is possible. No expression may
// take two of them where their order is the compiler's choice.
class Choices {
   public:
    Choices(const uint8_t* bytes, size_t size) : bytes_(bytes), left_(size) {}

    int64_t between(int64_t least, int64_t greatest);
    bool yes() { return between(0, 1) == 1; }

   private:
    const uint8_t* bytes_;
    size_t left_;
};

struct Verdict {
    std::string disagreement;  // empty if there is none
    // Of what is the same on every CPU: what int8 layers give, where a NaN is a NaN, and what is unpacked.
    uint64_t digest;
};

// Packs, unpacks and multiplies it, each kernel guarded, on one thread and on several. Int8 layers have to be the same
// to the bit on all kernels; those of 4 bits on any number of threads, and within the stated bound of the exact result.
Verdict judged_layer(Choices choices);

}  // namespace ao_arm
