// That what guards the kernels would find something: guard pages end the program, and changed registers are told.
#include <sys/wait.h>
#include <unistd.h>

#include "checks.h"
#include "guarded_memory.h"
#include "kept_registers.h"

namespace ao_arm {
namespace {

// Whether the program ends by touching this byte.
bool is_fatal(volatile const uint8_t* at) {
    const pid_t child = fork();
    if (child == 0) {
        close(STDERR_FILENO);  // of a sanitizer's report
        static_cast<void>(*at);
        _exit(0);
    }
    int status = 0;
    return child > 0 && waitpid(child, &status, 0) == child && !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void test_pages() {
    for (const int64_t bytes : {1, 63, 64, 4095, 4096, 4097}) {
        const GuardedMemory behind(bytes, Flush::kBehind), before(bytes, Flush::kBefore);
        const std::string name = "guard pages of " + std::to_string(bytes) + " bytes";
        check(is_fatal(behind.data() + bytes) && is_fatal(before.data() - 1), name);
        check(!is_fatal(behind.data()) && !is_fatal(behind.data() + bytes - 1), name + ", first and last");
        check(!is_fatal(before.data()) && !is_fatal(before.data() + bytes - 1), name + ", first and last");
    }
    const GuardedMemory gap(100, Flush::kBehind, 64);
    check(reinterpret_cast<uintptr_t>(gap.data()) % 64 == 0 && is_fatal(gap.data() + 128), "a gap of an alignment");
    const Guarded<float> vector(7);
    check(is_fatal(reinterpret_cast<const uint8_t*>(vector.data() + 7)), "a guarded vector");
}

#if defined(__aarch64__)
extern "C" uint64_t ao_arm_changes_registers(uint64_t value);
asm(R"(
    .text
    .balign 4
    .globl ao_arm_changes_registers
    .hidden ao_arm_changes_registers
    .type ao_arm_changes_registers, %function
ao_arm_changes_registers:
    add x20, x0, #1
    fmov d9, x0
    fmov d31, x0
    ret
    .size ao_arm_changes_registers, . - ao_arm_changes_registers
)");
uint64_t changes_nothing(uint64_t value) { return value + 1; }

void test_registers() {
    std::string changed;
    called(&changed, changes_nothing, 6);
    check(changed.empty(), "registers that nobody changed:" + changed);
    called(&changed, ao_arm_changes_registers, 7);
    check(changed == " x20 d9", "registers that somebody changed:" + changed);
}
#endif

}  // namespace

void test_guards() {
    test_pages();
#if defined(__aarch64__)
    test_registers();
#endif
}

}  // namespace ao_arm
