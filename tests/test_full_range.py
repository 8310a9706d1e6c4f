"""Int8 weights that hold -128, as torchao's own quantization makes them: multiplied exactly, by a kernel that can."""

import copy
import warnings

import cases
import pytest
import torch
from packed_headers import HEADER_BYTES, name_in, with_header
from tensors import assert_same_weight
from torch import Tensor, nn
from torch.nn.functional import linear
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

import ao_arm
from ao_arm import ACLPackedLayout, ACLPackedTensor, _ops, kernels, packing, reference
from ao_arm.affine_quantized import as_weight

N, K = 40, 96
MOST_K = 65793  # 255 * 128 times this is just below 2^31
REASON = "the weight holds -128, "
INT8_LAYOUTS = {name: layout for name, layout in cases.LAYOUTS.items() if not layout.is_grouped}
#: Of the kernels that this CPU can run, those that multiply such weights exactly.
EXACT = tuple(row.id for row in kernels.list(N, K, full_range=True) if not row.reasons)


def values(n: int = N, k: int = K) -> Tensor:
    """Half of them -128, so that some meet."""
    drawn = cases.int8_values(n, k)
    drawn[torch.rand(n, k) < 0.5] = -128
    drawn[0, 0] = -128
    return drawn


def weight_of(layout: ACLPackedLayout | None = None, n: int = N, k: int = K) -> ACLPackedTensor:
    layout = ACLPackedLayout() if layout is None else layout
    scale = torch.rand(n if layout.weight_granularity == "per_channel" else 1) * 0.01 + 1e-3
    act = cases.act_quantization(layout)
    return ACLPackedTensor.from_plain(values(n, k), scale, None, layout, torch.float32, *act)


def inputs(m: int, k: int = K) -> Tensor:
    """Rows of which half the values are quantized to -128, the least that there is."""
    x = torch.randn(m, k)
    x[torch.rand(m, k) < 0.5] = -50.0
    return x


def refusal(kernel: str) -> str:
    """Why a kernel does not take such a weight; empty if it does."""
    (reasons,) = (row.reasons for row in kernels.list(N, K, full_range=True) if row.id == kernel)
    return "; ".join(reasons)


def test_some_kernel_of_every_cpu_takes_such_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AO_ARM_KERNEL", raising=False)
    assert "portable/baseline" in EXACT
    for row in kernels.list(N, K, full_range=True):
        assert (row.id in EXACT) == (not row.reasons)
        if row.id in set(cases.KERNELS) - set(EXACT):
            assert len(row.reasons) == 1 and row.reasons[0].startswith(REASON), row
    chosen = min((row for row in kernels.list(N, K) if row.id in EXACT), key=lambda row: row.cost)
    assert kernels.select(N, K, full_range=True) == weight_of().kernel == chosen.id


def test_only_what_adds_up_in_16_bits_refuses() -> None:
    """ACL has exact micro-kernels where the CPU has dotprod; every other kernel adds up in 32 bits."""
    refusing = set(cases.KERNELS) - set(EXACT)
    has_dotprod = any(row.id == "neon/dotprod" and not row.reasons for row in kernels.list(N, K))
    assert refusing <= {"acl/s8s32+epilogue"}
    assert not (refusing and has_dotprod)


def test_products_are_exact_or_refused_by_name(kernel: str) -> None:
    for n, k in ((1, 1), (17, 33), (65, 130), (385, 64), (2, 3072)):
        for weight in (values(n, k), torch.full((n, k), -128, dtype=torch.int8)):
            if kernel not in EXACT:
                with pytest.raises(ValueError, match=f"{kernel.replace('+', '.')}, which cannot serve .*{REASON}"):
                    _ops.call(_ops.pack_int8, weight, kernel)
                continue
            if not cases.fits(kernel, n, k):
                continue
            packed = _ops.pack_int8(weight, kernel)
            assert torch.equal(_ops.unpack_int8(packed, n, k), weight)
            for x in (torch.full((9, k), -128, dtype=torch.int8), cases.int8_values(33, k, least=-128)):
                actual = _ops.matmul_int8(x, packed)
                assert torch.equal(actual, reference.matmul_int8(x, weight)), f"{n=} {k=} m={len(x)}"


@pytest.mark.parametrize("layout", INT8_LAYOUTS.values(), ids=INT8_LAYOUTS)
@pytest.mark.parametrize("kernel", EXACT, indirect=True)
def test_layers_have_the_bits_of_the_reference(layout: ACLPackedLayout, kernel: str) -> None:
    weight, bias = weight_of(layout), torch.randn(N)
    assert weight.kernel == kernel
    for m in (1, 5, 33):
        x = inputs(m)
        assert cases.same_bits(linear(x, weight, bias), cases.by_reference(x, weight, bias)), f"{m=}"


@pytest.mark.x86
def test_the_longest_row() -> None:
    qdata = torch.full((2, MOST_K), -128, dtype=torch.int8)
    packed = _ops.pack_int8(qdata, "")
    x = torch.full((3, MOST_K), 127, dtype=torch.int8)
    arguments = (torch.tensor(1.0), torch.tensor(-128, dtype=torch.int8))
    actual = _ops.linear_int8_quantized(x, *arguments, packed, torch.ones(2), None, torch.float32)
    assert bool((actual == float(-128 * 255 * MOST_K)).all())
    with pytest.raises(ValueError, match=f"{MOST_K} at most, as the weight holds -128"):
        _ops.call(_ops.pack_int8, torch.full((2, MOST_K + 1), -128, dtype=torch.int8), "")
    assert kernels.select(2, MOST_K + 1)


# --- the tensor ---


def test_the_tensor_knows_what_it_holds() -> None:
    weight, ordinary = weight_of(), cases.packed(torch.randn(N, K))
    assert weight.problem == kernels.Problem(N, K, full_range=True)
    assert ordinary.problem == kernels.Problem(N, K)
    assert packing.problem_of(N, K, ordinary.get_layout()) == ordinary.problem
    assert weight.to("meta").problem == ordinary.problem, "there is nothing to look at"


def test_explain_says_which_kernels_had_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AO_ARM_KERNEL", raising=False)
    model = nn.Sequential(nn.Linear(K, N))
    model[0].weight = nn.Parameter(as_weight(weight_of()), requires_grad=False)
    (layer,) = ao_arm.explain(model)
    assert layer.kernel in EXACT
    assert layer.rejected == {row.id: row.reasons for row in kernels.list(N, K, full_range=True) if row.reasons}
    for kernel in set(cases.KERNELS) - set(EXACT):
        assert layer.rejected[kernel] == (refusal(kernel),)
        assert REASON in str(ao_arm.explain(model))


def test_a_slower_kernel_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AO_ARM_KERNEL", raising=False)
    monkeypatch.setattr(kernels, "_warned", set())
    weight = weight_of()
    costs = {row.id: row.cost for row in kernels.list(N, K)}
    faster = [name for name in set(cases.KERNELS) - set(EXACT) if costs[name] < costs[weight.kernel]]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kernels.warn_if_slow(weight.kernel, "a layer", *weight.problem)
    said = [str(warning.message) for warning in caught if REASON in str(warning.message)]
    assert len(said) == len(faster)


def test_copies_slices_and_transposes() -> None:
    weight, x = weight_of(), inputs(5)
    plain = weight.get_plain()
    for name, made in {
        "clone": weight.clone(),
        "deepcopy": copy.deepcopy(weight),
        "to bfloat16 and back": weight.to(torch.bfloat16).to(torch.float32),
        "transposed twice": weight.t().t(),
        "saved and loaded": torch.load(cases.saved(weight), weights_only=True),
    }.items():
        assert_same_weight(made, weight, name)
        assert cases.same_bits(linear(x, made), cases.by_reference(x, weight)), name
    rows, columns = weight[3:20], weight[:, 7:50]
    for part, expected in ((rows, plain[0][3:20]), (columns, plain[0][:, 7:50])):
        assert torch.equal(part.get_plain()[0], expected)
    assert cases.same_bits(linear(x, rows), cases.by_reference(x, weight)[:, 3:20])
    assert cases.same_bits(linear(x[:, 7:50], columns), cases.by_reference(x[:, 7:50], columns))
    assert cases.same_bits(x @ weight.t(), cases.by_reference(x, weight))


def test_a_slice_without_minus_128_is_an_ordinary_weight() -> None:
    qdata = cases.int8_values(N, K)
    qdata[N - 1] = -128
    weight = ACLPackedTensor.from_plain(qdata, torch.ones(N), None, ACLPackedLayout())
    assert weight.problem.full_range
    assert not weight[: N - 1].problem.full_range
    assert weight[N - 1 :].problem.full_range


@pytest.mark.parametrize("assign", (False, True), ids="assign={}".format)
def test_state_dicts(assign: bool) -> None:
    """Into a model whose weight does not hold -128, and so may be packed for another kernel; and back."""
    x, weight, ordinary = inputs(5), weight_of(), cases.packed(torch.randn(N, K))
    ordinary_plain = ordinary.get_plain()
    model = nn.Sequential(nn.Linear(K, N, bias=False)).requires_grad_(False)
    model[0].weight = nn.Parameter(as_weight(ordinary), requires_grad=False)
    states = []
    for source in (weight, ordinary.clone()):
        other = nn.Sequential(nn.Linear(K, N, bias=False))
        other[0].weight = nn.Parameter(as_weight(source), requires_grad=False)
        states.append(cases.saved(other.state_dict()))
    for state, qdata in zip(states, (weight.get_plain()[0], ordinary_plain[0]), strict=True):
        model.load_state_dict(torch.load(state, weights_only=True), assign=assign)
        loaded = cases.packed_in(model[0])
        assert torch.equal(loaded.qdata, qdata)
        assert loaded.problem.full_range == (int(qdata.min()) == -128)
        assert cases.same_bits(model(x), cases.by_reference(x, loaded))


def test_packed_bytes_say_so_and_are_refused_where_they_would_overflow() -> None:
    """Bytes of the same weight for a kernel that refuses it cannot be made; made-up ones are not opened."""
    weight = weight_of()
    content = bytearray(weight.packed_weight.tolist())
    flag = slice(192, 196)
    assert content[flag] == b"\1\0\0\0"
    assert bytes(cases.packed(torch.randn(N, K)).packed_weight[flag].tolist()) == bytes(4)
    for kernel in set(cases.KERNELS) - set(EXACT):
        honest = _ops.pack_int8(cases.int8_values(N, K), kernel)
        made_up = honest.clone()
        made_up[192] = 1
        made_up = with_header(made_up)
        assert name_in(made_up) == kernel and len(made_up) > HEADER_BYTES
        with pytest.raises(ValueError, match=f"cannot run here: {REASON}.*Pack the weight again"):
            _ops.call(_ops.matmul_int8, cases.int8_values(3, K), made_up)


@pytest.mark.x86
def test_a_weight_that_torchao_quantized() -> None:
    """Symmetric activations get the same integers there, so that only the order of float operations differs."""
    if cases.HAS_AQT:
        pytest.skip("this torchao keeps int8 weights in [-127, 127]")
    model, x = nn.Sequential(nn.Linear(K, N)).requires_grad_(False), torch.randn(9, K)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    theirs = model[0].weight
    weight = ACLPackedTensor.from_plain(theirs.qdata, theirs.scale, theirs.zero_point, ACLPackedLayout())
    assert torch.equal(weight.qdata, theirs.qdata) and weight.problem.full_range
    actual, expected = linear(x, weight, model[0].bias), model(x)
    assert cases.same_bits(actual, cases.by_reference(x, weight, model[0].bias))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_our_own_quantization_leaves_it_out() -> None:
    for layout in INT8_LAYOUTS.values():
        assert not cases.packed(torch.randn(N, K) - 1.0, layout).problem.full_range
