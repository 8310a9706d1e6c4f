// The table's rows for KleidiAI's 4-bit micro-kernels: one for many rows and one for a single row on one packed weight.
// Two rows take them from the KleidiAI that was found when ao_arm was built, one from the copy that libtorch carries.
//
// Activations are quantized by our own routines and laid out as KleidiAI's packing does, with zero point 0 and scale 1:
// so its micro-kernels give plain sums, and the rest is the same for all kernels.
#include "grouped_kernel.h"

#if defined(__aarch64__)

#include <cfloat>
#include <cstring>

#include "element_types.h"
#include "grouped_block.h"

#if AO_ARM_HAVE_KLEIDIAI
#include <kai/ukernels/matmul/matmul_clamp_f32_qai8dxp_qsi4c32p/kai_matmul_clamp_f32_qai8dxp1x4_qsi4c32p4x4_1x4_neon_dotprod.h>
#include <kai/ukernels/matmul/matmul_clamp_f32_qai8dxp_qsi4c32p/kai_matmul_clamp_f32_qai8dxp1x8_qsi4c32p4x8_1x4x32_neon_dotprod.h>
#include <kai/ukernels/matmul/matmul_clamp_f32_qai8dxp_qsi4c32p/kai_matmul_clamp_f32_qai8dxp4x4_qsi4c32p4x4_16x4_neon_dotprod.h>
#include <kai/ukernels/matmul/matmul_clamp_f32_qai8dxp_qsi4c32p/kai_matmul_clamp_f32_qai8dxp4x8_qsi4c32p4x8_16x4x32_neon_i8mm.h>
#endif

// libtorch exports its copy's functions but brings no headers for them. Weak: null where libtorch has none.
#if defined(__ELF__)
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

// kNr: columns of a block. kDepth: bytes of a row or a column that lie together.
#if AO_ARM_HAVE_KLEIDIAI
struct I8mm {
    static constexpr int kNr = 4, kDepth = 8;
    static constexpr const char* kFormat = "KleidiAI qsi4c32p4x8";
    static Functions functions() {
        return AO_ARM_FUNCTIONS(qai8dxp4x8_qsi4c32p4x8_16x4x32_neon_i8mm, qai8dxp1x8_qsi4c32p4x8_1x4x32_neon_dotprod);
    }
};

struct Dotprod {
    static constexpr int kNr = 4, kDepth = 4;
    static constexpr const char* kFormat = "KleidiAI qsi4c32p4x4";
    static Functions functions() {
        return AO_ARM_FUNCTIONS(qai8dxp4x4_qsi4c32p4x4_16x4_neon_dotprod, qai8dxp1x4_qsi4c32p4x4_1x4_neon_dotprod);
    }
};
#endif

struct Libtorch {
    static constexpr int kNr = 8, kDepth = 8;
    static constexpr const char* kFormat = "KleidiAI qsi4c32p8x8";
    static Functions functions() {
#if defined(__ELF__)
        return AO_ARM_FUNCTIONS(qai8dxp4x8_qsi4c32p8x8_4x8x32_neon_i8mm, qai8dxp1x8_qsi4c32p8x8_1x8x32_neon_dotprod);
#else
        return {};
#endif
    }
};
#undef AO_ARM_FUNCTIONS

template <class Pair>
constexpr uint32_t kFeatures = Pair::kDepth == 8 ? kDotprod | kI8mm : kDotprod;

// KleidiAI arranges nibbles and scales as our own kernels do, then come the columns' sums, of use for other zero points
// than ours, and biases.
template <class Pair>
using Block = GroupedBlock<Pair::kNr, Pair::kNr, Pair::kDepth, 16, false>;

template <class Pair>
int64_t block_bytes(const GroupedProblem& problem) {
    return Block<Pair>::block_bytes(problem) + 2 * Pair::kNr * static_cast<int64_t>(sizeof(float));
}

template <class Pair>
void pack(const GroupedProblem& problem, const GroupedValues& values, int64_t first_column, uint8_t* block) {
    Block<Pair>::pack(problem, values, first_column, block);
    const int64_t used = Block<Pair>::block_bytes(problem);
    std::memset(block + used, 0, block_bytes<Pair>(problem) - used);
}

// Rows in blocks of kMr, a single row by itself; after each block's values its zero points and scales.
int64_t lhs_bytes(int64_t padded_k) { return kMr * (padded_k + static_cast<int64_t>(sizeof(int32_t) + sizeof(float))); }

template <class Pair>
void pack_lhs(const int8_t* const* rows, int64_t count, int64_t padded_k, int8_t* block) {
    const int64_t packed_rows = count == 1 ? 1 : kMr;
    for (int64_t l = 0; l < padded_k; l += Pair::kDepth)
        for (int64_t row = 0; row < packed_rows; ++row, block += Pair::kDepth)
            std::memcpy(block, rows[row < count ? row : 0] + l, Pair::kDepth);
    const int32_t zero_points[kMr] = {};
    const float scales[kMr] = {1, 1, 1, 1};
    std::memcpy(block, zero_points, packed_rows * sizeof(int32_t));
    std::memcpy(block + packed_rows * sizeof(int32_t), scales, packed_rows * sizeof(float));
}

template <class Pair>
void gemm(const GroupedGemm& call) {
    const GroupedProblem& problem = *call.problem;
    const int64_t single = call.m % kMr == 1 ? 1 : 0, rows = call.m - single;
    const size_t stride = call.dst_stride * sizeof(float);
    const Functions functions = Pair::functions();
    if (rows > 0)
        functions.gemm(rows, call.columns, problem.k, problem.group, call.lhs, call.blocks, call.dst, stride,
                       sizeof(float), -FLT_MAX, FLT_MAX);
    if (single != 0)
        functions.gemv(1, call.columns, problem.k, problem.group, call.lhs + rows / kMr * lhs_bytes(problem.padded_k()),
                       call.blocks, call.dst + rows * call.dst_stride, stride, sizeof(float), -FLT_MAX, FLT_MAX);
}

// Whether the library has the arrangements that this file builds on.
template <class Pair>
bool self_check() {
    constexpr int kNr = Pair::kNr;
    const Functions library = Pair::functions();
    if (library.mr() != kMr || library.nr() != kNr || library.kr() != 2 * Pair::kDepth || library.sr() != 2)
        return false;
    constexpr int64_t kM = 5, kN = kNr + 2, kK = 128;
    const GroupedProblem problem{kN, kK, 32, DType::kBFloat16, false};
    // KleidiAI aborts if asked for rows or columns that are no multiple of a micro-kernel's steps.
    constexpr int64_t kSteps = 16;
    if (static_cast<int64_t>(library.lhs_offset(kSteps, kK)) != kSteps / kMr * lhs_bytes(kK) ||
        static_cast<int64_t>(library.rhs_offset(kSteps, kK, problem.group)) !=
            kSteps / kNr * block_bytes<Pair>(problem))
        return false;
    std::vector<int8_t> q(kN * kK), unpacked(kN * kK), lhs(kM * kK);
    std::vector<uint16_t> scales(kN * problem.groups()), unpacked_scales(scales.size());
    uint32_t state = 1;
    const auto next = [&] { return static_cast<int>((state = state * 1664525u + 1013904223u) >> 24); };
    for (int8_t& value : q) value = static_cast<int8_t>(next() % 16 - 8);
    for (int8_t& value : lhs) value = static_cast<int8_t>(next() - 128);
    for (uint16_t& scale : scales) scale = BFloat16::store(static_cast<float>(1 + next()));
    std::vector<uint8_t> blocks(2 * block_bytes<Pair>(problem));
    for (int64_t block = 0; block < 2; ++block) {
        uint8_t* at = blocks.data() + block * block_bytes<Pair>(problem);
        pack<Pair>(problem, {q.data(), scales.data(), nullptr}, block * kNr, at);
        Block<Pair>::unpack(problem, at, block * kNr, {unpacked.data(), unpacked_scales.data(), nullptr});
    }
    if (unpacked != q || unpacked_scales != scales) return false;
    const int8_t* rows[kM];
    for (int64_t row = 0; row < kM; ++row) rows[row] = lhs.data() + row * kK;
    std::vector<int8_t> packed(2 * lhs_bytes(kK));
    pack_lhs<Pair>(rows, kMr, kK, packed.data());
    pack_lhs<Pair>(rows + kMr, kM - kMr, kK, packed.data() + lhs_bytes(kK));
    std::vector<float> dst(2 * kMr * 2 * kNr);
    gemm<Pair>({&problem, packed.data(), kM, blocks.data(), kN, dst.data(), 2 * kNr});
    for (int64_t i = 0; i < kM; ++i) {
        for (int64_t j = 0; j < kN; ++j) {
            double sum = 0, magnitude = 0;
            for (int64_t l = 0; l < kK; ++l) {
                const double scale = BFloat16::load(scales[j * problem.groups() + l / problem.group]);
                sum += scale * lhs[i * kK + l] * q[j * kK + l];
                magnitude += scale * 128 * 8;
            }
            const double difference = sum - dst[i * 2 * kNr + j];
            if (!(difference < 1e-6 * magnitude && difference > -1e-6 * magnitude)) return false;
        }
    }
    return true;
}

template <class Pair>
void reject(const GroupedProblem& problem, std::vector<std::string>& reasons) {
    if (problem.zero_points) reasons.push_back("KleidiAI serves no weights with zero points");
    if (problem.scale_type != DType::kBFloat16) reasons.push_back("KleidiAI takes bfloat16 scales only");
    if (problem.group % kGroupedStep != 0)
        reasons.push_back("KleidiAI takes groups of a multiple of " + std::to_string(kGroupedStep) + " only, not " +
                          std::to_string(problem.group));
    if (!Pair::functions().are_there()) reasons.push_back("this libtorch carries no such KleidiAI");
    if (!reasons.empty() || !cpu_features().has(kFeatures<Pair>)) return;
    static const bool works = self_check<Pair>();
    if (!works) reasons.push_back("this copy of KleidiAI failed the self-check");
}

template <class Pair>
std::string packing_format(const GroupedProblem&) {
    return Pair::kFormat;
}

// Modelled, as in neon_grouped_kernels.cpp.
template <class Pair, int kMacsPerCycle>
double cost(const GroupedProblem& problem, const CpuFeatures&) {
    const double outputs = 16.0 * static_cast<double>(round_up(problem.n, Pair::kNr));
    return 500.0 + outputs * (static_cast<double>(problem.padded_k()) / kMacsPerCycle +
                              static_cast<double>(problem.groups()) / 3);
}

float unit(const GroupedProblem&) { return 1; }

template <class Pair, int kMacsPerCycle>
constexpr GroupedKernel row(const char* id, const char* summary) {
    return {id,
            summary,
            kFeatures<Pair>,
            reject<Pair>,
            cost<Pair, kMacsPerCycle>,
            packing_format<Pair>,
            kMr,
            Pair::kNr,
            block_bytes<Pair>,
            pack<Pair>,
            Block<Pair>::unpack,
            lhs_bytes,
            pack_lhs<Pair>,
            gemm<Pair>,
            unit};
}

}  // namespace
}  // namespace ao_arm

#endif  // __aarch64__

namespace ao_arm {
namespace {

constexpr const char* kI8mmId = "kleidiai/qai8dxp_qsi4c32p_i8mm";
constexpr const char* kI8mmSummary = "KleidiAI's micro-kernels on matrix instructions";
constexpr const char* kDotprodId = "kleidiai/qai8dxp_qsi4c32p_dot";
constexpr const char* kDotprodSummary = "KleidiAI's micro-kernels on dot product instructions";
constexpr const char* kLibtorchId = "kleidiai/qai8dxp_qsi4c32p_torch";
constexpr const char* kLibtorchSummary = "libtorch's copy of KleidiAI's micro-kernels on matrix instructions";

#if !AO_ARM_HAVE_KLEIDIAI
// Rows stay where there is nothing behind them, to say why they are not taken.
void reject_missing(const GroupedProblem&, std::vector<std::string>& reasons) {
#if defined(__aarch64__)
    reasons.push_back(
        "this ao_arm was built without KleidiAI: install it (Debian, Ubuntu: libkleidiai-dev, 1.8 or newer; elsewhere "
        "set KLEIDIAI_ROOT_DIR) and reinstall ao_arm");
#else
    reasons.push_back("it is built for AArch64 only");
#endif
}

constexpr GroupedKernel missing(const char* id, const char* summary, uint32_t features) {
    return {id,      summary, features, reject_missing, nullptr, nullptr, 4,      4,
            nullptr, nullptr, nullptr,  nullptr,        nullptr, nullptr, nullptr};
}
#endif

}  // namespace

#if AO_ARM_HAVE_KLEIDIAI
const GroupedKernel kGroupedKleidiaiI8mm = row<I8mm, 90>(kI8mmId, kI8mmSummary);
const GroupedKernel kGroupedKleidiaiDotprod = row<Dotprod, 25>(kDotprodId, kDotprodSummary);
#else
const GroupedKernel kGroupedKleidiaiI8mm = missing(kI8mmId, kI8mmSummary, kDotprod | kI8mm);
const GroupedKernel kGroupedKleidiaiDotprod = missing(kDotprodId, kDotprodSummary, kDotprod);
#endif
#if defined(__aarch64__)
const GroupedKernel kGroupedKleidiaiLibtorch = row<Libtorch, 80>(kLibtorchId, kLibtorchSummary);
#else
const GroupedKernel kGroupedKleidiaiLibtorch = missing(kLibtorchId, kLibtorchSummary, kDotprod | kI8mm);
#endif

std::vector<const GroupedKernel*> kleidiai_grouped_kernels() {
    return {&kGroupedKleidiaiI8mm, &kGroupedKleidiaiDotprod, &kGroupedKleidiaiLibtorch};
}

}  // namespace ao_arm
