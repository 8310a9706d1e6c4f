// Memory between two pages that nobody may touch: a byte read or written before or behind it ends the program.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ao_arm {

// At which of the two pages the memory lies; at the other one there may be a gap.
enum class Flush { kBehind, kBefore };

// What is in it is not set. Memory is kept and lent again, for which no `new` is called.
class GuardedMemory {
   public:
    // Where it lies at the page behind, it begins at a multiple of `alignment`: bytes that are no multiple leave a gap.
    GuardedMemory(int64_t bytes, Flush flush, int64_t alignment = 1);
    ~GuardedMemory();
    GuardedMemory(const GuardedMemory&) = delete;
    GuardedMemory& operator=(const GuardedMemory&) = delete;

    template <class T = uint8_t>
    T* data() const {
        return reinterpret_cast<T*>(data_);
    }

   private:
    int64_t page_count_;
    uint8_t* pages_;
    uint8_t* data_;
};

// Memory that begins at a multiple of `alignment` and ends, but for a gap that this may leave, where the page behind
// begins.
uint8_t* take_guarded(int64_t bytes, int64_t alignment);
void give_guarded_back(uint8_t* first, int64_t bytes, int64_t alignment);

// For vectors in such memory.
template <class T, int64_t kAlignment = alignof(T)>
struct GuardedAllocator {
    using value_type = T;
    template <class Other>
    struct rebind {
        using other = GuardedAllocator<Other, kAlignment>;
    };

    T* allocate(size_t count) { return reinterpret_cast<T*>(take_guarded(bytes_of(count), kAlignment)); }
    void deallocate(T* first, size_t count) {
        give_guarded_back(reinterpret_cast<uint8_t*>(first), bytes_of(count), kAlignment);
    }

    bool operator==(const GuardedAllocator&) const { return true; }
    bool operator!=(const GuardedAllocator&) const { return false; }

   private:
    static int64_t bytes_of(size_t count) { return static_cast<int64_t>(count * sizeof(T)); }
};

template <class T>
using Guarded = std::vector<T, GuardedAllocator<T>>;

// Packed weights, as aligned as torch's allocator makes them.
using Bytes = std::vector<uint8_t, GuardedAllocator<uint8_t, 64>>;

}  // namespace ao_arm
