#include "layer/packed_weight.h"

#include <cstddef>
#include <cstring>
#include <vector>

#include "layer/kernel_table.h"
#include "rows/element_types.h"

namespace ao_arm {
namespace {

int64_t panel_columns(const Kernel& kernel) {
    return kernel.scheme == Scheme::kInt8 ? kInt8PanelColumns : kernel.column_step;
}

// Whether all values lie in [least, greatest]. Returns an error message, empty on success.
std::string check_range(const char* name, const int8_t* values, int64_t count, int8_t least, int8_t greatest) {
    for (int64_t i = 0; i < count; ++i)
        if (values[i] < least || values[i] > greatest)
            return std::string(name) + " must lie in [" + std::to_string(least) + ", " + std::to_string(greatest) +
                   "], but holds " + std::to_string(values[i]);
    return "";
}

std::string check_plain(const Problem& problem, const PlainWeight& plain) {
    const int64_t values = problem.n * problem.k;
    if (problem.scheme == Scheme::kInt8)
        return check_range("qdata", plain.qdata, values, problem.full_range ? -128 : -127, 127);
    std::string error = check_range("qdata", plain.qdata, values, -8, 7);
    if (error.empty() && plain.zero_point != nullptr)
        error = check_range("zero_point", plain.zero_point, problem.n * problem.groups(), -8, 7);
    return error;
}

int32_t sum_of(const int8_t* values, int64_t count) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += values[i];
    return sum;
}

float grouped_sum(const Problem& problem, const PlainWeight& plain, int64_t column) {
    float sum = 0;
    for (int64_t g = 0; g < problem.groups(); ++g) {
        const int64_t index = column * problem.groups() + g;
        const float scale = problem.scale_type == DType::kFloat32
                                ? static_cast<const float*>(plain.scale)[index]
                                : BFloat16::load(static_cast<const uint16_t*>(plain.scale)[index]);
        const int32_t zero_point = plain.zero_point == nullptr ? 0 : plain.zero_point[index];
        const int32_t of_group = sum_of(plain.qdata + index * problem.group, problem.group) -
                                 zero_point * static_cast<int32_t>(problem.group);
        sum += scale * static_cast<float>(of_group);
    }
    return sum;
}

void write_sums(const Problem& problem, const PlainWeight& plain, uint8_t* sums) {
    for (int64_t j = 0; j < problem.n; ++j) {
        if (problem.scheme == Scheme::kInt8) {
            const int32_t sum = sum_of(plain.qdata + j * problem.k, problem.k);
            std::memcpy(sums + j * 4, &sum, sizeof sum);
        } else {
            const float sum = grouped_sum(problem, plain, j);
            std::memcpy(sums + j * 4, &sum, sizeof sum);
        }
    }
}

const char* kind_of(Scheme scheme) { return scheme == Scheme::kInt8 ? "int8 weights" : "4-bit weights in groups"; }

// Whether an intact header's weight can be used here. Returns an error message, empty on success.
std::string check_usable(const PackedHeader& header, PackedWeight* weight) {
    const Problem problem = problem_of(header);
    const Kernel* kernel = find_kernel(problem.scheme, header.kernel);
    if (kernel == nullptr) return packed_by(header) + ", which this ao_arm does not have. " + kRepack;
    const std::vector<std::string> reasons = reject_reasons(*kernel, problem);
    if (!reasons.empty()) return packed_by(header) + ", which cannot run here: " + join(reasons) + ". " + kRepack;
    const std::string format = kernel->packing_format(problem);
    if (format != header.packing_format)
        return packed_by(header) + " for " + header.packing_format + "; on this CPU it needs " + format + ". " +
               kRepack;
    *weight = planned(*kernel, problem, nullptr);
    if (header.panel_columns == panel_columns(*kernel) && header.total_bytes == weight->total_bytes()) return "";
    return packed_by(header) + " in another arrangement than this ao_arm reads. " + kRepack;
}

// What was found out about headers, so that most calls need not find it out again. Kept for each thread, the latest
// ones: more than a model has shapes of layers.
class OpenedHeaders {
   public:
    // The weight that had these 256 bytes, all of them, as its header; null if it is not known.
    const PackedWeight* find(const uint8_t* bytes, int64_t size) const {
        uint64_t checksum;
        std::memcpy(&checksum, bytes + offsetof(PackedHeader, checksum), sizeof checksum);
        for (const Opened& opened : opened_)
            if (opened.header.checksum == checksum && opened.header.total_bytes == size &&
                std::memcmp(&opened.header, bytes, sizeof opened.header) == 0)
                return &opened.weight;
        return nullptr;
    }

    void keep(const PackedHeader& header, const PackedWeight& weight) {
        opened_[next_] = {header, weight};
        next_ = (next_ + 1) % kMost;
    }

   private:
    static constexpr int kMost = 32;
    struct Opened {
        PackedHeader header = {};  // no header begins with zeros
        PackedWeight weight = {};
    };
    Opened opened_[kMost];
    int next_ = 0;
};

}  // namespace

PackedWeight planned(const Kernel& kernel, const Problem& problem, const uint8_t* base) {
    PackedWeight weight = {&kernel, problem, base, kernel.block_bytes(problem, kernel.column_step), 0, 0, 0};
    weight.last_block_bytes = kernel.block_bytes(problem, weight.columns(weight.blocks() - 1).count);
    weight.padded_k = kernel.padded_k(problem);
    weight.lhs_bytes = kernel.lhs_bytes == nullptr ? kernel.row_step * weight.padded_k : kernel.lhs_bytes(problem);
    return weight;
}

int64_t packed_bytes(const Kernel& kernel, const Problem& problem) {
    return planned(kernel, problem, nullptr).total_bytes();
}

std::string pack_weight(const Kernel& kernel, const Problem& problem, const PlainWeight& plain, uint8_t* bytes) {
    const std::string error = check_plain(problem, plain);
    if (!error.empty()) return error;
    PackedHeader header;
    const std::string format = kernel.packing_format(problem);
    if (format.empty() || !begin_header(problem, kernel.id, format, &header))
        return std::string("kernel ") + kernel.id + " cannot pack a weight of this shape";
    const PackedWeight weight = planned(kernel, problem, bytes);
    complete_header(panel_columns(kernel), weight.total_bytes(), &header);
    std::memset(bytes, 0, weight.total_bytes());
    std::memcpy(bytes, &header, sizeof header);
    write_sums(problem, plain, bytes + weight.sums_offset());
    for (int64_t block = 0; block < weight.blocks(); ++block)
        if (!kernel.pack(problem, plain, weight.columns(block), bytes + weight.block_offset(block)))
            return std::string("kernel ") + kernel.id + " failed to pack the weight";
    return "";
}

std::string unpack_weight(const PackedWeight& weight, const PlainWeight& plain) {
    const Kernel& kernel = *weight.kernel;
    for (int64_t block = 0; block < weight.blocks(); ++block)
        if (!kernel.unpack(weight.problem, weight.base + weight.block_offset(block), weight.columns(block), plain))
            return std::string("kernel ") + kernel.id + " failed to unpack the weight";
    return "";
}

std::string unpack_rows(const PackedWeight& weight, const int64_t* rows, int64_t count, const PlainWeight& plain) {
    const Kernel& kernel = *weight.kernel;
    const Problem& problem = weight.problem;
    const bool grouped = problem.scheme == Scheme::kInt4;
    const int64_t groups = grouped ? problem.groups() : 0, scale_bytes = grouped ? groups * problem.scale_bytes() : 0;
    std::vector<int8_t> qdata(kernel.column_step * problem.k), zero_point(kernel.column_step * groups);
    std::vector<uint8_t> scale(kernel.column_step * scale_bytes);
    const PlainWeight unpacked = {qdata.data(), scale.data(), problem.zero_points ? zero_point.data() : nullptr};
    int64_t block = -1;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t row = rows[i];
        if (row < 0 || row >= problem.n)
            return "row " + std::to_string(row) + " is not within 0 and " + std::to_string(problem.n - 1);
        if (row / kernel.column_step != block) {
            block = row / kernel.column_step;
            // As if the block were all that there is.
            const Columns columns = {0, weight.columns(block).count};
            if (!kernel.unpack(problem, weight.base + weight.block_offset(block), columns, unpacked))
                return std::string("kernel ") + kernel.id + " failed to unpack the weight";
        }
        const int64_t at = row - block * kernel.column_step;
        std::memcpy(plain.qdata + i * problem.k, &qdata[at * problem.k], problem.k);
        if (!grouped) continue;
        std::memcpy(static_cast<uint8_t*>(plain.scale) + i * scale_bytes, &scale[at * scale_bytes], scale_bytes);
        if (problem.zero_points) std::memcpy(plain.zero_point + i * groups, &zero_point[at * groups], groups);
    }
    return "";
}

std::string open_packed_weight(Scheme scheme, const uint8_t* bytes, int64_t size, PackedWeight* weight) {
    static thread_local OpenedHeaders opened;
    const bool has_header = size >= static_cast<int64_t>(sizeof(PackedHeader));
    const PackedWeight* known = has_header ? opened.find(bytes, size) : nullptr;
    if (known != nullptr && known->problem.scheme == scheme) {
        *weight = *known;
        weight->base = bytes;
        return "";
    }
    PackedHeader header;
    std::string error = read_header(bytes, size, &header);
    if (!error.empty()) return error;
    const Scheme packed = problem_of(header).scheme;
    if (packed != scheme && (packed == Scheme::kInt8 || packed == Scheme::kInt4))
        return packed_by(header) + " for " + kind_of(packed) + ", but this op takes " + kind_of(scheme) + ".";
    error = check_usable(header, weight);
    if (!error.empty()) return error;
    opened.keep(header, *weight);
    weight->base = bytes;
    return "";
}

}  // namespace ao_arm
