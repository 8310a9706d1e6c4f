#include "chosen_layer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "guarded_kernel.h"
#include "layer/kernel_table.h"
#include "layer_runs.h"
#include "rows/activation_quantization.h"
#include "rows/element_types.h"

namespace ao_arm {
namespace {

constexpr int64_t kMostProducts = int64_t{1} << 17;  // more would take long where it is emulated
// Within the stated bound of 4-bit sums if each of them is rounded as far as may be.
constexpr int64_t kMostGroups = 12;

float load(DType type, const void* elements, int64_t i) {
    uint16_t half = 0;
    if (type == DType::kFloat32) return static_cast<const float*>(elements)[i];
    std::memcpy(&half, static_cast<const uint16_t*>(elements) + i, sizeof half);
    return type == DType::kBFloat16 ? BFloat16::load(half) : Float16::load(half);
}

void store(DType type, void* elements, int64_t i, float value) {
    if (type == DType::kFloat32)
        static_cast<float*>(elements)[i] = value;
    else
        static_cast<uint16_t*>(elements)[i] = type == DType::kBFloat16 ? BFloat16::store(value) : Float16::store(value);
}

// Elements between guard pages.
class Elements {
   public:
    Elements(DType type, int64_t count)
        : type_(type), count_(count), memory_(count * element_size(type), Flush::kBehind) {}

    const void* data() const { return memory_.data(); }
    void* data() { return memory_.data(); }
    int64_t count() const { return count_; }
    int64_t bytes() const { return count_ * element_size(type_); }
    DType type() const { return type_; }
    float value(int64_t i) const { return load(type_, memory_.data(), i); }

   private:
    DType type_;
    int64_t count_;
    GuardedMemory memory_;
};

using Pointer = std::unique_ptr<Elements>;

// What values look like.
enum class Look { kUsual, kExtreme, kConstant, kWide, kSpecial };

Look look_of(Choices* choices, Look last) { return static_cast<Look>(choices->between(0, static_cast<int64_t>(last))); }

Pointer integers(Random* random, Look look, int64_t count, int64_t least, int64_t greatest, DType type = DType::kInt8) {
    auto made = std::make_unique<Elements>(type, count);
    auto* values = static_cast<int8_t*>(made->data());
    const int64_t constant = random->between(least, greatest);
    for (int64_t i = 0; i < count; ++i)
        values[i] = static_cast<int8_t>(look == Look::kUsual      ? random->between(least, greatest)
                                        : look == Look::kConstant ? constant
                                        : random->between(0, 3)   ? least
                                                                  : greatest);
    return made;
}

// In look kWide of all magnitudes; in look kSpecial some are no ordinary numbers.
float floating(Random* random, Look look, bool positive) {
    constexpr float kSpecial[] = {0.0f, 1e-45f, 1e-38f, 3.4e38f, INFINITY, NAN};
    float value = random->positive();
    if (look == Look::kExtreme) value = 1;
    if (look == Look::kWide) value = std::ldexp(value, static_cast<int>(random->between(-60, 40)));
    if (look == Look::kSpecial && random->between(0, 7) == 0) value = kSpecial[random->between(0, 5)];
    return positive || random->between(0, 1) == 0 ? value : -value;
}

Pointer floats(Random* random, Look look, DType type, int64_t count, bool positive) {
    auto made = std::make_unique<Elements>(type, count);
    const float constant = floating(random, look, positive);
    for (int64_t i = 0; i < count; ++i)
        store(type, made->data(), i, look == Look::kConstant ? constant : floating(random, look, positive));
    return made;
}

struct Chosen {
    Problem problem;
    int64_t m;
    int threads;
    // The weight as it was given, and as it is unpacked.
    Pointer qdata, group_scale, group_zero;
    Pointer input, weight_scale, bias, token_scale;
    Guarded<int32_t> token_zero;
    Linear layer = {};

    explicit Chosen(Choices* choices);

    PlainWeight plain() const {
        return {static_cast<int8_t*>(qdata->data()), group_scale ? group_scale->data() : nullptr,
                group_zero ? static_cast<int8_t*>(group_zero->data()) : nullptr};
    }

   private:
    void choose_shape(Choices* choices);
    void choose_weight(Choices* choices, Random* random);
    void choose_activations(Choices* choices, Random* random);
    void choose_output(Choices* choices, Random* random);

    bool is_int4() const { return problem.scheme == Scheme::kInt4; }
};

DType float_type(Choices* choices) { return static_cast<DType>(choices->between(0, kFloatTypes - 1)); }

Chosen::Chosen(Choices* choices) {
    choose_shape(choices);
    Random random(static_cast<uint32_t>(choices->between(0, 65535)));
    choose_weight(choices, &random);
    choose_activations(choices, &random);
    choose_output(choices, &random);
    layer.m = m;
    layer.input = input->data();
    layer.input_dtype = input->type();
    if (bias) layer.bias = bias->data(), layer.bias_dtype = bias->type();
    if (weight_scale) layer.weight_scale = static_cast<const float*>(weight_scale->data());
    if (token_scale) layer.token_scale = static_cast<const float*>(token_scale->data());
    if (!token_zero.empty()) layer.token_zero_point = token_zero.data();
}

void Chosen::choose_shape(Choices* choices) {
    problem.scheme = choices->yes() ? Scheme::kInt4 : Scheme::kInt8;
    const auto size = [&](int64_t most, int64_t times) {
        const int64_t small = choices->between(1, most);
        return choices->between(0, 3) == 0 ? small * times - choices->between(0, times - 1) : small;
    };
    problem.n = size(48, 16);
    problem.k = size(96, 8);
    m = size(40, 8);
    threads = static_cast<int>(choices->between(2, 9));
    if (is_int4()) {
        const int64_t groups = choices->between(1, kMostGroups);
        problem.group = groups == 1 ? problem.k : kGroupStep * (1 + problem.k % 3);
        problem.k = groups * problem.group;
        problem.scale_type = choices->yes() ? DType::kFloat32 : DType::kBFloat16;
        problem.zero_points = choices->yes();
    }
    m = std::max<int64_t>(1, std::min(m, kMostProducts / (problem.n * problem.k)));
}

void Chosen::choose_weight(Choices* choices, Random* random) {
    const Look look = look_of(choices, Look::kConstant);
    if (!is_int4()) {
        problem.full_range = choices->yes();
        qdata = integers(random, look, problem.n * problem.k, problem.full_range ? -128 : -127, 127);
        return;
    }
    const int64_t groups = problem.n * problem.groups();
    qdata = integers(random, look, problem.n * problem.k, -8, 7);
    const Look of_scales = look_of(choices, Look::kWide);
    group_scale = floats(random, of_scales, problem.scale_type, groups, choices->yes());
    if (problem.zero_points) group_zero = integers(random, look_of(choices, Look::kConstant), groups, -8, 7);
}

void Chosen::choose_activations(Choices* choices, Random* random) {
    const int64_t count = m * problem.k;
    constexpr ActivationScale kInt4[] = {ActivationScale::kPerToken, ActivationScale::kGiven};
    constexpr ActivationScale kAll[] = {ActivationScale::kPerToken, ActivationScale::kGiven,
                                        ActivationScale::kPerTensor, ActivationScale::kStatic};
    layer.activation_scale = is_int4() ? kInt4[choices->between(0, 1)] : kAll[choices->between(0, 3)];
    layer.activation_symmetric = !is_int4() && choices->yes();
    const bool given = layer.activation_scale == ActivationScale::kGiven;
    const bool is_static = layer.activation_scale == ActivationScale::kStatic;
    // int8 layers with given scales are of integers, static ones of any type.
    const bool of_integers = (given && (!is_int4() || choices->yes())) || (is_static && choices->yes());
    const DType bytes = of_integers && is_static && choices->yes() ? DType::kUInt8 : DType::kInt8;
    const Look look = look_of(choices, of_integers ? Look::kConstant : Look::kSpecial);
    input = of_integers ? integers(random, look, count, -128, 127, bytes)
                        : floats(random, look, float_type(choices), count, false);
    if (given) {
        const Look of_scales = look_of(choices, Look::kSpecial);
        token_scale = floats(random, of_scales, DType::kFloat32, m, choices->yes());
        if (choices->yes()) token_zero.resize(m);
        for (int32_t& zero : token_zero) zero = static_cast<int32_t>(random->between(-128, 127));
    }
    layer.input_scale = std::ldexp(random->positive(), static_cast<int>(choices->between(0, 40)) - 30);
    layer.input_zero_point = static_cast<int32_t>(choices->between(-128, 127));
}

void Chosen::choose_output(Choices* choices, Random* random) {
    layer.output_dtype = float_type(choices);
    layer.least = -INFINITY;
    layer.greatest = INFINITY;
    const bool is_static = layer.activation_scale == ActivationScale::kStatic;
    if (is_static && choices->yes()) layer.output_dtype = choices->yes() ? DType::kInt8 : DType::kUInt8;
    // The sums themselves.
    if (is_static && input->type() == DType::kInt8 && choices->between(0, 7) == 7) {
        layer.output_dtype = DType::kInt32;
        return;
    }
    if (is_static || is_int4()) {
        if (choices->yes()) layer.least = std::ldexp(static_cast<float>(choices->between(-8, 8)), -2);
        if (choices->yes()) layer.greatest = std::max(layer.least, 0.0f) + random->positive();
    }
    layer.output_scale = std::ldexp(random->positive(), static_cast<int>(choices->between(0, 40)) - 30);
    layer.output_zero_point = static_cast<int32_t>(layer.output_dtype == DType::kUInt8 ? choices->between(0, 255)
                                                                                       : choices->between(-128, 127));
    if (!is_int4()) {
        const Look look = look_of(choices, Look::kSpecial);
        weight_scale = floats(random, look, DType::kFloat32, problem.n, choices->yes());
    }
    if (choices->yes()) {
        const Look look = look_of(choices, is_int4() ? Look::kWide : Look::kSpecial);
        bias = floats(random, look, float_type(choices), problem.n, false);
    }
}

// --- what comes of it ---

// A float's bits, but for NaNs, which are all alike: the sign is that of one or another operand.
int32_t comparable(const Elements& elements, int64_t i) {
    const float value = elements.value(i);
    return std::isnan(value) ? -1 : bits_of(value);
}

class Digest {
   public:
    void add(const void* bytes, int64_t count) {
        for (int64_t i = 0; i < count; ++i) value_ = (value_ ^ static_cast<const uint8_t*>(bytes)[i]) * 0x100000001B3u;
    }
    void add(const Elements& elements) {
        if (!is_float(elements.type())) return add(elements.data(), elements.bytes());
        for (int64_t i = 0; i < elements.count(); ++i) {
            const int32_t bits = comparable(elements, i);
            add(&bits, sizeof bits);
        }
    }
    uint64_t value() const { return value_; }

   private:
    uint64_t value_ = 0xCBF29CE484222325u;
};

// Null if the kernel failed.
Pointer output_of(const Linear& layer, DType type, int threads) {
    auto output = std::make_unique<Elements>(type, layer.m * layer.weight.problem.n);
    Linear call = layer;
    call.output = output->data();
    call.output_dtype = type;
    return run(call, threads) ? std::move(output) : nullptr;
}

bool same(const Pointer& one, const Pointer& other) {
    if (!one || !other || one->type() != other->type() || one->count() != other->count()) return false;
    if (std::memcmp(one->data(), other->data(), one->bytes()) == 0) return true;
    if (!is_float(one->type())) return false;
    for (int64_t i = 0; i < one->count(); ++i)
        if (comparable(*one, i) != comparable(*other, i)) return false;
    return true;
}

// One row of activations as integers, and its scale, NaN if the row is not finite, and zero point.
TokenQuantization quantized_row(const Chosen& chosen, int64_t row, std::vector<int8_t>* values) {
    const int64_t k = chosen.problem.k;
    const DType type = chosen.input->type();
    const auto* at = static_cast<const uint8_t*>(chosen.input->data()) + row * k * element_size(type);
    const bool given = chosen.layer.activation_scale == ActivationScale::kGiven;
    const RowRange range = is_float(type) ? range_of_row(at, k, false, type) : RowRange{0, 0, true};
    TokenQuantization token = {};
    if (!given) token = choose_quantization(range, false, type);
    if (given) token = {chosen.token_scale->value(row), chosen.token_zero.empty() ? 0 : chosen.token_zero[row]};
    if (!range.finite || !std::isfinite(token.scale)) token.scale = NAN;
    values->resize(k);
    if (is_float(type))
        quantize_row(at, k, k, token, type, values->data());
    else
        std::memcpy(values->data(), at, k);
    return token;
}

// Whether a 4-bit layer's float32 output is as near to the exact one as docs/numerics.md says. Rows whose scales are
// out of all proportion, so that a product may overflow or lose bits, are left out.
bool is_near(const Chosen& chosen, const Elements& output) {
    const Problem& problem = chosen.problem;
    const Linear& layer = chosen.layer;
    const auto* q = static_cast<const int8_t*>(chosen.qdata->data());
    const auto* zero = chosen.group_zero ? static_cast<const int8_t*>(chosen.group_zero->data()) : nullptr;
    std::vector<double> exact(problem.n);
    std::vector<int8_t> row;
    double bias = 0;
    for (int64_t j = 0; j < problem.n && chosen.bias; ++j)
        bias = std::max(bias, std::fabs(double{chosen.bias->value(j)}));
    for (int64_t i = 0; i < chosen.m; ++i) {
        const TokenQuantization token = quantized_row(chosen, i, &row);
        const float scale = token.scale;
        if (std::isnan(scale)) {
            for (int64_t j = 0; j < problem.n; ++j)
                if (!std::isnan(output.value(i * problem.n + j))) return false;
            continue;
        }
        double magnitude = 0;
        for (int64_t j = 0; j < problem.n; ++j) {
            double terms = 0;
            exact[j] = 0;
            for (int64_t g = 0; g < problem.groups(); ++g) {
                const int64_t index = j * problem.groups() + g;
                int64_t sum = 0, magnitudes = 0;
                for (int64_t l = 0; l < problem.group; ++l) {
                    const int64_t weight = q[index * problem.group + l] - (zero == nullptr ? 0 : zero[index]);
                    const int64_t activation = row[g * problem.group + l];
                    sum += (activation - token.zero_point) * weight;
                    magnitudes += (std::abs(activation) + std::abs(token.zero_point)) * std::abs(weight);
                }
                exact[j] += double{chosen.group_scale->value(index)} * static_cast<double>(sum);
                terms += std::fabs(double{chosen.group_scale->value(index)}) * static_cast<double>(magnitudes);
            }
            exact[j] = exact[j] * scale + (chosen.bias ? chosen.bias->value(j) : 0.0f);
            magnitude = std::max(magnitude, terms * std::fabs(scale));
        }
        const double tolerance = 1e-6 * (magnitude + bias);
        if (std::fabs(scale) < 1e-20f || !(tolerance < 1e20)) continue;
        for (int64_t j = 0; j < problem.n; ++j) {
            const double bounded = std::min(std::max(exact[j], double{layer.least}), double{layer.greatest});
            if (!(std::fabs(output.value(i * problem.n + j) - bounded) <= tolerance)) return false;
        }
    }
    return true;
}

// Whether the kernel gives the weight back as it was.
bool unpacks(const PackedWeight& weight, const Chosen& chosen) {
    const auto like = [](const Pointer& given) {
        return given ? std::make_unique<Elements>(given->type(), given->count()) : nullptr;
    };
    const Pointer qdata = like(chosen.qdata), scale = like(chosen.group_scale), zero = like(chosen.group_zero);
    const std::string error =
        unpack_weight(weight, {static_cast<int8_t*>(qdata->data()), scale ? scale->data() : nullptr,
                               zero ? static_cast<int8_t*>(zero->data()) : nullptr});
    return error.empty() && same(qdata, chosen.qdata) && (!scale || same(scale, chosen.group_scale)) &&
           (!zero || same(zero, chosen.group_zero));
}

}  // namespace

int64_t Choices::between(int64_t least, int64_t greatest) {
    uint64_t number = 0;
    for (int64_t range = greatest - least; range > 0; range >>= 8) {
        number = number << 8 | (left_ == 0 ? 0 : *bytes_);
        if (left_ > 0) ++bytes_, --left_;
    }
    return least + static_cast<int64_t>(number % static_cast<uint64_t>(greatest - least + 1));
}

Verdict judged_layer(Choices choices) {
    const Chosen chosen(&choices);
    const Problem& problem = chosen.problem;
    const bool is_int4 = problem.scheme == Scheme::kInt4;
    const std::string what = described(problem) + ", m = " + std::to_string(chosen.m) + " and " +
                             std::to_string(chosen.threads) + " threads: ";
    Pointer first;
    Digest digest;
    for (const Kernel* row : kernels(problem.scheme)) {
        if (!reject_reasons(*row, problem).empty()) continue;
        const Kernel& kernel = guarded(*row);
        const auto wrong = [&](const char* how) { return Verdict{what + kernel.id + how, 0}; };
        Bytes packed(packed_bytes(kernel, problem));
        Linear layer = chosen.layer;
        if (!pack_weight(kernel, problem, chosen.plain(), packed.data()).empty()) return wrong(" does not pack it");
        if (!open(packed, problem.scheme, &layer.weight).empty()) return wrong(" does not open it");
        if (!unpacks(layer.weight, chosen)) return wrong(" unpacks other values");
        const DType type = chosen.layer.output_dtype;
        Pointer output = output_of(layer, type, 1);
        if (!same(output, output_of(layer, type, chosen.threads))) return wrong(" differs on several threads");
        if (is_int4) {
            const Pointer float32 = output_of(layer, DType::kFloat32, 1);
            if (!float32 || !is_near(chosen, *float32)) return wrong(" is too far from the exact result");
        } else if (first && !same(output, first)) {
            return wrong(" differs from the kernels before it");
        }
        if (guarded_failures() > 0) return wrong(" failed between guard pages");
        if (!first) first = std::move(output);
    }
    if (!first) return {what + "no kernel serves it", 0};
    if (!is_int4) digest.add(*first);
    return {"", digest.value()};
}

}  // namespace ao_arm
