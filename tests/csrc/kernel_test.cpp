// Runs every kernel that this CPU can run against plain loops, and what stands around them, without torch or Python:
// so it also runs on CPUs that torch's wheels do not support. Prints a line for each kernel and ends with "N passed,
// N failed".
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "checks.h"
#include "guarded_kernel.h"
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
        check(test(guarded(*kernel), exhaustive), std::string(kernel->id) + " can run here but met no case");
        check(guarded_failures() == 0, std::string(kernel->id) + " between guard pages");
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
    test_guards();
    test_cut();
    test_hostile();
    std::printf("guards, cut and hostile arguments: %d checks passed\n", passed());
    test_table({Scheme::kInt8, 768, 768}, test_int8_kernel, exhaustive);
    test_table({Scheme::kInt4, 768, 768, 32, DType::kBFloat16, false}, test_int4_kernel, exhaustive);
    const int before = passed();
    test_layers(exhaustive);
    std::printf("whole layers: %d checks passed\n", passed() - before);
    std::printf("%d passed, %d failed\n", passed(), failed());
    return failed() == 0 ? 0 : 1;
}
