// The ops between a weight's plain contents and its packed bytes.
#include <algorithm>

#include "layer/packed_weight.h"
#include "ops/op_arguments.h"
#include "ops/op_resources.h"
#include "ops/ops.h"

namespace ao_arm {
namespace {

// The problem that plain contents describe, after checking them.
Problem described_problem(const Tensor& qdata, const Tensor& scale, const std::optional<Tensor>& zero_point) {
    check_type(qdata, ScalarType::Char, "qdata", "torch.int8");
    check_readable(scale, "scale");
    const bool floats = scale.scalar_type() == ScalarType::Float;
    if (!floats && scale.scalar_type() != ScalarType::BFloat16)
        fail("scale must be torch.bfloat16 or torch.float32, not " + type_name(scale));
    check_arrangement(scale, "scale");
    if (qdata.dim() != 2 || scale.dim() != 2 || scale.size(0) != qdata.size(0) || scale.size(1) < 1)
        fail("qdata must be a matrix (n, k) and scale (n, k / group_size), not of shapes " + shape_of(qdata) + " and " +
             shape_of(scale));
    if (zero_point) {
        check_type(*zero_point, ScalarType::Char, "zero_point", "torch.int8");
        if (zero_point->dim() != 2 || zero_point->size(0) != scale.size(0) || zero_point->size(1) != scale.size(1))
            fail("zero_point of shape " + shape_of(*zero_point) + " must have the shape of scale, " + shape_of(scale));
    }
    const int64_t n = qdata.size(0), k = qdata.size(1), groups = scale.size(1);
    if (k % groups != 0)
        fail("scale of shape " + shape_of(scale) + " does not fit qdata of shape " + shape_of(qdata) +
             ": k = " + std::to_string(k) + " is no multiple of " + std::to_string(groups) + " groups");
    return int4_problem(n, k, k / groups, floats, zero_point.has_value());
}

int8_t* int8_data(const Tensor& tensor) { return static_cast<int8_t*>(const_cast<void*>(tensor.const_data_ptr())); }

// `plain` is only read.
Tensor packed(const Problem& problem, const PlainWeight& plain, const std::string& kernel_id) {
    const Kernel& kernel = usable_kernel(problem, kernel_id);
    const int64_t bytes = packed_bytes(kernel, problem);
    Tensor packed = empty_packed_weight(bytes);
    const std::string error = pack_weight(kernel, problem, plain, static_cast<uint8_t*>(packed.mutable_data_ptr()));
    if (!error.empty()) fail(error);
    return packed;
}

// How many rows are asked for: all `n` without a list of them.
int64_t count_of(const std::optional<Tensor>& rows, int64_t n) {
    if (!rows) return n;
    check_type(*rows, ScalarType::Long, "rows", "torch.int64");
    if (rows->dim() != 1) fail("rows must be a list of row numbers, not of shape " + shape_of(*rows));
    return rows->numel();
}

void unpack(const PackedWeight& weight, const std::optional<Tensor>& rows, const PlainWeight& plain) {
    const std::string error =
        rows ? unpack_rows(weight, static_cast<const int64_t*>(rows->const_data_ptr()), rows->numel(), plain)
             : unpack_weight(weight, plain);
    if (!error.empty()) fail(error);
}

}  // namespace

Tensor pack_int8(const Tensor& qdata, std::string kernel_id) {
    check_type(qdata, ScalarType::Char, "qdata", "torch.int8");
    if (qdata.dim() != 2) fail("qdata must be a matrix (n, k), not of shape " + shape_of(qdata));
    int8_t *values = int8_data(qdata), *end = values + qdata.numel();
    const bool full_range = std::find(values, end, int8_t{-128}) != end;
    return packed(int8_problem(qdata.size(0), qdata.size(1), full_range), {values, nullptr, nullptr}, kernel_id);
}

Tensor unpack_int8(const Tensor& packed_weight, int64_t n, int64_t k, const std::optional<Tensor>& rows) {
    const PackedWeight weight = opened(packed_weight, Scheme::kInt8);
    const Problem& problem = weight.problem;
    if (problem.n != n || problem.k != k)
        fail("this packed weight has shape (" + std::to_string(problem.n) + ", " + std::to_string(problem.k) +
             "), not (" + std::to_string(n) + ", " + std::to_string(k) + ")");
    const int64_t sizes[] = {count_of(rows, n), k};
    Tensor qdata = empty({sizes, 2}, ScalarType::Char);
    unpack(weight, rows, {int8_data(qdata), nullptr, nullptr});
    return qdata;
}

Tensor pack_int4(const Tensor& qdata, const Tensor& scale, const std::optional<Tensor>& zero_point,
                 std::string kernel_id) {
    const Problem problem = described_problem(qdata, scale, zero_point);
    return packed(
        problem,
        {int8_data(qdata), const_cast<void*>(scale.const_data_ptr()), zero_point ? int8_data(*zero_point) : nullptr},
        kernel_id);
}

std::tuple<Tensor, Tensor, Tensor> unpack_int4(const Tensor& packed_weight, int64_t n, int64_t k, int64_t group_size,
                                               bool float_scales, bool zero_points, const std::optional<Tensor>& rows) {
    const PackedWeight weight = opened(packed_weight, Scheme::kInt4);
    const Problem& problem = weight.problem;
    if (n != problem.n || k != problem.k || group_size != problem.group || zero_points != problem.zero_points ||
        float_scales != (problem.scale_type == DType::kFloat32))
        fail("the packed weight is (" + std::to_string(problem.n) + ", " + std::to_string(problem.k) +
             ") in groups of " + std::to_string(problem.group) + ", " +
             (problem.scale_type == DType::kFloat32 ? "float32" : "bfloat16") + " scales, " +
             (problem.zero_points ? "with" : "without") + " zero points, and not what was given");
    const int64_t count = count_of(rows, n);
    const int64_t sizes[] = {count, k}, groups[] = {count, problem.groups()}, none[] = {0, 0};
    Tensor qdata = empty({sizes, 2}, ScalarType::Char);
    Tensor scale = empty({groups, 2}, float_scales ? ScalarType::Float : ScalarType::BFloat16);
    Tensor zero_point = empty({zero_points ? groups : none, 2}, ScalarType::Char);
    unpack(weight, rows, {int8_data(qdata), scale.mutable_data_ptr(), zero_points ? int8_data(zero_point) : nullptr});
    return {qdata, scale, zero_point};
}

}  // namespace ao_arm
