// The table's entries for KleidiAI's 4-bit micro-kernels: one for many rows and one for a single row on one packed
// weight. Two entries take them from the KleidiAI that was found when ao_arm was built, one from the copy that libtorch
// carries.
//
// Activations are quantized by our own routines and laid out as KleidiAI's packing does, with zero point 0 and scale 1:
// so its micro-kernels give plain sums, and the rest is the same for all kernels.
#include <cfloat>
#include <cstring>

#include "core/architecture.h"
#include "core/kernel.h"
#include "kernels/int4_column_block.h"

#if AO_ARM_HAVE_KLEIDIAI
#include <kai/ukernels/matmul/matmul_clamp_f32_qai8dxp_qsi4c32p/kai_matmul_clamp_f32_qai8dxp1x4_qsi4c32p4x4_1x4_neon_dotprod.h>
#include <kai/ukernels/matmul/matmul_clamp_f32_qai8dxp_qsi4c32p/kai_matmul_clamp_f32_qai8dxp1x8_qsi4c32p4x8_1x4x32_neon_dotprod.h>
#include <kai/ukernels/matmul/matmul_clamp_f32_qai8dxp_qsi4c32p/kai_matmul_clamp_f32_qai8dxp4x4_qsi4c32p4x4_16x4_neon_dotprod.h>
#include <kai/ukernels/matmul/matmul_clamp_f32_qai8dxp_qsi4c32p/kai_matmul_clamp_f32_qai8dxp4x8_qsi4c32p4x8_16x4x32_neon_i8mm.h>
#endif

// libtorch exports its copy's functions but brings no headers for them. Weak: null where libtorch has none.
#if defined(__aarch64__) && defined(__ELF__)
#define AO_ARM_HAVE_WEAK 1
#define AO_ARM_WEAK __attribute__((weak))
extern "C" {
AO_ARM_WEAK size_t kai_get_mr_matmul_clamp_f32_qai8dxp4x8_qsi4c32p8x8_4x8x32_neon_i8mm();
AO_ARM_WEAK size_t kai_get_nr_matmul_clamp_f32_qai8dxp4x8_qsi4c32p8x8_4x8x32_neon_i8mm();
AO_ARM_WEAK size_t kai_get_kr_matmul_clamp_f32_qai8dxp4x8_qsi4c32p8x8_4x8x32_neon_i8mm();
AO_ARM_WEAK size_t kai_get_sr_matmul_clamp_f32_qai8dxp4x8_qsi4c32p8x8_4x8x32_neon_i8mm();
AO_ARM_WEAK size_t kai_get_lhs_packed_offset_matmul_clamp_f32_qai8dxp4x8_qsi4c32p8x8_4x8x32_neon_i8mm(size_t row,
                                                                                                      size_t k);
AO_ARM_WEAK size_t kai_get_rhs_packed_offset_matmul_clamp_f32_qai8dxp4x8_qsi4c32p8x8_4x8x32_neon_i8mm(size_t column,
                                                                                                      size_t k,
                                                                                                      size_t group);
AO_ARM_WEAK void kai_run_matmul_clamp_f32_qai8dxp4x8_qsi4c32p8x8_4x8x32_neon_i8mm(
    size_t m, size_t n, size_t k, size_t group, const void* lhs, const void* rhs, float* dst, size_t row_stride,
    size_t column_stride, float least, float greatest);
AO_ARM_WEAK void kai_run_matmul_clamp_f32_qai8dxp1x8_qsi4c32p8x8_1x8x32_neon_dotprod(
    size_t m, size_t n, size_t k, size_t group, const void* lhs, const void* rhs, float* dst, size_t row_stride,
    size_t column_stride, float least, float greatest);
}
#undef AO_ARM_WEAK
#endif

namespace ao_arm {
namespace {

constexpr int64_t kMr = 4;
// Rows that its widest loop takes: calls that begin at a multiple of them give the same bits however rows are shared.
constexpr int64_t kRows = 16;

// A pair of micro-kernels, and what the library says of their arrangements.
struct Functions {
    size_t (*mr)();
    size_t (*nr)();
    size_t (*kr)();
    size_t (*sr)();
    size_t (*lhs_offset)(size_t row, size_t k);
    size_t (*rhs_offset)(size_t column, size_t k, size_t group);
    void (*gemm)(size_t m, size_t n, size_t k, size_t group, const void* lhs, const void* rhs, float* dst,
                 size_t row_stride, size_t column_stride, float least, float greatest);
    decltype(gemm) gemv;

    bool are_there() const { return mr && nr && kr && sr && lhs_offset && rhs_offset && gemm && gemv; }
};
#define AO_ARM_FUNCTIONS(gemm, gemv)                    \
    {kai_get_mr_matmul_clamp_f32_##gemm,                \
     kai_get_nr_matmul_clamp_f32_##gemm,                \
     kai_get_kr_matmul_clamp_f32_##gemm,                \
     kai_get_sr_matmul_clamp_f32_##gemm,                \
     kai_get_lhs_packed_offset_matmul_clamp_f32_##gemm, \
     kai_get_rhs_packed_offset_matmul_clamp_f32_##gemm, \
     kai_run_matmul_clamp_f32_##gemm,                   \
     kai_run_matmul_clamp_f32_##gemv}

// kNr: columns of a block. kDepth: bytes of a row or a column that lie together. kBuilt: whether the functions are in
// this build.
struct I8mm {
    static constexpr int kNr = 4, kDepth = 8, kMacsPerCycle = 90;
    static constexpr bool kBuilt = AO_ARM_HAVE_KLEIDIAI;
    static constexpr const char* kFormat = "KleidiAI qsi4c32p4x8";
    static Functions functions() {
#if AO_ARM_HAVE_KLEIDIAI
        return AO_ARM_FUNCTIONS(qai8dxp4x8_qsi4c32p4x8_16x4x32_neon_i8mm, qai8dxp1x8_qsi4c32p4x8_1x4x32_neon_dotprod);
#endif
        return {};
    }
};

struct Dotprod {
    static constexpr int kNr = 4, kDepth = 4, kMacsPerCycle = 25;
    static constexpr bool kBuilt = AO_ARM_HAVE_KLEIDIAI;
    static constexpr const char* kFormat = "KleidiAI qsi4c32p4x4";
    static Functions functions() {
#if AO_ARM_HAVE_KLEIDIAI
        return AO_ARM_FUNCTIONS(qai8dxp4x4_qsi4c32p4x4_16x4_neon_dotprod, qai8dxp1x4_qsi4c32p4x4_1x4_neon_dotprod);
#endif
        return {};
    }
};

struct Libtorch {
    static constexpr int kNr = 8, kDepth = 8, kMacsPerCycle = 80;
    static constexpr bool kBuilt = kArchitecture == Architecture::kAArch64;
    static constexpr const char* kFormat = "KleidiAI qsi4c32p8x8";
    static Functions functions() {
#if defined(AO_ARM_HAVE_WEAK)
        return AO_ARM_FUNCTIONS(qai8dxp4x8_qsi4c32p8x8_4x8x32_neon_i8mm, qai8dxp1x8_qsi4c32p8x8_1x8x32_neon_dotprod);
#endif
        return {};
    }
};
#undef AO_ARM_FUNCTIONS

// KleidiAI arranges nibbles and scales as our own kernels do, then come the columns' sums, of use for other zero points
// than ours, and biases.
template <class Pair>
using ColumnBlock = Int4ColumnBlock<Pair::kNr, Pair::kNr, Pair::kDepth, 16, false>;

template <class Pair>
int64_t block_bytes(const Problem& problem, int64_t columns) {
    return ColumnBlock<Pair>::block_bytes(problem, columns) + 2 * Pair::kNr * static_cast<int64_t>(sizeof(float));
}

template <class Pair>
bool pack(const Problem& problem, const PlainWeight& weight, Columns columns, uint8_t* block) {
    const int64_t used = ColumnBlock<Pair>::block_bytes(problem, columns.count);
    std::memset(block + used, 0, block_bytes<Pair>(problem, columns.count) - used);
    return ColumnBlock<Pair>::pack(problem, weight, columns, block);
}

int64_t padded_k(const Problem& problem) { return problem.padded_k(); }

// Rows by kMr, a single one by itself; after their values come their zero points and scales.
int64_t packed_bytes(const Problem& problem) {
    return kMr * (problem.padded_k() + static_cast<int64_t>(sizeof(int32_t) + sizeof(float)));
}

int64_t lhs_bytes(const Problem& problem) { return kRows / kMr * packed_bytes(problem); }

template <class Pair>
void pack_rows(const Problem& problem, const int8_t* const* rows, int64_t count, int8_t* to) {
    const int64_t packed_rows = count == 1 ? 1 : kMr;
    for (int64_t l = 0; l < problem.padded_k(); l += Pair::kDepth)
        for (int64_t row = 0; row < packed_rows; ++row, to += Pair::kDepth)
            std::memcpy(to, rows[row < count ? row : 0] + l, Pair::kDepth);
    const int32_t zero_points[kMr] = {};
    const float scales[kMr] = {1, 1, 1, 1};
    std::memcpy(to, zero_points, packed_rows * sizeof(int32_t));
    std::memcpy(to + packed_rows * sizeof(int32_t), scales, packed_rows * sizeof(float));
}

template <class Pair>
void pack_lhs(const Problem& problem, const LhsPart& part, int8_t* block) {
    for (int64_t row = 0; row < part.count; row += kMr)
        pack_rows<Pair>(problem, part.rows + row, part.count - row < kMr ? part.count - row : kMr,
                        block + (part.first + row) / kMr * packed_bytes(problem));
}

template <class Pair>
bool multiply(const Multiplication& call) {
    const Problem& problem = *call.problem;
    const int64_t single = call.m % kMr == 1 ? 1 : 0, rows = call.m - single;
    const size_t stride = call.sums_stride * sizeof(float);
    auto* sums = static_cast<float*>(call.sums);
    const Functions functions = Pair::functions();
    if (rows > 0)
        functions.gemm(rows, call.columns, problem.k, problem.group, call.lhs, call.weight, sums, stride, sizeof(float),
                       -FLT_MAX, FLT_MAX);
    if (single != 0)
        functions.gemv(1, call.columns, problem.k, problem.group, call.lhs + rows / kMr * packed_bytes(problem),
                       call.weight, sums + rows * call.sums_stride, stride, sizeof(float), -FLT_MAX, FLT_MAX);
    return true;
}

// Whether the library has the arrangements that this file builds on.
template <class Pair>
bool is_arranged() {
    const Functions library = Pair::functions();
    if (library.mr() != kMr || library.nr() != Pair::kNr || library.kr() != 2 * Pair::kDepth || library.sr() != 2)
        return false;
    const Problem problem{Scheme::kInt4, 2 * Pair::kNr, 128, 32, DType::kBFloat16, false};
    // KleidiAI aborts if asked for rows or columns that are no multiple of a micro-kernel's steps.
    constexpr int64_t kSteps = 16;
    return static_cast<int64_t>(library.lhs_offset(kSteps, problem.k)) == kSteps / kMr * packed_bytes(problem) &&
           static_cast<int64_t>(library.rhs_offset(kSteps, problem.k, problem.group)) ==
               kSteps / Pair::kNr * block_bytes<Pair>(problem, Pair::kNr);
}

template <class Pair>
void reject(const Problem& problem, std::vector<std::string>& reasons) {
    if (problem.zero_points) reasons.push_back("KleidiAI serves no weights with zero points");
    if (problem.scale_type != DType::kBFloat16) reasons.push_back("KleidiAI takes bfloat16 scales only");
    if (problem.group % kGroupStep != 0)
        reasons.push_back("KleidiAI takes groups of a multiple of " + std::to_string(kGroupStep) + " only, not " +
                          std::to_string(problem.group));
    if (!Pair::functions().are_there())
        reasons.push_back("this libtorch carries no such KleidiAI");
    else if (reasons.empty() && !is_arranged<Pair>())
        reasons.push_back("this copy of KleidiAI has other arrangements than ao_arm knows");
}

void reject_missing(const Problem& problem, std::vector<std::string>& reasons) {
    reject_elsewhere<Architecture::kAArch64>(problem, reasons);
    if (kArchitecture == Architecture::kAArch64)
        reasons.push_back(
            "this ao_arm was built without KleidiAI: install it (Debian, Ubuntu: libkleidiai-dev, 1.8 or newer; "
            "elsewhere set KLEIDIAI_ROOT_DIR) and reinstall ao_arm");
}

template <class Pair>
std::string packing_format(const Problem&) {
    return Pair::kFormat;
}

// Modelled, as in neon_int4_kernels.cpp. Rows that fill no kMr are multiplied as if they did, but for a lone one.
template <class Pair>
double cost(const Problem& problem, int64_t m, const CpuFeatures&) {
    const double rows = static_cast<double>(m == 1 ? 2 : round_up(m, kMr));
    const double outputs = rows * static_cast<double>(round_up(problem.n, Pair::kNr));
    return 500.0 + outputs * (static_cast<double>(problem.padded_k()) / Pair::kMacsPerCycle +
                              static_cast<double>(problem.groups()) / 3);
}

template <class Pair>
std::atomic<int> trial{0};

template <class Pair>
constexpr Kernel kleidiai(const char* id, const char* summary) {
    const uint32_t features = Pair::kDepth == 8 ? kDotprod | kI8mm : kDotprod;
    Kernel kernel = named_kernel(id, summary, Scheme::kInt4, features, Pair::kBuilt ? reject<Pair> : reject_missing);
    if (!Pair::kBuilt) return kernel;
    kernel.cost = cost<Pair>;
    kernel.packing_format = packing_format<Pair>;
    kernel.column_step = Pair::kNr;
    kernel.block_bytes = block_bytes<Pair>;
    kernel.pack = pack<Pair>;
    kernel.unpack = ColumnBlock<Pair>::unpack;
    kernel.row_step = kRows;
    kernel.padded_k = padded_k;
    kernel.lhs_bytes = lhs_bytes;
    kernel.pack_lhs = pack_lhs<Pair>;
    kernel.lhs_step = kMr;
    kernel.multiply = multiply<Pair>;
    kernel.most_rows = 32;
    kernel.library = "KleidiAI";
    kernel.trial = &trial<Pair>;
    return kernel;
}

const Kernel kKleidiaiI8mm =
    kleidiai<I8mm>("kleidiai/qai8dxp_qsi4c32p_i8mm", "KleidiAI's micro-kernels on matrix instructions");
const Kernel kKleidiaiDotprod =
    kleidiai<Dotprod>("kleidiai/qai8dxp_qsi4c32p_dot", "KleidiAI's micro-kernels on dot product instructions");
const Kernel kKleidiaiLibtorch = kleidiai<Libtorch>(
    "kleidiai/qai8dxp_qsi4c32p_torch", "libtorch's copy of KleidiAI's micro-kernels on matrix instructions");

}  // namespace

std::vector<const Kernel*> kleidiai_int4_kernels() { return {&kKleidiaiI8mm, &kKleidiaiDotprod, &kKleidiaiLibtorch}; }

}  // namespace ao_arm
