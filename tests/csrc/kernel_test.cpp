// Runs every kernel that this CPU can run against plain loops, without torch or Python: so it also runs on CPUs that
// torch's wheels do not support. Prints a line for each kernel and ends with "N passed, N failed".
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "linear_int8.h"
#include "packed_weight.h"
#include "registry.h"

namespace {

using namespace ao_arm;

int passed = 0, failed = 0;

void check(bool ok, const std::string& what) {
    ok ? ++passed : ++failed;
    if (!ok && failed <= 20) std::printf("FAILED %s\n", what.c_str());
}

class Random {
   public:
    int8_t activation() { return static_cast<int8_t>(next() >> 24); }                            // -128 ... 127
    int8_t weight() { return static_cast<int8_t>(static_cast<int>(next() >> 24) % 255 - 127); }  // -127 ... 127

   private:
    uint32_t next() { return state_ = state_ * 1664525u + 1013904223u; }
    uint32_t state_ = 1;
};

// An (n, k) weight packed for a kernel, and m rows of activations with their exact products.
struct Case {
    int64_t m, n, k;
    std::vector<int8_t> activations, weight;
    std::vector<int32_t> expected;
    std::vector<uint8_t> packed;
    std::string error;

    enum class Values { kRandom, kExtreme };

    Case(const Kernel& kernel, int64_t rows, int64_t columns, int64_t depth, Values values)
        : m(rows), n(columns), k(depth), activations(m * k), weight(n * k), expected(m * n) {
        Random random;
        for (int8_t& value : activations) value = values == Values::kExtreme ? -128 : random.activation();
        for (int8_t& value : weight) value = values == Values::kExtreme ? -127 : random.weight();
        for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = 0; j < n; ++j) {
                int32_t sum = 0;
                for (int64_t l = 0; l < k; ++l) sum += activations[i * k + l] * weight[j * k + l];
                expected[i * n + j] = sum;
            }
        }
        packed.resize(packed_bytes(kernel, n, k));
        error = pack_weight(kernel, n, k, weight.data(), packed.data());
    }

    std::string name(const Kernel& kernel) const {
        return std::string(kernel.id) + " m=" + std::to_string(m) + " n=" + std::to_string(n) +
               " k=" + std::to_string(k);
    }

    // The first `rows` rows through the kernel; true if all are exact.
    bool multiply(int64_t rows) const {
        PackedWeight opened{};
        if (!open_packed_weight(packed.data(), static_cast<int64_t>(packed.size()), &opened).empty()) return false;
        std::vector<int32_t> output(rows * n, 12345);
        std::vector<uint8_t> scratch(matmul_scratch_bytes(opened, Parallel::serial()) + 64);
        auto* aligned = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<int64_t>(scratch.data()), 64));
        return run_matmul(opened, activations.data(), rows, output.data(), aligned, Parallel::serial()) &&
               std::equal(output.begin(), output.end(), expected.begin());
    }
};

void test_shape(const Kernel& kernel, int64_t most_rows, bool all_rows, int64_t n, int64_t k, Case::Values values) {
    const Case test(kernel, most_rows, n, k, values);
    check(test.error.empty(), test.name(kernel) + ": " + test.error);
    if (!test.error.empty()) return;
    PackedWeight opened{};
    std::vector<int8_t> unpacked(n * k);
    const std::string error = open_packed_weight(test.packed.data(), static_cast<int64_t>(test.packed.size()), &opened);
    check(error.empty() && unpack_weight(opened, unpacked.data()).empty() && unpacked == test.weight,
          test.name(kernel) + " unpack " + error);
    for (int64_t rows = all_rows ? 1 : most_rows; rows <= most_rows; ++rows)
        check(test.multiply(rows), test.name(kernel) + " rows=" + std::to_string(rows));
}

void test_threads(const Kernel& kernel) {
    const Case test(kernel, 70, 400, 96, Case::Values::kRandom);
    std::vector<std::thread> threads;
    std::vector<int> wrong(8, 0);
    for (int t = 0; t < 8; ++t)
        threads.emplace_back([&, t] {
            for (int round = 0; round < 20; ++round) wrong[t] += !test.multiply(1 + (t * 9 + round) % 70);
        });
    for (std::thread& thread : threads) thread.join();
    check(std::all_of(wrong.begin(), wrong.end(), [](int count) { return count == 0; }),
          test.name(kernel) + " in 8 threads");
}

void test_damaged(const Kernel& kernel) {
    const Case test(kernel, 1, 20, 30, Case::Values::kRandom);
    PackedWeight opened{};
    for (size_t at = 0; at < sizeof(PackedHeader); ++at) {
        std::vector<uint8_t> damaged = test.packed;
        damaged[at] ^= 0x10;
        check(!open_packed_weight(damaged.data(), static_cast<int64_t>(damaged.size()), &opened).empty(),
              test.name(kernel) + " with header byte " + std::to_string(at) + " damaged");
    }
    for (const size_t size : {size_t(0), size_t(255), size_t(256), test.packed.size() - 1})
        check(!open_packed_weight(test.packed.data(), static_cast<int64_t>(size), &opened).empty(),
              test.name(kernel) + " cut to " + std::to_string(size));
}

bool test_kernel(const Kernel& kernel, bool exhaustive) {
    std::vector<int64_t> sizes;
    for (int64_t size = 1; size <= (exhaustive ? 130 : 18); ++size) sizes.push_back(size);
    if (!exhaustive)
        for (const int64_t size : {24, 31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 96, 97, 127, 128, 129, 130})
            sizes.push_back(size);
    int shapes = 0;
    const auto fits = [&](int64_t n, int64_t k) {
        return reject_reasons(kernel, Problem{Scheme::kInt8Dynamic, n, k}).empty() && ++shapes > 0;
    };
    for (const int64_t n : sizes)
        for (const int64_t k : sizes)
            if (fits(n, k)) test_shape(kernel, 33, true, n, k, Case::Values::kRandom);
    const int64_t wide[][3] = {{1, 768, 3072}, {65, 383, 100}, {130, 384, 64},
                               {66, 385, 40},  {67, 769, 96},  {7, 1000, 200}};
    for (const auto& [m, n, k] : wide)
        if (fits(n, k)) test_shape(kernel, m, false, n, k, Case::Values::kRandom);
    const int64_t extreme[][3] = {{9, 40, 3000}, {33, 16, 64}, {8, 65, kMaxK}};
    for (const auto& [m, n, k] : extreme)
        if (fits(n, k)) test_shape(kernel, m, false, n, k, Case::Values::kExtreme);
    if (fits(400, 96)) test_threads(kernel);
    if (fits(20, 30)) test_damaged(kernel);
    return shapes > 0;
}

}  // namespace

// With the argument "exhaustive", all n and k up to 130 are tested instead of some.
int main(int argc, char** argv) {
    const bool exhaustive = argc > 1 && std::strcmp(argv[1], "exhaustive") == 0;
    for (const Kernel* kernel : kernels()) {
        const std::vector<std::string> reasons = reject_reasons(*kernel, Problem{Scheme::kInt8Dynamic, 768, 768});
        if (!reasons.empty()) {
            std::printf("%s: %s\n", kernel->id, join(reasons).c_str());
            continue;
        }
        const int before = passed;
        check(test_kernel(*kernel, exhaustive), std::string(kernel->id) + " can run here but met no case");
        std::printf("%s: %d checks passed, e.g. %s\n", kernel->id, passed - before,
                    kernel->packing_format(768, 768).c_str());
        std::fflush(stdout);
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
