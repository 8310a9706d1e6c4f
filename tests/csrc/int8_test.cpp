// Kernels for int8 weights: integer sums are exact for every shape and any number of threads, and so are packed values.
#include <algorithm>
#include <array>
#include <cmath>
#include <thread>

#include "checks.h"
#include "layer/kernel_table.h"

namespace ao_arm {
namespace {

// Where the weight's values lie.
enum class Range { kUsual, kFull };  // from -127 or from -128 on

Problem problem_of(int64_t n, int64_t k, Range range) {
    Problem problem = {Scheme::kInt8, n, k};
    problem.full_range = range == Range::kFull;
    return problem;
}

// An (n, k) weight packed for a kernel, and m rows of activations with their exact products.
struct Case {
    int64_t m, n, k;
    bool is_unsigned;  // the activations' bytes are uint8
    Guarded<int8_t> activations, weight;
    std::vector<int32_t> expected;
    Bytes packed;
    std::string name, error;

    Case(const Kernel& kernel, int64_t rows, int64_t columns, int64_t depth, Values values, bool unsigned_bytes = false,
         Range range = Range::kUsual)
        : m(rows),
          n(columns),
          k(depth),
          is_unsigned(unsigned_bytes),
          activations(m * k),
          weight(n * k),
          expected(m * n),
          name(std::string(kernel.id) + " m=" + std::to_string(m) + " n=" + std::to_string(n) + " k=" +
               std::to_string(k) + (is_unsigned ? " unsigned" : "") + (range == Range::kFull ? " full range" : "")) {
        Random random;
        const int least = range == Range::kFull ? -128 : -127;
        const int extreme = is_unsigned ? -1 : -128;  // -1: the bits of 255
        for (int8_t& value : activations)
            value = static_cast<int8_t>(values == Values::kExtreme ? extreme : random.between(-128, 127));
        for (int8_t& value : weight)
            value = static_cast<int8_t>(values == Values::kExtreme ? least : random.between(least, 127));
        if (range == Range::kFull) weight.back() = -128;
        // What kernels that serve no uint8 activations get instead: less 128.
        const int shift = is_unsigned && !kernel.serves_unsigned_lhs ? 128 : 0;
        for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = 0; j < n; ++j) {
                int32_t sum = 0;
                for (int64_t l = 0; l < k; ++l) {
                    const int8_t byte = activations[i * k + l];
                    sum += ((is_unsigned ? static_cast<uint8_t>(byte) : byte) - shift) * weight[j * k + l];
                }
                expected[i * n + j] = sum;
            }
        }
        const Problem problem = problem_of(n, k, range);
        packed.resize(packed_bytes(kernel, problem));
        error = pack_weight(kernel, problem, {weight.data(), nullptr, nullptr}, packed.data());
    }

    // The layer of the first `rows` rows; its kernel is null if the packed weight does not open.
    Linear layer(int64_t rows, Guarded<int32_t>* output) const {
        Linear layer = {};
        if (!open(packed, Scheme::kInt8, &layer.weight).empty()) layer.weight.kernel = nullptr;
        *output = Guarded<int32_t>(rows * n, 12345);
        layer.input = activations.data();
        layer.input_dtype = is_unsigned ? DType::kUInt8 : DType::kInt8;
        layer.activation_scale = ActivationScale::kStatic;
        layer.output = output->data();
        layer.output_dtype = DType::kInt32;
        layer.m = rows;
        return layer;
    }

    bool is_exact(const Guarded<int32_t>& output) const {
        return std::equal(output.begin(), output.end(), expected.begin());
    }

    // The first `rows` rows on some threads; true if all are exact.
    bool multiply(int64_t rows, int threads = 1) const {
        Guarded<int32_t> output;
        const Linear one = layer(rows, &output);
        return one.weight.kernel != nullptr && run(one, threads) && is_exact(output);
    }

    bool unpacks() const {
        PackedWeight opened{};
        Guarded<int8_t> values(n * k);
        return open(packed, Scheme::kInt8, &opened).empty() &&
               unpack_weight(opened, {values.data(), nullptr, nullptr}).empty() && values == weight;
    }
};

// With all rows, and with fewer from `first` on in steps.
void test_shape(const Case& test, int64_t first, int64_t step) {
    check(test.error.empty() && test.unpacks(), test.name + " unpack " + test.error);
    for (int64_t rows = first; rows < test.m + step && test.error.empty(); rows += step)
        check(test.multiply(std::min(rows, test.m)), test.name + " rows=" + std::to_string(std::min(rows, test.m)));
}

void test_shape(const Case& test, bool all_rows) { test_shape(test, all_rows ? 1 : test.m, 1); }

// A weight that holds -128 is multiplied exactly, or refused for that reason and no other. As an ordinary one it is not
// packed at all.
void test_full_range(const Kernel& kernel, int64_t some_columns, int* shapes) {
    const int64_t sizes[][3] = {{1, 1, 1},
                                {33, 16, 64},
                                {33, 17, 33},
                                {9, 40, 3000},
                                {5, 385, 97},
                                {66, 769, 100},
                                {8, some_columns, kMaxKOfFullRange}};
    for (const auto& [m, n, k] : sizes) {
        if (!reject_reasons(kernel, problem_of(n, k, Range::kUsual)).empty()) continue;
        const std::string name = std::string(kernel.id) + " " + described(problem_of(n, k, Range::kFull));
        std::vector<int8_t> qdata(n * k, 1);
        qdata.back() = -128;
        std::vector<uint8_t> packed(packed_bytes(kernel, problem_of(n, k, Range::kUsual)));
        const PlainWeight plain = {qdata.data(), nullptr, nullptr};
        check(!pack_weight(kernel, problem_of(n, k, Range::kUsual), plain, packed.data()).empty(),
              name + " as ordinary");
        const std::vector<std::string> reasons = reject_reasons(kernel, problem_of(n, k, Range::kFull));
        if (!reasons.empty()) {
            check(reasons.size() == 1 && reasons[0].find("the weight holds -128") == 0, name + ": " + join(reasons));
            continue;
        }
        for (const Values values : {Values::kExtreme, Values::kRandom}) {
            ++*shapes;
            test_shape(Case(kernel, m, n, k, values, false, Range::kFull), m < 10);
            test_shape(Case(kernel, m, n, k, values, true, Range::kFull), false);
        }
    }
    check(!reject_reasons(kernel, problem_of(8, kMaxKOfFullRange + 1, Range::kFull)).empty(),
          std::string(kernel.id) + " full range of too large a k");
}

// Weights of one input in one call: their last column blocks are cut, and threads' shares end inside of any of them.
void test_shared_input(const Kernel& kernel) {
    std::vector<Case> tests;
    std::string columns;
    for (const int64_t n : {33, 1, 400, 64}) {  // cases of as many rows and of one depth have the same activations
        tests.emplace_back(kernel, 70, n, 96, Values::kRandom);
        columns += " " + std::to_string(n);
    }
    for (const int64_t rows : {1, 5, 64, 70})
        for (const int threads : {1, 2, 3, 16}) {
            std::vector<Guarded<int32_t>> outputs(tests.size());
            std::vector<Linear> layers;
            for (size_t i = 0; i < tests.size(); ++i) layers.push_back(tests[i].layer(rows, &outputs[i]));
            bool exact = std::all_of(layers.begin(), layers.end(),
                                     [](const Linear& layer) { return layer.weight.kernel != nullptr; }) &&
                         run(Linears{layers.data(), static_cast<int64_t>(layers.size())}, threads);
            for (size_t i = 0; i < tests.size(); ++i) exact &= tests[i].is_exact(outputs[i]);
            check(exact, std::string(kernel.id) + " with the weights' columns" + columns +
                             " rows=" + std::to_string(rows) + " on " + std::to_string(threads) + " threads");
        }
}

// The bits of float outputs, whoever scales the sums: scales and zero points of each token, or those of all of them.
void test_scaled(const Case& test, bool zero_points, bool has_bias) {
    Random random;
    const auto positive = [&](int64_t count) {
        Guarded<float> values(count);
        for (float& value : values) value = random.positive();
        return values;
    };
    const Guarded<float> weight_scale = positive(test.n), bias = positive(test.n), token_scale = positive(test.m);
    Guarded<int32_t> sums, token_zero_point(test.m, 0), column_sums(test.n, 0);
    for (int32_t& value : token_zero_point) value = static_cast<int32_t>(random.between(-128, 127));
    for (int64_t i = 0; i < test.n * test.k; ++i) column_sums[i / test.k] += test.weight[i];
    Guarded<float> output(test.m * test.n);
    Linear layer = test.layer(test.m, &sums);
    layer.output = output.data();
    layer.output_dtype = DType::kFloat32;
    layer.least = -INFINITY;
    layer.greatest = INFINITY;
    layer.weight_scale = weight_scale.data();
    if (has_bias) layer.bias = bias.data(), layer.bias_dtype = DType::kFloat32;
    if (test.is_unsigned) {
        layer.input_scale = token_scale[0];
        layer.input_zero_point = zero_points ? token_zero_point[0] : -128;
    } else {
        layer.activation_scale = ActivationScale::kGiven;
        layer.token_scale = token_scale.data();
        layer.token_zero_point = zero_points ? token_zero_point.data() : nullptr;
    }
    const std::string name = test.name + (zero_points ? " zero points" : "") + (has_bias ? " bias" : "");
    if (layer.weight.kernel == nullptr || !run(layer, 1)) return check(false, name);
    bool same = true;
    for (int64_t i = 0; i < test.m; ++i)
        for (int64_t j = 0; j < test.n; ++j) {
            const int32_t of_token = zero_points ? token_zero_point[i] : 0;
            const int32_t zero_point = test.is_unsigned ? layer.multiplied_zero_point() : of_token;
            const float scale = token_scale[test.is_unsigned ? 0 : i] * weight_scale[j];
            float value = scale * static_cast<float>(test.expected[i * test.n + j] - zero_point * column_sums[j]);
            if (has_bias) value += bias[j];
            same &= output[i * test.n + j] == value;
        }
    check(same, name);
}

// Callers that do not know of each other.
void test_callers(const Kernel& kernel) {
    const Case test(kernel, 70, 400, 96, Values::kRandom);
    std::vector<std::thread> callers;
    std::vector<int> wrong(8, 0);
    for (int t = 0; t < 8; ++t)
        callers.emplace_back([&, t] {
            for (int round = 0; round < 20; ++round) wrong[t] += !test.multiply(1 + (t * 9 + round) % 70);
        });
    for (std::thread& caller : callers) caller.join();
    check(std::all_of(wrong.begin(), wrong.end(), [](int count) { return count == 0; }), test.name + " in 8 threads");
}

}  // namespace

bool test_int8_kernel(const Kernel& kernel, bool exhaustive) {
    // Where k is as large as it may be: a whole step of columns and a part of one, of x86's wide kernels too if all is
    // tested.
    const int64_t some_columns = exhaustive ? 65 : 17;
    std::vector<int64_t> sizes;
    for (int64_t size = 1; size <= (exhaustive ? 130 : 18); ++size) sizes.push_back(size);
    if (!exhaustive)
        for (const int64_t size : {24, 31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 96, 97, 127, 128, 129, 130})
            sizes.push_back(size);
    int shapes = 0;
    const auto fits = [&](int64_t n, int64_t k) {
        return reject_reasons(kernel, {Scheme::kInt8, n, k}).empty() && ++shapes > 0;
    };
    // Unless all is tested: every small n with every small k and a fifth of the other pairs, each with a fifth of the
    // numbers of rows. No step of a kernel shares a factor with five, so that what is left over of n, k and m at the
    // ends of its blocks comes in all combinations, and every size with others of all kinds.
    for (const int64_t n : sizes)
        for (const int64_t k : sizes) {
            if (!exhaustive && std::max(n, k) > 18 && (n + 2 * k) % 5 != 0) continue;
            if (fits(n, k))
                test_shape(Case(kernel, 33, n, k, Values::kRandom), exhaustive ? 1 : 1 + (n + k) % 5,
                           exhaustive ? 1 : 5);
        }
    const int64_t wide[][3] = {{1, 768, 3072}, {65, 383, 100}, {130, 384, 64},
                               {66, 385, 40},  {67, 769, 96},  {7, 1000, 200}};
    for (const auto& [m, n, k] : wide) {
        if (!fits(n, k)) continue;
        const Case test(kernel, m, n, k, Values::kRandom);
        test_shape(test, false);
        for (const int threads : {2, 3, 7, 16})
            check(test.multiply(m, threads), test.name + " on " + std::to_string(threads) + " threads");
    }
    // Of long rows a kernel may multiply a part of k after the other.
    for (const bool is_unsigned : {false, true})
        if (fits(29, 4397)) test_shape(Case(kernel, 45, 29, 4397, Values::kRandom, is_unsigned), 1, 3);
    for (const bool is_unsigned : {false, true})
        for (const auto& [m, n, k] : {std::array<int64_t, 3>{8, 24, 33}, {67, 41, 90}, {19, 29, 4397}})
            if (fits(n, k)) {
                const Case test(kernel, m, n, k, Values::kRandom, is_unsigned);
                for (const bool zero_points : {false, true})
                    for (const bool has_bias : {false, true}) test_scaled(test, zero_points, has_bias);
            }
    const int64_t extreme[][3] = {{9, 40, 3000}, {33, 16, 64}, {8, some_columns, kMaxK}};
    for (const auto& [m, n, k] : extreme)
        if (fits(n, k)) test_shape(Case(kernel, m, n, k, Values::kExtreme), false);
    // As uint8 or, where a kernel does not serve them, less 128.
    for (int64_t m = 1; m <= kMostRows; m += kernel.serves_unsigned_lhs ? 1 : 13)
        if (fits(1 + m * 7 % 61, 3 * m))
            test_shape(Case(kernel, m, 1 + m * 7 % 61, 3 * m, Values::kRandom, true), false);
    for (const auto& [m, n, k] : {std::array<int64_t, 3>{33, 400, 100}, {1, 385, 8}, {8, some_columns, kMaxK}})
        if (fits(n, k)) test_shape(Case(kernel, m, n, k, k == kMaxK ? Values::kExtreme : Values::kRandom, true), false);
    test_full_range(kernel, some_columns, &shapes);
    if (fits(400, 96)) test_callers(kernel);
    if (fits(400, 96) && fits(64, 96) && fits(33, 96) && fits(1, 96)) test_shared_input(kernel);
    test_without_memory(kernel, {Scheme::kInt8, 45, 77});
    if (fits(20, 30)) test_damaged(kernel, {Scheme::kInt8, 20, 30}, Case(kernel, 1, 20, 30, Values::kRandom).packed);
    return shapes > 0;
}

}  // namespace ao_arm
