// Fuzzed: packed weights that somebody made up or changed. They are refused, or all that is done with them stays within
// their bytes.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "chosen_layer.h"
#include "fuzzed.h"
#include "guarded_kernel.h"
#include "layer/kernel_table.h"
#include "layer_runs.h"

namespace ao_arm {
namespace {

// A weight of zeros and ones, packed for one of the kernels that can be used here.
Bytes honest_weight(Choices* choices) {
    Problem problem;
    problem.scheme = choices->yes() ? Scheme::kInt4 : Scheme::kInt8;
    problem.n = choices->between(1, 48);
    problem.k = choices->between(1, 96);
    if (problem.scheme == Scheme::kInt4) {
        problem.group = choices->yes() ? problem.k : kGroupStep;
        problem.k = round_up(problem.k, problem.group);
        problem.scale_type = choices->yes() ? DType::kFloat32 : DType::kBFloat16;
        problem.zero_points = choices->yes();
    }
    problem.full_range = problem.scheme == Scheme::kInt8 && choices->yes();
    std::vector<const Kernel*> usable;
    for (const Kernel* kernel : kernels(problem.scheme))
        if (reject_reasons(*kernel, problem).empty()) usable.push_back(kernel);
    if (usable.empty()) give_up("no kernel serves " + described(problem));
    const Kernel& kernel = *usable[choices->between(0, static_cast<int64_t>(usable.size()) - 1)];
    std::vector<int8_t> qdata(problem.n * problem.k);
    for (size_t i = 0; i < qdata.size(); ++i) qdata[i] = static_cast<int8_t>(i % 2);
    std::vector<float> scale(problem.n * problem.k);
    std::vector<int8_t> zero_point(problem.n * problem.k);
    Bytes packed(packed_bytes(kernel, problem));
    const PlainWeight plain = {qdata.data(), scale.data(), problem.zero_points ? zero_point.data() : nullptr};
    const std::string error = pack_weight(kernel, problem, plain, packed.data());
    if (!error.empty()) give_up(error);
    return packed;
}

// Some bytes of the header or of what follows, the checksum perhaps made right again, and another length.
Bytes changed(Bytes packed, Choices* choices, bool* header_is_intact) {
    const Bytes before = packed;
    const bool in_header = choices->yes();
    for (int64_t edits = choices->between(0, 8); edits > 0; --edits) {
        const int64_t end = in_header ? sizeof(PackedHeader) : static_cast<int64_t>(packed.size());
        packed[choices->between(0, end - 1)] = static_cast<uint8_t>(choices->between(0, 255));
    }
    if (choices->yes()) {
        PackedHeader header;
        std::memcpy(&header, packed.data(), sizeof header);
        complete_header(header.panel_columns, header.total_bytes, &header);
        std::memcpy(packed.data(), &header, sizeof header);
    }
    const int64_t longer = choices->yes() ? choices->between(-400, 400) : 0;
    packed.resize(std::max<int64_t>(0, static_cast<int64_t>(packed.size()) + longer));
    *header_is_intact =
        longer == 0 && std::memcmp(before.data(), packed.data(), std::min(before.size(), sizeof(PackedHeader))) == 0;
    return packed;
}

// All that is done with a weight.
void use(PackedWeight weight, Choices* choices) {
    const Problem& problem = weight.problem;
    const bool grouped = problem.scheme == Scheme::kInt4;
    const int64_t groups = grouped ? problem.groups() : 0;
    weight.kernel = &guarded(*weight.kernel);
    Guarded<int64_t> rows(choices->between(0, 5));
    for (int64_t& row : rows) row = choices->between(-1, problem.n);
    const bool within = std::all_of(rows.begin(), rows.end(), [&](int64_t row) { return row >= 0 && row < problem.n; });
    for (const bool all : {true, false}) {
        const int64_t count = all ? problem.n : static_cast<int64_t>(rows.size());
        Guarded<int8_t> qdata(count * problem.k), zero_point(count * groups);
        Guarded<float> scale(grouped ? divide_up(count * groups * problem.scale_bytes(), 4) : 0);
        const PlainWeight plain = {qdata.data(), scale.data(), problem.zero_points ? zero_point.data() : nullptr};
        const std::string error =
            all ? unpack_weight(weight, plain) : unpack_rows(weight, rows.data(), rows.size(), plain);
        if (error.empty() != (all || within)) give_up("unpacking says: " + error);
    }
    Linear layer = {};
    layer.weight = weight;
    layer.m = choices->between(1, 20);
    Guarded<int8_t> input(layer.m * problem.k, 1);
    Guarded<float> output(layer.m * problem.n), ones(std::max(layer.m, problem.n), 1.0f);
    layer.input = input.data();
    layer.input_dtype = DType::kInt8;
    layer.activation_scale = ActivationScale::kGiven;
    layer.token_scale = ones.data();
    layer.weight_scale = ones.data();
    layer.output = output.data();
    layer.least = -INFINITY;
    layer.greatest = INFINITY;
    if (!run(layer, 1)) give_up("multiplying failed");
}

}  // namespace

uint64_t judged(const uint8_t* bytes, size_t size) {
    Choices choices(bytes, size);
    const bool is_made_up = choices.yes();
    bool intact = false;
    // Made up ones begin at any address.
    const Guarded<uint8_t> made_up(bytes, bytes + (is_made_up ? size : 0));
    const Bytes made = is_made_up ? Bytes() : changed(honest_weight(&choices), &choices, &intact);
    const uint8_t* packed = is_made_up ? made_up.data() : made.data();
    const auto packed_size = static_cast<int64_t>(is_made_up ? made_up.size() : made.size());
    int opened = 0;
    for (const Scheme scheme : {Scheme::kInt8, Scheme::kInt4}) {
        PackedWeight weight = {};
        const std::string error = open_packed_weight(scheme, packed, packed_size, &weight);
        if (!error.empty()) continue;
        ++opened;
        if (weight.total_bytes() != packed_size) give_up("a weight of another size was opened");
        use(weight, &choices);
    }
    if (opened > 1 || (intact && opened == 0)) give_up("opened as " + std::to_string(opened) + " kinds of weight");
    return 0;
}

}  // namespace ao_arm
