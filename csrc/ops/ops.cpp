// Registers the custom ops with torch. Python repeats each schema beside its fake kernel and compares the two when it
// loads this library (ao_arm/_ops.py).
#include "ops/ops.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(ao_arm, library) {
    library.def(
        "linear_int8_dynamic(Tensor input, Tensor packed_weight, Tensor weight_scale, Tensor? bias, bool symmetric, "
        "bool per_token) -> Tensor");
    library.def(
        "linear_int8_dynamic_shared(Tensor input, Tensor[] packed_weights, Tensor[] weight_scales, Tensor?[] biases, "
        "bool symmetric, bool per_token) -> Tensor[]");
    library.def(
        "linear_int8_quantized(Tensor qdata, Tensor act_scale, Tensor? act_zero_point, Tensor packed_weight, "
        "Tensor weight_scale, Tensor? bias, ScalarType output_dtype) -> Tensor");
    library.def(
        "linear_int8_static(Tensor input, Tensor packed_weight, Tensor weight_scale, Tensor? bias, Tensor input_scale, "
        "Tensor input_zero_point, Tensor? output_scale=None, Tensor? output_zero_point=None, "
        "ScalarType? output_dtype=None, float? output_min=None, float? output_max=None) -> Tensor");
    library.def("matmul_int8(Tensor qdata, Tensor packed_weight) -> Tensor");
    library.def("quantize_activations(Tensor input, bool symmetric) -> (Tensor, Tensor, Tensor)");
    library.def("pack_int8(Tensor qdata, str kernel) -> Tensor");
    library.def("unpack_int8(Tensor packed_weight, int n, int k, Tensor? rows=None) -> Tensor");
    library.def(
        "linear_qta8a_qga4w(Tensor input, Tensor packed_weight, int n, Tensor? bias, Tensor? act_scale=None, "
        "Tensor? act_zero_point=None, float? output_min=None, float? output_max=None) -> Tensor");
    library.def(
        "linear_qta8a_qga4w_shared(Tensor input, Tensor[] packed_weights, int[] n, Tensor?[] biases) -> Tensor[]");
    library.def("pack_int4(Tensor qdata, Tensor scale, Tensor? zero_point, str kernel) -> Tensor");
    library.def(
        "unpack_int4(Tensor packed_weight, int n, int k, int group_size, bool float_scales, bool zero_points, "
        "Tensor? rows=None) -> (Tensor, Tensor, Tensor)");
    library.def("packed_weight_info(Tensor packed_weight) -> str");
    library.def("select_kernel(int n, int k, str forced, bool full_range=False) -> str");
    library.def("packed_bytes(int n, int k, str kernel, bool full_range=False) -> int");
    library.def("kernel_table(int n, int k, bool full_range=False) -> str");
    library.def(
        "select_kernel_int4(int n, int k, int group_size, bool float_scales, bool zero_points, str forced) -> str");
    library.def(
        "packed_bytes_int4(int n, int k, int group_size, bool float_scales, bool zero_points, str kernel) -> int");
    library.def("kernel_table_int4(int n, int k, int group_size, bool float_scales, bool zero_points) -> str");
    library.def("system_info() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(ao_arm, CPU, library) {
    library.impl("linear_int8_dynamic", TORCH_BOX(&ao_arm::linear_int8_dynamic));
    library.impl("linear_int8_dynamic_shared", TORCH_BOX(&ao_arm::linear_int8_dynamic_shared));
    library.impl("linear_int8_quantized", TORCH_BOX(&ao_arm::linear_int8_quantized));
    library.impl("linear_int8_static", TORCH_BOX(&ao_arm::linear_int8_static));
    library.impl("matmul_int8", TORCH_BOX(&ao_arm::matmul_int8));
    library.impl("quantize_activations", TORCH_BOX(&ao_arm::quantize_activations));
    library.impl("pack_int8", TORCH_BOX(&ao_arm::pack_int8));
    library.impl("unpack_int8", TORCH_BOX(&ao_arm::unpack_int8));
    library.impl("linear_qta8a_qga4w", TORCH_BOX(&ao_arm::linear_qta8a_qga4w));
    library.impl("linear_qta8a_qga4w_shared", TORCH_BOX(&ao_arm::linear_qta8a_qga4w_shared));
    library.impl("pack_int4", TORCH_BOX(&ao_arm::pack_int4));
    library.impl("unpack_int4", TORCH_BOX(&ao_arm::unpack_int4));
    library.impl("packed_weight_info", TORCH_BOX(&ao_arm::packed_weight_info));
}

STABLE_TORCH_LIBRARY_IMPL(ao_arm, CompositeExplicitAutograd, library) {
    library.impl("select_kernel", TORCH_BOX(&ao_arm::select_kernel_int8));
    library.impl("packed_bytes", TORCH_BOX(&ao_arm::packed_bytes_int8));
    library.impl("kernel_table", TORCH_BOX(&ao_arm::kernel_table_int8));
    library.impl("select_kernel_int4", TORCH_BOX(&ao_arm::select_kernel_int4));
    library.impl("packed_bytes_int4", TORCH_BOX(&ao_arm::packed_bytes_int4));
    library.impl("kernel_table_int4", TORCH_BOX(&ao_arm::kernel_table_int4));
    library.impl("system_info", TORCH_BOX(&ao_arm::system_info));
}

// What torch calls where an argument is a negated view. It carries out the negation itself for other ops, but not in
// lists of optional tensors.
STABLE_TORCH_LIBRARY_IMPL(ao_arm, Negative, library) {
    library.impl("linear_int8_dynamic_shared", TORCH_BOX(&ao_arm::linear_int8_dynamic_shared_settling));
    library.impl("linear_qta8a_qga4w_shared", TORCH_BOX(&ao_arm::linear_qta8a_qga4w_shared_settling));
}
