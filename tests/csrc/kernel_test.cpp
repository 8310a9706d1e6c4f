// Runs every kernel that this CPU can run against plain loops, without torch or Python: so it also runs on CPUs that
// torch's wheels do not support. Prints a line for each kernel and ends with "N passed, N failed".
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "element_types.h"
#include "grouped_registry.h"
#include "linear_int4.h"
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
    int8_t nibble() { return static_cast<int8_t>(static_cast<int>(next() >> 28) - 8); }          // -8 ... 7
    float positive() { return static_cast<float>(1 + (next() >> 16)) / 65536; }                  // 0 ... 1

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

// The bytes of int8 activations taken for uint8 ones, block by block as the driver calls the kernel.
void test_unsigned(const Kernel& kernel, int64_t m, int64_t n, int64_t k, Case::Values values) {
    const Case test(kernel, m, n, k, values);
    PackedWeight opened{};
    check(open_packed_weight(test.packed.data(), static_cast<int64_t>(test.packed.size()), &opened).empty(),
          test.name(kernel) + " unsigned: open");
    const int64_t stride = kernel.lhs_stride(k);
    std::vector<int8_t> rows(m * stride), groups((m + kLhsGroupRows) * stride);
    for (int64_t i = 0; i < m; ++i) std::copy_n(&test.activations[i * k], k, &rows[i * stride]);
    for (int64_t i = 0; kernel.pack_lhs != nullptr && i < m; i += kLhsGroupRows)
        kernel.pack_lhs(&rows[i * stride], std::min(kLhsGroupRows, m - i), stride, &groups[i * stride]);
    std::vector<uint8_t> scratch(kernel.scratch_bytes(std::min(n, kPanelColumns), k));
    bool exact = true;
    for (int64_t panel = 0; panel < opened.panels(); ++panel) {
        const int64_t first = panel * kPanelColumns, columns = opened.columns_of(panel);
        std::vector<int32_t> dst(kBlockRows * columns);
        PanelGemm call = {};
        call.lhs = kernel.pack_lhs != nullptr ? groups.data() : rows.data();
        call.lhs_stride = stride;
        call.lhs_unsigned = true;
        call.panel = opened.base + opened.panel_offset(panel);
        call.column_sums = opened.column_sums() + first;
        call.dst = dst.data();
        call.dst_stride = call.columns = columns;
        call.m = m;
        call.k = k;
        call.scratch = scratch.data();
        exact &= kernel.gemm(call);
        for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = 0; j < columns; ++j) {
                int32_t sum = 0;
                for (int64_t l = 0; l < k; ++l)
                    sum += static_cast<uint8_t>(test.activations[i * k + l]) * test.weight[(first + j) * k + l];
                exact &= sum == dst[i * columns + j];
            }
        }
    }
    check(exact, test.name(kernel) + " unsigned");
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
        return reject_reasons(kernel, Problem{Scheme::kInt8, n, k}).empty() && ++shapes > 0;
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
    if (kernel.serves_unsigned_lhs) {
        for (int64_t m = 1; m <= kBlockRows; ++m)
            test_unsigned(kernel, m, 1 + m * 7 % 61, 3 * m, Case::Values::kRandom);
        for (const auto& [m, n, k] : {std::array<int64_t, 3>{33, 400, 100}, {1, 385, 8}, {8, 65, kMaxK}})
            test_unsigned(kernel, m, n, k, k == kMaxK ? Case::Values::kExtreme : Case::Values::kRandom);
    }
    if (fits(400, 96)) test_threads(kernel);
    if (fits(20, 30)) test_damaged(kernel);
    return shapes > 0;
}

// --- 4-bit weights in groups ---

// A weight in groups packed for a kernel, and m rows of quantized activations with their products and the magnitudes
// that errors are measured by.
struct GroupedCase {
    GroupedProblem problem;
    int64_t m;
    std::vector<int8_t> activations, q, zero_point;
    std::vector<float> token_scale, float_scale;
    std::vector<int32_t> token_zero;
    std::vector<uint16_t> half_scale;
    std::vector<double> expected, magnitude;
    std::vector<uint8_t> packed;
    std::string error;

    GroupedCase(const GroupedKernel& kernel, const GroupedProblem& of, int64_t rows, Case::Values values)
        : problem(of),
          m(rows),
          activations(m * of.k),
          q(of.n * of.k),
          zero_point(of.n * of.groups()),
          token_scale(m),
          float_scale(zero_point.size()),
          token_zero(m),
          half_scale(zero_point.size()),
          expected(m * of.n),
          magnitude(m) {
        Random random;
        const bool extreme = values == Case::Values::kExtreme;
        for (int8_t& value : activations) value = extreme ? -128 : random.activation();
        for (int8_t& value : q) value = extreme ? -8 : random.nibble();
        for (int8_t& value : zero_point) value = !problem.zero_points ? 0 : extreme ? 7 : random.nibble();
        for (float& scale : token_scale) scale = random.positive();
        for (int32_t& zero : token_zero) zero = extreme ? 127 : random.activation();
        for (size_t i = 0; i < half_scale.size(); ++i) {
            half_scale[i] = BFloat16::store(random.positive());
            float_scale[i] = problem.scale_type == DType::kFloat32 ? random.positive() : BFloat16::load(half_scale[i]);
        }
        for (int64_t i = 0; i < m; ++i)
            for (int64_t j = 0; j < problem.n; ++j) add_up(i, j);
        packed.resize(packed_bytes(kernel, problem));
        error = pack_grouped_weight(kernel, problem, values_at(q, half_scale, float_scale, zero_point), packed.data());
    }

    GroupedValues values_at(std::vector<int8_t>& to_q, std::vector<uint16_t>& half, std::vector<float>& full,
                            std::vector<int8_t>& zeros) const {
        void* scale = problem.scale_type == DType::kFloat32 ? static_cast<void*>(full.data()) : half.data();
        return {to_q.data(), scale, problem.zero_points ? zeros.data() : nullptr};
    }

    void add_up(int64_t i, int64_t j) {
        double sum = 0, terms = 0;
        for (int64_t g = 0; g < problem.groups(); ++g) {
            const int64_t index = j * problem.groups() + g;
            int64_t of_group = 0, magnitudes = 0;
            for (int64_t l = 0; l < problem.group; ++l) {
                const int64_t activation = activations[i * problem.k + g * problem.group + l] - token_zero[i];
                const int64_t product = activation * (q[index * problem.group + l] - zero_point[index]);
                of_group += product;
                magnitudes += std::abs(product);
            }
            sum += static_cast<double>(float_scale[index]) * static_cast<double>(of_group);
            terms += static_cast<double>(float_scale[index]) * static_cast<double>(magnitudes);
        }
        expected[i * problem.n + j] = token_scale[i] * sum;
        magnitude[i] = std::max(magnitude[i], token_scale[i] * terms);
    }

    std::string name(const GroupedKernel& kernel) const {
        return std::string(kernel.id) + " m=" + std::to_string(m) + " n=" + std::to_string(problem.n) +
               " k=" + std::to_string(problem.k) + " group=" + std::to_string(problem.group) +
               (problem.scale_type == DType::kFloat32 ? " float scales" : "") +
               (problem.zero_points ? " zero points" : "");
    }

    // The first `rows` rows through the whole layer; true if all are within 1e-6 of their magnitudes.
    bool multiply(int64_t rows) const {
        LinearInt4 layer = {};
        if (!open_packed_grouped_weight(packed.data(), static_cast<int64_t>(packed.size()), &layer.weight).empty())
            return false;
        std::vector<float> output(rows * problem.n, 12345);
        layer.qdata = activations.data();
        layer.token_scale = token_scale.data();
        layer.token_zero = token_zero.data();
        layer.output = output.data();
        layer.m = rows;
        layer.least = -INFINITY;
        layer.greatest = INFINITY;
        std::vector<uint8_t> scratch(scratch_bytes(layer, Parallel::serial()) + 64);
        auto* aligned = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<int64_t>(scratch.data()), 64));
        run_linear(layer, aligned, Parallel::serial());
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < problem.n; ++j)
                if (!(std::fabs(output[i * problem.n + j] - expected[i * problem.n + j]) <= 1e-6 * magnitude[i]))
                    return false;
        return true;
    }

    bool unpacks() const {
        PackedGroupedWeight opened = {};
        if (!open_packed_grouped_weight(packed.data(), static_cast<int64_t>(packed.size()), &opened).empty())
            return false;
        GroupedCase copy = *this;
        std::fill(copy.q.begin(), copy.q.end(), int8_t(1));
        std::fill(copy.half_scale.begin(), copy.half_scale.end(), uint16_t(1));
        unpack_grouped_weight(opened, values_at(copy.q, copy.half_scale, copy.float_scale, copy.zero_point));
        return copy.q == q && copy.float_scale == float_scale && copy.zero_point == zero_point &&
               (problem.scale_type == DType::kFloat32 || copy.half_scale == half_scale);
    }
};

void test_grouped_threads(const GroupedKernel& kernel) {
    const GroupedCase test(kernel, {70, 96, 32, DType::kBFloat16, false}, 40, Case::Values::kRandom);
    std::vector<std::thread> threads;
    std::vector<int> wrong(8, 0);
    for (int t = 0; t < 8; ++t)
        threads.emplace_back([&, t] {
            for (int round = 0; round < 20; ++round) wrong[t] += !test.multiply(1 + (t * 9 + round) % 40);
        });
    for (std::thread& thread : threads) thread.join();
    check(std::all_of(wrong.begin(), wrong.end(), [](int count) { return count == 0; }),
          test.name(kernel) + " in 8 threads");
}

void test_damaged_grouped(const GroupedKernel& kernel) {
    const GroupedCase test(kernel, {20, 32, 32, DType::kBFloat16, false}, 1, Case::Values::kRandom);
    PackedGroupedWeight opened = {};
    for (size_t at = 0; at < sizeof(PackedHeader); ++at) {
        std::vector<uint8_t> damaged = test.packed;
        damaged[at] ^= 0x10;
        check(!open_packed_grouped_weight(damaged.data(), static_cast<int64_t>(damaged.size()), &opened).empty(),
              test.name(kernel) + " with header byte " + std::to_string(at) + " damaged");
    }
    PackedWeight other = {};
    check(!open_packed_weight(test.packed.data(), static_cast<int64_t>(test.packed.size()), &other).empty(),
          test.name(kernel) + " opened as int8");
}

bool test_grouped_kernel(const GroupedKernel& kernel, bool exhaustive) {
    check(kernel.row_step <= kMaxRowStep, std::string(kernel.id) + " row_step");
    int shapes = 0;
    const auto test = [&](int64_t n, int64_t k, int64_t group, int64_t rows, Case::Values values) {
        for (const bool zero_points : {false, true})
            for (const DType scales : {DType::kBFloat16, DType::kFloat32}) {
                const GroupedProblem problem = {n, k, group, scales, zero_points};
                if (!reject_reasons(kernel, problem).empty()) continue;
                ++shapes;
                const GroupedCase made(kernel, problem, rows, values);
                check(made.error.empty() && made.unpacks(), made.name(kernel) + " unpack " + made.error);
                for (int64_t m = 1; m <= rows && made.error.empty(); m += exhaustive || m < 17 ? 1 : 9)
                    check(made.multiply(m), made.name(kernel) + " rows=" + std::to_string(m));
            }
    };
    const int64_t layers[][3] = {{1, 1, 1},      {3, 7, 7},     {17, 33, 33},  {5, 32, 32},   {24, 64, 32},
                                 {9, 64, 64},    {31, 96, 32},  {16, 128, 64}, {7, 256, 128}, {4, 512, 256},
                                 {11, 300, 300}, {260, 64, 32}, {8, 192, 96},  {6, 1056, 32}, {2, 2304, 256}};
    for (const auto& [n, k, group] : layers) test(n, k, group, exhaustive ? 33 : 19, Case::Values::kRandom);
    const int64_t extreme[][3] = {{9, 64, 32}, {9, 256, 256}, {9, 512, 512}, {2, kMaxK, kMaxK}};
    for (const auto& [n, k, group] : extreme) test(n, k, group, 3, Case::Values::kExtreme);
    test_grouped_threads(kernel);
    test_damaged_grouped(kernel);
    return shapes > 0;
}

// Runs `test` for each kernel of a table that can run here.
template <class Kernel, class Problem, class Test>
void test_table(const std::vector<const Kernel*>& table, const Problem& usual, const Test& test) {
    for (const Kernel* kernel : table) {
        const std::vector<std::string> reasons = reject_reasons(*kernel, usual);
        if (!reasons.empty()) {
            std::printf("%s: %s\n", kernel->id, join(reasons).c_str());
            continue;
        }
        const int before = passed;
        check(test(*kernel), std::string(kernel->id) + " can run here but met no case");
        std::printf("%s: %d checks passed\n", kernel->id, passed - before);
        std::fflush(stdout);
    }
}

}  // namespace

// With the argument "exhaustive", all n and k up to 130 are tested instead of some.
int main(int argc, char** argv) {
    const bool exhaustive = argc > 1 && std::strcmp(argv[1], "exhaustive") == 0;
    test_table(kernels(), Problem{Scheme::kInt8, 768, 768},
               [&](const Kernel& kernel) { return test_kernel(kernel, exhaustive); });
    test_table(grouped_kernels(), GroupedProblem{768, 768, 32, DType::kBFloat16, false},
               [&](const GroupedKernel& kernel) { return test_grouped_kernel(kernel, exhaustive); });
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
