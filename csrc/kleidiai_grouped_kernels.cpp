// The table's rows for KleidiAI's 4-bit micro-kernels: one for many rows and one for a single row on one packed weight.
//
// Activations are quantized by our own routines and laid out as KleidiAI's packing does, with zero point 0 and scale 1:
// so its micro-kernels give plain sums, and the rest is the same for all kernels.
#include "grouped_kernel.h"

#if AO_ARM_HAVE_KLEIDIAI

#include <kai/ukernels/matmul/matmul_clamp_f32_qai8dxp_qsi4c32p/kai_matmul_clamp_f32_qai8dxp1x4_qsi4c32p4x4_1x4_neon_dotprod.h>
#include <kai/ukernels/matmul/matmul_clamp_f32_qai8dxp_qsi4c32p/kai_matmul_clamp_f32_qai8dxp1x8_qsi4c32p4x8_1x4x32_neon_dotprod.h>
#include <kai/ukernels/matmul/matmul_clamp_f32_qai8dxp_qsi4c32p/kai_matmul_clamp_f32_qai8dxp4x4_qsi4c32p4x4_16x4_neon_dotprod.h>
#include <kai/ukernels/matmul/matmul_clamp_f32_qai8dxp_qsi4c32p/kai_matmul_clamp_f32_qai8dxp4x8_qsi4c32p4x8_16x4x32_neon_i8mm.h>
#include <kai/ukernels/matmul/pack/kai_rhs_pack_nxk_qsi4c32p_qsu4c32s1s0.h>

#include <cfloat>
#include <cstring>

#include "element_types.h"
#include "grouped_block.h"

namespace ao_arm {
namespace {

constexpr int kNr = 4;
constexpr int64_t kMr = 4;

// A pair of micro-kernels. kDepth: bytes of a row or a column that lie together.
struct I8mm {
    static constexpr int kDepth = 8;
    static constexpr auto kGemm = kai_run_matmul_clamp_f32_qai8dxp4x8_qsi4c32p4x8_16x4x32_neon_i8mm;
    static constexpr auto kGemv = kai_run_matmul_clamp_f32_qai8dxp1x8_qsi4c32p4x8_1x4x32_neon_dotprod;
    static bool has_expected_shape() {
        return kai_get_nr_matmul_clamp_f32_qai8dxp4x8_qsi4c32p4x8_16x4x32_neon_i8mm() == kNr &&
               kai_get_mr_matmul_clamp_f32_qai8dxp4x8_qsi4c32p4x8_16x4x32_neon_i8mm() == kMr &&
               kai_get_kr_matmul_clamp_f32_qai8dxp4x8_qsi4c32p4x8_16x4x32_neon_i8mm() == 2 * kDepth &&
               kai_get_sr_matmul_clamp_f32_qai8dxp4x8_qsi4c32p4x8_16x4x32_neon_i8mm() == 2;
    }
};

struct Dotprod {
    static constexpr int kDepth = 4;
    static constexpr auto kGemm = kai_run_matmul_clamp_f32_qai8dxp4x4_qsi4c32p4x4_16x4_neon_dotprod;
    static constexpr auto kGemv = kai_run_matmul_clamp_f32_qai8dxp1x4_qsi4c32p4x4_1x4_neon_dotprod;
    static bool has_expected_shape() {
        return kai_get_nr_matmul_clamp_f32_qai8dxp4x4_qsi4c32p4x4_16x4_neon_dotprod() == kNr &&
               kai_get_mr_matmul_clamp_f32_qai8dxp4x4_qsi4c32p4x4_16x4_neon_dotprod() == kMr &&
               kai_get_kr_matmul_clamp_f32_qai8dxp4x4_qsi4c32p4x4_16x4_neon_dotprod() == 2 * kDepth &&
               kai_get_sr_matmul_clamp_f32_qai8dxp4x4_qsi4c32p4x4_16x4_neon_dotprod() == 2;
    }
};

// KleidiAI arranges nibbles and scales as our own kernels do, then come the columns' sums and biases.
template <class Pair>
using Block = GroupedBlock<kNr, kNr, Pair::kDepth, 16, false>;

template <class Pair>
int64_t block_bytes(const GroupedProblem& problem) {
    return Block<Pair>::block_bytes(problem) + 2 * kNr * static_cast<int64_t>(sizeof(float));
}

template <class Pair>
void pack(const GroupedProblem& problem, const GroupedValues& values, int64_t first_column, uint8_t* block) {
    const int64_t k = problem.k, groups = problem.groups();
    std::vector<uint8_t> nibbles(kNr * k / 2, 0x88);
    std::vector<uint16_t> scales(kNr * groups, 0);
    for (int64_t j = 0; j < kNr && first_column + j < problem.n; ++j) {
        const int8_t* q = values.q + (first_column + j) * k;
        for (int64_t l = 0; l < k; l += 2)
            nibbles[(j * k + l) / 2] = static_cast<uint8_t>((q[l] + 8) | (q[l + 1] + 8) << 4);
        std::memcpy(scales.data() + j * groups,
                    static_cast<const uint16_t*>(values.scale) + (first_column + j) * groups,
                    groups * sizeof(uint16_t));
    }
    const float biases[kNr] = {};
    const kai_rhs_pack_nxk_qsi4c32p_qsu4c32s1s0_params params = {1, 8, kai_dt_bf16};
    kai_run_rhs_pack_nxk_qsi4c32p_qsu4c32s1s0(1, kNr, k, kNr, 2 * Pair::kDepth, 2, problem.group, nibbles.data(), k / 2,
                                              biases, scales.data(), groups * sizeof(uint16_t), block, 0, &params);
}

// Rows in blocks of kMr, a single row by itself; after each block's values its zero points and scales.
int64_t lhs_bytes(int64_t padded_k) { return kMr * (padded_k + static_cast<int64_t>(sizeof(int32_t) + sizeof(float))); }

LhsPlace lhs_place(int64_t rows, int64_t row, int64_t) {
    return rows == 1 ? LhsPlace{0, 8} : LhsPlace{row * 8, kMr * 8};
}

template <class Pair>
void complete_lhs(int64_t rows, int64_t padded_k, int8_t* block) {
    const int64_t packed_rows = rows == 1 ? 1 : kMr;
    if (Pair::kDepth == 4 && rows > 1) {
        for (int64_t l = 0; l < padded_k; l += 8, block += 8 * kMr) {
            int8_t eights[8 * kMr];
            std::memcpy(eights, block, sizeof eights);
            for (int64_t i = 0; i < 2 * kMr; ++i) std::memcpy(block + 4 * i, eights + i % kMr * 8 + i / kMr * 4, 4);
        }
    } else {
        block += packed_rows * padded_k;
    }
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
    if (rows > 0)
        Pair::kGemm(rows, call.columns, problem.k, problem.group, call.lhs, call.blocks, call.dst, stride,
                    sizeof(float), -FLT_MAX, FLT_MAX);
    if (single != 0)
        Pair::kGemv(1, call.columns, problem.k, problem.group, call.lhs + rows / kMr * lhs_bytes(problem.padded_k()),
                    call.blocks, call.dst + rows * call.dst_stride, stride, sizeof(float), -FLT_MAX, FLT_MAX);
}

// Whether the linked library has the arrangements that this file builds on.
template <class Pair>
bool self_check() {
    if (!Pair::has_expected_shape()) return false;
    constexpr int64_t kM = 5, kN = 6, kK = 128;
    const GroupedProblem problem{kN, kK, 32, DType::kBFloat16, false};
    if (static_cast<int64_t>(kai_get_rhs_packed_stride_rhs_pack_nxk_qsi4c32p_qsu4c32s1s0(
            kK, kNr, 2 * Pair::kDepth, 2, problem.group, kai_dt_bf16)) != block_bytes<Pair>(problem))
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
    std::vector<int8_t> packed(2 * lhs_bytes(kK));
    for (int64_t row = 0; row < kM; ++row) {
        const int64_t rows = row < kMr ? kMr : kM - kMr;
        const LhsPlace place = lhs_place(rows, row % kMr, kK);
        for (int64_t l = 0; l < kK; l += 8)
            std::memcpy(packed.data() + row / kMr * lhs_bytes(kK) + place.offset + l / 8 * place.stride,
                        lhs.data() + row * kK + l, 8);
    }
    complete_lhs<Pair>(kMr, kK, packed.data());
    complete_lhs<Pair>(kM - kMr, kK, packed.data() + lhs_bytes(kK));
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
    const uint32_t features = Pair::kDepth == 8 ? kDotprod | kI8mm : kDotprod;
    if (!reasons.empty() || !cpu_features().has(features)) return;
    static const bool works = self_check<Pair>();
    if (!works) reasons.push_back("the linked KleidiAI failed the self-check");
}

template <class Pair>
std::string packing_format(const GroupedProblem&) {
    return Pair::kDepth == 8 ? "KleidiAI qsi4c32p4x8" : "KleidiAI qsi4c32p4x4";
}

// Modelled, as in neon_grouped_kernels.cpp.
template <int kMacsPerCycle, int kGroupsPerCycle>
double cost(const GroupedProblem& problem, const CpuFeatures&) {
    const double outputs = 16.0 * static_cast<double>(round_up(problem.n, kNr));
    return 500.0 + outputs * (static_cast<double>(problem.padded_k()) / kMacsPerCycle +
                              static_cast<double>(problem.groups()) / kGroupsPerCycle);
}

float unit(const GroupedProblem&) { return 1; }

template <class Pair, int kMacsPerCycle>
constexpr GroupedKernel row(const char* id, const char* summary, uint32_t features) {
    return {id,
            summary,
            features,
            reject<Pair>,
            cost<kMacsPerCycle, 3>,
            packing_format<Pair>,
            kMr,
            kNr,
            block_bytes<Pair>,
            pack<Pair>,
            Block<Pair>::unpack,
            lhs_bytes,
            lhs_place,
            complete_lhs<Pair>,
            gemm<Pair>,
            unit};
}

}  // namespace

const GroupedKernel kGroupedKleidiaiI8mm = row<I8mm, 90>(
    "kleidiai/qai8dxp_qsi4c32p_i8mm", "KleidiAI's micro-kernels on matrix instructions", kDotprod | kI8mm);
const GroupedKernel kGroupedKleidiaiDotprod =
    row<Dotprod, 25>("kleidiai/qai8dxp_qsi4c32p_dot", "KleidiAI's micro-kernels on dot product instructions", kDotprod);

}  // namespace ao_arm

#else  // without KleidiAI the rows stay, to say why they are not taken

namespace ao_arm {
namespace {

void reject(const GroupedProblem&, std::vector<std::string>& reasons) {
#if defined(__aarch64__)
    reasons.push_back(
        "this ao_arm was built without KleidiAI: install it (Debian, Ubuntu: libkleidiai-dev, 1.8 or newer; elsewhere "
        "set KLEIDIAI_ROOT_DIR) and reinstall ao_arm");
#else
    reasons.push_back("it is built for AArch64 only");
#endif
}

constexpr GroupedKernel missing(const char* id, const char* summary, uint32_t features) {
    return {id,      summary, features, reject,  nullptr, nullptr, 4,       4,
            nullptr, nullptr, nullptr,  nullptr, nullptr, nullptr, nullptr, nullptr};
}

}  // namespace

const GroupedKernel kGroupedKleidiaiI8mm =
    missing("kleidiai/qai8dxp_qsi4c32p_i8mm", "KleidiAI's micro-kernels on matrix instructions", kDotprod | kI8mm);
const GroupedKernel kGroupedKleidiaiDotprod =
    missing("kleidiai/qai8dxp_qsi4c32p_dot", "KleidiAI's micro-kernels on dot product instructions", kDotprod);

}  // namespace ao_arm

#endif

namespace ao_arm {

std::vector<const GroupedKernel*> kleidiai_grouped_kernels() {
    return {&kGroupedKleidiaiI8mm, &kGroupedKleidiaiDotprod};
}

}  // namespace ao_arm
