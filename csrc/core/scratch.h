// Scratch memory cut into parts.
#pragma once

#include <cstdint>

#include "core/problem.h"

namespace ao_arm {

// Hands out parts one after another, each 64-byte aligned. With no base, only their total size is of use.
class ScratchParts {
   public:
    explicit ScratchParts(uint8_t* base) : base_(base) {}

    template <class T>
    T* take(int64_t count) {
        uint8_t* part = base_ == nullptr ? nullptr : base_ + total_;
        total_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
        return reinterpret_cast<T*>(part);
    }

    int64_t total() const { return total_; }

   private:
    uint8_t* base_;
    int64_t total_ = 0;
};

}  // namespace ao_arm
