// Runs every kernel that this CPU can run against plain loops, and what stands around them, without torch or Python:
// so it also runs on CPUs that torch's wheels do not support. Prints a line for each kernel and ends with "N passed,
// N failed".
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>

#include "checks.h"
#include "layer/kernel_table.h"

namespace ao_arm {
namespace {

int passed_checks = 0, failed_checks = 0;
thread_local bool has_memory = true;

// Runs `test` for each kernel of a table that can run here.
void test_table(const Problem& usual, bool (*test)(const Kernel& kernel, bool exhaustive), bool exhaustive) {
    for (const Kernel* kernel : kernels(usual.scheme)) {
        const std::vector<std::string> reasons = reject_reasons(*kernel, usual);
        if (!reasons.empty()) {
            std::printf("%s: %s\n", kernel->id, join(reasons).c_str());
            continue;
        }
        const int before = passed_checks;
        check(test(*kernel, exhaustive), std::string(kernel->id) + " can run here but met no case");
        std::printf("%s: %d checks passed\n", kernel->id, passed_checks - before);
        std::fflush(stdout);
    }
}

}  // namespace

NoMemory::NoMemory() { has_memory = false; }
NoMemory::~NoMemory() { has_memory = true; }

bool memory_is_left() { return has_memory; }

void check(bool ok, const std::string& what) {
    ok ? ++passed_checks : ++failed_checks;
    if (!ok && failed_checks <= 20) std::printf("FAILED %s\n", what.c_str());
}

int passed() { return passed_checks; }
int failed() { return failed_checks; }

Parallel own_threads(int threads) {
    return Parallel(threads, [](int64_t tasks, void (*body)(int64_t, void*), void* context) {
        std::vector<std::thread> others;
        for (int64_t task = 1; task < tasks; ++task) others.emplace_back([=] { body(task, context); });
        body(0, context);
        for (std::thread& other : others) other.join();
    });
}

bool run(const Linear& layer, int threads) {
    const LinearCall call(layer, own_threads(threads), {threads, threads});
    // Not set to zeros, as a caller's is not.
    const std::unique_ptr<uint8_t[]> scratch(new uint8_t[call.scratch_bytes() + 64]);
    return call.run(reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<int64_t>(scratch.get()), 64)));
}

std::string open(const std::vector<uint8_t>& packed, Scheme scheme, PackedWeight* weight) {
    return open_packed_weight(scheme, packed.data(), static_cast<int64_t>(packed.size()), weight);
}

}  // namespace ao_arm

// Instead of the standard ones, of which those for arrays call these.
void* operator new(size_t bytes) {
    void* memory = ao_arm::memory_is_left() ? std::malloc(bytes) : nullptr;
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

// With the argument "exhaustive", all n and k up to 130 are tested instead of some.
int main(int argc, char** argv) {
    using namespace ao_arm;
    const bool exhaustive = argc > 1 && std::strcmp(argv[1], "exhaustive") == 0;
    test_cut();
    test_hostile();
    std::printf("cut and hostile arguments: %d checks passed\n", passed());
    test_table({Scheme::kInt8, 768, 768}, test_int8_kernel, exhaustive);
    test_table({Scheme::kInt4, 768, 768, 32, DType::kBFloat16, false}, test_int4_kernel, exhaustive);
    std::printf("%d passed, %d failed\n", passed(), failed());
    return failed() == 0 ? 0 : 1;
}
