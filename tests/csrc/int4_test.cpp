// Kernels for 4-bit weights in groups: outputs are near the exact ones and the same for any number of threads.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <thread>

#include "checks.h"
#include "layer/kernel_table.h"
#include "rows/element_types.h"

namespace ao_arm {
namespace {

// A weight in groups packed for a kernel, and m rows of quantized activations with their products and the magnitudes
// that errors are measured by.
struct Case {
    Problem problem;
    int64_t m;
    Guarded<int8_t> activations, q, zero_point;
    Guarded<float> token_scale, float_scale;
    Guarded<int32_t> token_zero;
    Guarded<uint16_t> half_scale;
    std::vector<double> expected, magnitude;
    Bytes packed;
    std::string name, error;

    Case(const Kernel& kernel, const Problem& of, int64_t rows, Values values)
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
          magnitude(m),
          name(std::string(kernel.id) + " m=" + std::to_string(m) + " n=" + std::to_string(problem.n) +
               " k=" + std::to_string(problem.k) + " group=" + std::to_string(problem.group) +
               (problem.scale_type == DType::kFloat32 ? " float scales" : "") +
               (problem.zero_points ? " zero points" : "")) {
        Random random;
        const bool extreme = values == Values::kExtreme;
        const auto drawn = [&](int64_t least, int64_t greatest, int64_t extreme_value) {
            return static_cast<int8_t>(extreme ? extreme_value : random.between(least, greatest));
        };
        for (int8_t& value : activations) value = drawn(-128, 127, -128);
        for (int8_t& value : q) value = drawn(-8, 7, -8);
        for (int8_t& value : zero_point) value = problem.zero_points ? drawn(-8, 7, 7) : int8_t(0);
        for (float& scale : token_scale) scale = random.positive();
        for (int32_t& zero : token_zero) zero = drawn(-128, 127, 127);
        for (size_t i = 0; i < half_scale.size(); ++i) {
            half_scale[i] = BFloat16::store(random.positive());
            float_scale[i] = problem.scale_type == DType::kFloat32 ? random.positive() : BFloat16::load(half_scale[i]);
        }
        for (int64_t i = 0; i < m; ++i)
            for (int64_t j = 0; j < problem.n; ++j) add_up(i, j);
        packed.resize(packed_bytes(kernel, problem));
        error = pack_weight(kernel, problem, plain(), packed.data());
    }

    PlainWeight plain() {
        void* scale =
            problem.scale_type == DType::kFloat32 ? static_cast<void*>(float_scale.data()) : half_scale.data();
        return {q.data(), scale, problem.zero_points ? zero_point.data() : nullptr};
    }

    void add_up(int64_t i, int64_t j) {
        double sum = 0, terms = 0;
        for (int64_t g = 0; g < problem.groups(); ++g) {
            const int64_t index = j * problem.groups() + g;
            int64_t of_group = 0, magnitudes = 0;
            for (int64_t l = 0; l < problem.group; ++l) {
                const int64_t activation = activations[i * problem.k + g * problem.group + l];
                const int64_t weight = q[index * problem.group + l] - zero_point[index];
                of_group += (activation - token_zero[i]) * weight;
                magnitudes += (std::abs(activation) + std::abs(token_zero[i])) * std::abs(weight);
            }
            sum += static_cast<double>(float_scale[index]) * static_cast<double>(of_group);
            terms += static_cast<double>(float_scale[index]) * static_cast<double>(magnitudes);
        }
        expected[i * problem.n + j] = token_scale[i] * sum;
        magnitude[i] = std::max(magnitude[i], token_scale[i] * terms);
    }

    // The first `rows` rows through the whole layer; empty if it failed.
    Guarded<float> multiplied(int64_t rows, int threads = 1) const {
        Linear layer = {};
        if (!open(packed, Scheme::kInt4, &layer.weight).empty()) return {};
        Guarded<float> output(rows * problem.n, 12345);
        layer.input = activations.data();
        layer.input_dtype = DType::kInt8;
        layer.activation_scale = ActivationScale::kGiven;
        layer.token_scale = token_scale.data();
        layer.token_zero_point = token_zero.data();
        layer.output = output.data();
        layer.m = rows;
        layer.least = -INFINITY;
        layer.greatest = INFINITY;
        return run(layer, threads) ? output : Guarded<float>();
    }

    // Whether all are within 1e-6 of their magnitudes.
    bool multiply(int64_t rows) const {
        const Guarded<float> output = multiplied(rows);
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < problem.n; ++j)
                if (output.empty() ||
                    !(std::fabs(output[i * problem.n + j] - expected[i * problem.n + j]) <= 1e-6 * magnitude[i]))
                    return false;
        return true;
    }

    bool unpacks() const {
        PackedWeight opened = {};
        if (!open(packed, Scheme::kInt4, &opened).empty()) return false;
        Case copy = *this;
        std::fill(copy.q.begin(), copy.q.end(), int8_t(1));
        std::fill(copy.half_scale.begin(), copy.half_scale.end(), uint16_t(1));
        return unpack_weight(opened, copy.plain()).empty() && copy.q == q && copy.float_scale == float_scale &&
               copy.zero_point == zero_point &&
               (problem.scale_type == DType::kFloat32 || copy.half_scale == half_scale);
    }
};

// Callers that do not know of each other.
void test_callers(const Kernel& kernel) {
    const Case test(kernel, {Scheme::kInt4, 70, 96, 32, DType::kBFloat16, false}, 40, Values::kRandom);
    std::vector<std::thread> callers;
    std::vector<int> wrong(8, 0);
    for (int t = 0; t < 8; ++t)
        callers.emplace_back([&, t] {
            for (int round = 0; round < 20; ++round) wrong[t] += !test.multiply(1 + (t * 9 + round) % 40);
        });
    for (std::thread& caller : callers) caller.join();
    check(std::all_of(wrong.begin(), wrong.end(), [](int count) { return count == 0; }), test.name + " in 8 threads");
}

}  // namespace

bool test_int4_kernel(const Kernel& kernel, bool exhaustive) {
    check(kernel.row_step <= kMostRowStep, std::string(kernel.id) + " row_step");
    int shapes = 0;
    const auto test = [&](int64_t n, int64_t k, int64_t group, int64_t rows, Values values) {
        for (const bool zero_points : {false, true})
            for (const DType scales : {DType::kBFloat16, DType::kFloat32}) {
                const Problem problem = {Scheme::kInt4, n, k, group, scales, zero_points};
                if (!reject_reasons(kernel, problem).empty()) continue;
                ++shapes;
                const Case made(kernel, problem, rows, values);
                check(made.error.empty() && made.unpacks(), made.name + " unpack " + made.error);
                for (int64_t m = 1; m <= rows && made.error.empty(); m += exhaustive || m < 17 ? 1 : 9)
                    check(made.multiply(m), made.name + " rows=" + std::to_string(m));
                if (n < 30) continue;
                for (const int threads : {2, 3, 7, 16})
                    check(made.multiplied(rows, threads) == made.multiplied(rows),
                          made.name + " on " + std::to_string(threads) + " threads");
            }
    };
    const int64_t layers[][3] = {{1, 1, 1},      {3, 7, 7},     {17, 33, 33},  {5, 32, 32},   {24, 64, 32},
                                 {9, 64, 64},    {31, 96, 32},  {16, 128, 64}, {7, 256, 128}, {4, 512, 256},
                                 {11, 300, 300}, {260, 64, 32}, {8, 192, 96},  {6, 1056, 32}, {2, 2304, 256}};
    for (const auto& [n, k, group] : layers) test(n, k, group, exhaustive ? 33 : 19, Values::kRandom);
    test(40, 64, 32, 130, Values::kRandom);
    const int64_t extreme[][3] = {{9, 64, 32}, {9, 256, 256}, {9, 512, 512}, {2, kMaxK, kMaxK}};
    for (const auto& [n, k, group] : extreme) test(n, k, group, 3, Values::kExtreme);
    test_callers(kernel);
    test_without_memory(kernel, {Scheme::kInt4, 45, 96, 96, DType::kBFloat16, false});
    const Problem small = {Scheme::kInt4, 20, 32, 32, DType::kBFloat16, false};
    test_damaged(kernel, small, Case(kernel, small, 1, Values::kRandom).packed);
    return shapes > 0;
}

}  // namespace ao_arm
