#include "layer/trial.h"

#include <cmath>

#include "layer/linear.h"
#include "layer/packed_weight.h"
#include "rows/element_types.h"

namespace ao_arm {
namespace {

constexpr int64_t kRows = 5;

// A weight, and rows of activations that it is multiplied by.
struct Trial {
    const Kernel& kernel;
    const Problem problem;
    const int64_t groups = problem.scheme == Scheme::kInt4 ? problem.groups() : 1;
    std::vector<int8_t> qdata, rows;
    std::vector<uint16_t> scales;
    std::vector<uint8_t> packed;

    Trial(const Kernel& tried, const Problem& of, uint32_t seed) : kernel(tried), problem(of) {
        const auto next = [&] { return static_cast<int>((seed = seed * 1664525u + 1013904223u) >> 24); };
        // Often -128, if that is to be tried: what overflows does so where several meet.
        const auto or_least = [&](int value) { return problem.full_range && next() % 2 == 0 ? -128 : value; };
        const bool int4 = problem.scheme == Scheme::kInt4;
        for (int64_t i = 0; i < problem.n * problem.k; ++i)
            qdata.push_back(static_cast<int8_t>(int4 ? next() % 16 - 8 : or_least(next() % 255 - 127)));
        for (int64_t i = 0; i < kRows * problem.k; ++i) rows.push_back(static_cast<int8_t>(or_least(next() - 128)));
        for (int64_t i = 0; i < problem.n * groups; ++i)
            scales.push_back(BFloat16::store(int4 ? static_cast<float>(1 + next()) : 1.0f));
        packed.resize(packed_bytes(kernel, problem));
    }

    bool packs() {
        std::vector<int8_t> values(qdata.size());
        std::vector<uint16_t> steps = scales;
        return pack_weight(kernel, problem, {qdata.data(), scales.data(), nullptr}, packed.data()).empty() &&
               unpack_weight(planned(kernel, problem, packed.data()), {values.data(), steps.data(), nullptr}).empty() &&
               values == qdata && steps == scales;
    }

    bool multiplies() const {
        std::vector<int32_t> output(kRows * problem.n);
        std::vector<float> ones(kRows, 1.0f);
        Linear layer = {};
        layer.weight = planned(kernel, problem, packed.data());
        layer.input = rows.data();
        layer.input_dtype = DType::kInt8;
        layer.activation_scale = ActivationScale::kGiven;
        layer.token_scale = ones.data();
        layer.output = output.data();
        layer.output_dtype = problem.scheme == Scheme::kInt4 ? DType::kFloat32 : DType::kInt32;
        layer.m = kRows;
        layer.least = -INFINITY;
        layer.greatest = INFINITY;
        const LinearCall call(layer, Parallel::serial());
        std::vector<uint8_t> scratch(call.scratch_bytes() + 64);
        if (!call.run(scratch.data() + (-reinterpret_cast<uintptr_t>(scratch.data()) & 63))) return false;
        bool right = true;
        for (int64_t i = 0; i < kRows * problem.n; ++i) right &= is_right(i / problem.n, i % problem.n, output[i]);
        return right;
    }

    // `bits`: an int32 sum, or a float's.
    bool is_right(int64_t i, int64_t j, int32_t bits) const {
        double sum = 0, magnitude = 0;
        for (int64_t l = 0; l < problem.k; ++l) {
            const double scale = BFloat16::load(scales[j * groups + l * groups / problem.k]);
            const double product = scale * rows[i * problem.k + l] * qdata[j * problem.k + l];
            sum += product;
            magnitude += std::fabs(product);
        }
        if (problem.scheme == Scheme::kInt8) return sum == bits;
        return std::fabs(sum - static_cast<double>(float_of(bits))) <= 1e-6 * magnitude;
    }
};

// Whether the kernel claims to multiply a weight like this that holds -128.
bool accepts_full_range(const Kernel& kernel, Problem problem) {
    problem.full_range = true;
    std::vector<std::string> reasons;
    kernel.reject_reasons(problem, reasons);
    return reasons.empty();
}

bool passes(const Kernel& kernel) try {
    Problem problem{kernel.scheme, 21, 37};
    if (kernel.scheme == Scheme::kInt4) problem = {kernel.scheme, 10, 128, 32, DType::kBFloat16, false};
    problem.full_range = kernel.scheme == Scheme::kInt8 && accepts_full_range(kernel, problem);
    Trial one(kernel, problem, 1), other(kernel, problem, 2);
    return one.packs() && other.packs() && one.multiplies() && other.multiplies() && one.multiplies();
} catch (const std::exception&) {  // no memory
    return false;
}

}  // namespace

bool passes_trial(const Kernel& kernel) {
    // No lock: threads that ask at the same time try at the same time, and a fork cannot leave a lock behind.
    if (kernel.trial->load() == 0) kernel.trial->store(passes(kernel) ? 1 : -1);
    return kernel.trial->load() > 0;
}

}  // namespace ao_arm
