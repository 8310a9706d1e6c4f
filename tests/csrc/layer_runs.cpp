#include "layer_runs.h"

#include <thread>
#include <vector>

#include "guarded_kernel.h"

namespace ao_arm {

Parallel own_threads(int threads) {
    return Parallel(threads, [](int64_t tasks, void (*body)(int64_t, void*), void* context) {
        std::vector<std::thread> others;
        for (int64_t task = 1; task < tasks; ++task) others.emplace_back([=] { body(task, context); });
        body(0, context);
        for (std::thread& other : others) other.join();
    });
}

bool run(const Linears& layers, int threads) {
    const LinearCall call(layers, own_threads(threads), {threads, threads});
    // Not set to zeros, as a caller's is not.
    const GuardedMemory scratch(call.scratch_bytes(), Flush::kBehind, 64);
    return call.run(scratch.data());
}

std::string open(const Bytes& packed, Scheme scheme, PackedWeight* weight) {
    const std::string error = open_packed_weight(scheme, packed.data(), static_cast<int64_t>(packed.size()), weight);
    if (error.empty()) weight->kernel = guarded_or_same(weight->kernel);
    return error;
}

}  // namespace ao_arm
