#include "guarded_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "core/problem.h"

namespace ao_arm {
namespace {

const int64_t kPage = sysconf(_SC_PAGESIZE);

// Pages that were given back are kept by their number, up to this many; each holds the address of the next.
constexpr int64_t kMostKept = 256;
uint8_t* kept[kMostKept + 1];
std::mutex keeping;

int64_t pages_for(int64_t bytes) { return bytes == 0 ? 1 : divide_up(bytes, kPage); }

// The first byte of so many pages, with a guard page on either side.
uint8_t* take_pages(int64_t count) {
    if (count <= kMostKept) {
        const std::lock_guard<std::mutex> lock(keeping);
        if (uint8_t* first = kept[count]) {
            kept[count] = *reinterpret_cast<uint8_t**>(first);
            return first;
        }
    }
    void* all = mmap(nullptr, (count + 2) * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t* first = static_cast<uint8_t*>(all) + kPage;
    if (all == MAP_FAILED || mprotect(first, count * kPage, PROT_READ | PROT_WRITE) != 0) {
        std::perror("no pages for guarded memory");
        std::exit(2);
    }
    return first;
}

void give_pages_back(uint8_t* first, int64_t count) {
    if (count > kMostKept) {
        munmap(first - kPage, (count + 2) * kPage);
        return;
    }
    const std::lock_guard<std::mutex> lock(keeping);
    *reinterpret_cast<uint8_t**>(first) = kept[count];
    kept[count] = first;
}

}  // namespace

GuardedMemory::GuardedMemory(int64_t bytes, Flush flush, int64_t alignment)
    : page_count_(pages_for(round_up(bytes, alignment))), pages_(take_pages(page_count_)) {
    data_ = flush == Flush::kBefore ? pages_ : pages_ + page_count_ * kPage - round_up(bytes, alignment);
}

GuardedMemory::~GuardedMemory() { give_pages_back(pages_, page_count_); }

uint8_t* take_guarded(int64_t bytes, int64_t alignment) {
    const int64_t taken = round_up(bytes, alignment), count = pages_for(taken);
    return take_pages(count) + count * kPage - taken;
}

void give_guarded_back(uint8_t* first, int64_t bytes, int64_t alignment) {
    const int64_t taken = round_up(bytes, alignment), count = pages_for(taken);
    give_pages_back(first + taken - count * kPage, count);
}

}  // namespace ao_arm
