// The table's entry for Arm Compute Library (acl_gemm.h).
#include "core/architecture.h"
#include "core/kernel.h"

#if AO_ARM_HAVE_ACL
#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "kernels/acl/acl_gemm.h"
#endif

namespace ao_arm {
namespace {

constexpr const char* kId = "acl/s8s32+epilogue";
constexpr const char* kSummary = "Arm Compute Library's int8 GEMM on a weight packed once";

// Columns of a block: a multiple of every micro-kernel's width, wide enough to repay the fixed cost of a call, narrow
// enough that some threads get one each.
constexpr int64_t kColumns = 384;

#if defined(__aarch64__)
// Modelled on Neoverse V1 (i8mm), N1 (dotprod) and A72: some 6,000 cycles a call, then multiply-accumulates. Its
// micro-kernels take 8 rows, or 4.
double cost(const Problem& problem, int64_t m, const CpuFeatures& cpu) {
    const double macs_per_cycle = cpu.has(kI8mm) ? 113 : cpu.has(kDotprod) ? 30 : 12;
    const double calls = static_cast<double>(divide_up(problem.n, kColumns) * divide_up(m, kMostRows));
    const double rows = static_cast<double>(round_up(m, cpu.has(kI8mm) ? 8 : 4));
    return 6000.0 * calls + rows * static_cast<double>(problem.n) * static_cast<double>(problem.k) / macs_per_cycle;
}
#endif

#if AO_ARM_HAVE_ACL

int64_t block_bytes(const Problem& problem, int64_t columns) {
    const AclShape* shape = acl_shape(columns, problem.k);
    return shape == nullptr ? 0 : round_up(shape->packed_bytes, 64);
}

// ACL's own, and the sums of a column block as it writes them.
int64_t scratch_bytes(const Problem& problem, int64_t columns) {
    const AclShape* shape = acl_shape(columns, problem.k);
    return shape == nullptr ? 0 : round_up(kMostRows * columns * 4, 64) + shape->scratch_bytes;
}

// The widths of a weight's blocks.
std::vector<int64_t> widths(const Problem& problem) {
    std::vector<int64_t> widths = {std::min(problem.n, kColumns)};
    if (problem.n > kColumns && problem.n % kColumns != 0) widths.push_back(problem.n % kColumns);
    return widths;
}

std::string packing_format(const Problem& problem) {
    std::string format = "ACL " + acl_version() + " ", names;
    for (const int64_t columns : widths(problem)) {
        const AclShape* shape = acl_shape(columns, problem.k);
        if (shape == nullptr) return "";
        if (names.find(shape->micro_kernel) == std::string::npos)
            names += (names.empty() ? "" : "+") + shape->micro_kernel;
    }
    return format + names;
}

int64_t padded_k(const Problem& problem) { return problem.k; }

// ACL wants the weight as (k, columns).
bool pack(const Problem& problem, const PlainWeight& weight, Columns range, uint8_t* block) try {
    const int64_t k = problem.k, columns = range.count;
    const int8_t* qdata = weight.qdata + range.first * k;
    std::vector<int8_t> transposed(columns * k);
    constexpr int64_t kTile = 32;
    for (int64_t j0 = 0; j0 < columns; j0 += kTile)
        for (int64_t l0 = 0; l0 < k; l0 += kTile)
            for (int64_t j = j0; j < std::min(columns, j0 + kTile); ++j)
                for (int64_t l = l0; l < std::min(k, l0 + kTile); ++l) transposed[l * columns + j] = qdata[j * k + l];
    return acl_pack(transposed.data(), columns, k, block);
} catch (const std::bad_alloc&) {
    return false;
}

// Packing moves bytes and adds zeros. So packing the number of each byte, digit by digit, tells where it went.
bool unpack(const Problem& problem, const uint8_t* block, Columns range, const PlainWeight& weight) try {
    const int64_t k = problem.k, columns = range.count;
    const AclShape* shape = acl_shape(columns, k);
    if (shape == nullptr) return false;
    const int64_t bytes = shape->packed_bytes;
    std::vector<int64_t> number(bytes, 0);  // 1 + the place in (k, columns) that each packed byte came from; 0: padding
    std::vector<int8_t> digits(columns * k);
    std::vector<uint8_t> packed(bytes);
    for (int shift = 0; (columns * k) >> shift != 0; shift += 8) {
        for (int64_t i = 0; i < columns * k; ++i) digits[i] = static_cast<int8_t>(((i + 1) >> shift) & 0xFF);
        std::fill(packed.begin(), packed.end(), uint8_t(0));
        if (!acl_pack(digits.data(), columns, k, packed.data())) return false;
        for (int64_t i = 0; i < bytes; ++i) number[i] |= static_cast<int64_t>(packed[i]) << shift;
    }
    int64_t found = 0;
    for (int64_t i = 0; i < bytes; ++i) {
        if (number[i] == 0) continue;
        const int64_t place = number[i] - 1;
        if (place >= columns * k) return false;
        weight.qdata[(range.first + place % columns) * k + place / columns] = static_cast<int8_t>(block[i]);
        ++found;
    }
    return found == columns * k;
} catch (const std::bad_alloc&) {
    return false;
}

// Column block by column block. ACL writes the rows of each one after the other, with no stride.
bool multiply(const Multiplication& call) {
    const Problem& problem = *call.problem;
    const uint8_t* block = call.weight;
    for (int64_t first = 0; first < call.columns; first += kColumns) {
        const int64_t columns = std::min(kColumns, call.columns - first);
        auto* rows = reinterpret_cast<int32_t*>(call.scratch);
        uint8_t* scratch = call.scratch + round_up(kMostRows * columns * 4, 64);
        if (!acl_multiply(call.lhs, call.m, block, columns, problem.k, rows, scratch)) return false;
        auto* sums = static_cast<int32_t*>(call.sums) + first;
        for (int64_t i = 0; i < call.m; ++i)
            std::memcpy(sums + i * call.sums_stride, rows + i * columns, columns * sizeof *sums);
        block += block_bytes(problem, columns);
    }
    return true;
}

void reject(const Problem& problem, std::vector<std::string>& reasons) {
    if (problem.full_range && !cpu_features().has(kDotprod))
        reasons.push_back(
            "the weight holds -128, and on a CPU without dotprod Arm Compute Library adds pairs of products in 16 "
            "bits, which two of -128 * -128 overflow");
    for (const int64_t columns : widths(problem)) {
        const std::string refusal = acl_refusal(columns, problem.k);
        const AclShape* shape = refusal.empty() ? acl_shape(columns, problem.k) : nullptr;
        if (!refusal.empty())
            reasons.push_back("Arm Compute Library refuses it: " + refusal);
        else if (shape == nullptr)
            reasons.push_back("Arm Compute Library failed on it");
        else if (!shape->binds_alone)
            reasons.push_back("Arm Compute Library takes its " + shape->micro_kernel +
                              " for this shape, which packs the weight on each call");
    }
}

std::atomic<int> trial{0};

constexpr Kernel acl() {
    Kernel kernel = named_kernel(kId, kSummary, Scheme::kInt8, kNoFeature, reject, cost);
    kernel.packing_format = packing_format;
    kernel.column_step = kColumns;
    kernel.block_bytes = block_bytes;
    kernel.pack = pack;
    kernel.unpack = unpack;
    kernel.row_step = 8;
    kernel.padded_k = padded_k;
    kernel.lhs_step = 1;
    kernel.multiply = multiply;
    kernel.most_rows = kMostRows;
    kernel.reads_most_rows = true;
    kernel.scratch_bytes = scratch_bytes;
    kernel.library = "Arm Compute Library";
    kernel.trial = &trial;
    return kernel;
}

const Kernel kAcl = acl();

#else

void reject_missing(const Problem& problem, std::vector<std::string>& reasons) {
    reject_elsewhere<Architecture::kAArch64>(problem, reasons);
    if (kArchitecture == Architecture::kAArch64)
        reasons.push_back(
            "this ao_arm was built without Arm Compute Library: install it (Debian, Ubuntu: libarm-compute-dev, 24.11 "
            "or newer; elsewhere set ACL_ROOT_DIR) and reinstall ao_arm");
}

#if defined(__aarch64__)
const Kernel kAcl = named_kernel(kId, kSummary, Scheme::kInt8, kNoFeature, reject_missing, cost);
#else
const Kernel kAcl = named_kernel(kId, kSummary, Scheme::kInt8, kNoFeature, reject_missing);
#endif

#endif

}  // namespace

std::vector<const Kernel*> acl_int8_kernels() { return {&kAcl}; }

}  // namespace ao_arm
