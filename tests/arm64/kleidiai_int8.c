// A layer as KleidiAI alone computes it: activations that it quantizes by token, asymmetric, by int8 weights with a
// scale for each channel, on one thread. cycles_guest.py calls it.
#include <float.h>
#include <kai/kai_common.h>
#include <kai/ukernels/matmul/matmul_clamp_f32_qai8dxp_qsi8cxp/kai_matmul_clamp_f32_qai8dxp1x4_qsi8cxp4x4_1x4_neon_dotprod.h>
#include <kai/ukernels/matmul/matmul_clamp_f32_qai8dxp_qsi8cxp/kai_matmul_clamp_f32_qai8dxp1x8_qsi8cxp4x8_1x4_neon_dotprod.h>
#include <kai/ukernels/matmul/matmul_clamp_f32_qai8dxp_qsi8cxp/kai_matmul_clamp_f32_qai8dxp4x4_qsi8cxp4x4_16x4_neon_dotprod.h>
#include <kai/ukernels/matmul/matmul_clamp_f32_qai8dxp_qsi8cxp/kai_matmul_clamp_f32_qai8dxp4x8_qsi8cxp4x8_16x4_neon_i8mm.h>
#include <kai/ukernels/matmul/matmul_clamp_f32_qai8dxp_qsi8cxp/kai_matmul_clamp_f32_qai8dxp_qsi8cxp_interface.h>
#include <kai/ukernels/matmul/pack/kai_lhs_quant_pack_qai8dxp_f32.h>
#include <kai/ukernels/matmul/pack/kai_rhs_pack_nxk_qsi8cxp_qsi8cx_neon.h>
#include <sys/auxv.h>

#define EXPORTED __attribute__((visibility("default")))

typedef struct kai_matmul_clamp_f32_qai8dxp_qsi8cxp_ukernel MicroKernel;

#define MICRO_KERNEL(name)                         \
    {.get_mr = kai_get_mr_matmul_clamp_f32_##name, \
     .get_nr = kai_get_nr_matmul_clamp_f32_##name, \
     .get_kr = kai_get_kr_matmul_clamp_f32_##name, \
     .get_sr = kai_get_sr_matmul_clamp_f32_##name, \
     .run_matmul = kai_run_matmul_clamp_f32_##name}

// For one row and for more, on the same packed weight: without matrix instructions, with them.
static const MicroKernel kMicroKernels[2][2] = {
    {MICRO_KERNEL(qai8dxp1x4_qsi8cxp4x4_1x4_neon_dotprod), MICRO_KERNEL(qai8dxp4x4_qsi8cxp4x4_16x4_neon_dotprod)},
    {MICRO_KERNEL(qai8dxp1x8_qsi8cxp4x8_1x4_neon_dotprod), MICRO_KERNEL(qai8dxp4x8_qsi8cxp4x8_16x4_neon_i8mm)}};

static const MicroKernel* micro_kernel(size_t m) {
    const int has_i8mm = (getauxval(AT_HWCAP2) >> 13) & 1;
    return &kMicroKernels[has_i8mm][m > 1];
}

EXPORTED size_t packed_weight_bytes(size_t n, size_t k) {
    const MicroKernel* of = micro_kernel(1);
    return kai_get_rhs_packed_size_rhs_pack_nxk_qsi8cxp_qsi8cx_neon(n, k, of->get_nr(), of->get_kr(), of->get_sr());
}

EXPORTED void pack_weight(size_t n, size_t k, const int8_t* qdata, const float* bias, const float* scale,
                          void* packed) {
    const MicroKernel* of = micro_kernel(1);
    const struct kai_rhs_pack_qsi8cx_params of_lhs = {.lhs_zero_point = 1, .scale_multiplier = 1.0f};
    kai_run_rhs_pack_nxk_qsi8cxp_qsi8cx_neon(1, n, k, of->get_nr(), of->get_kr(), of->get_sr(), qdata, bias, scale,
                                             packed, 0, &of_lhs);
}

EXPORTED size_t packed_rows_bytes(size_t m, size_t k) {
    const MicroKernel* of = micro_kernel(m);
    return kai_get_lhs_packed_size_lhs_quant_pack_qai8dxp_f32(m, k, of->get_mr(), of->get_kr(), of->get_sr());
}

EXPORTED void multiply(size_t m, size_t n, size_t k, const float* rows, void* packed_rows, const void* packed_weight,
                       float* to) {
    const MicroKernel* of = micro_kernel(m);
    kai_run_lhs_quant_pack_qai8dxp_f32(m, k, of->get_mr(), of->get_kr(), of->get_sr(), 0, rows, k * sizeof(float),
                                       packed_rows);
    of->run_matmul(m, n, k, packed_rows, packed_weight, to, n * sizeof(float), sizeof(float), -FLT_MAX, FLT_MAX);
}
