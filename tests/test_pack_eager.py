"""`pack_` replaces what torch.ao's eager flow quantized: the same inputs, the same outputs, on our kernels."""

import copy
import gc
import platform
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cases
import pytest
import stock
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import ao_arm
from ao_arm import pack_, packed_weight_of
from ao_arm.stock_modules import PackedDynamicLinear, PackedEagerLinear, PackedQuantizedLinear

pytestmark = pytest.mark.filterwarnings("ignore")

ENGINES = [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]
K, N = 97, 33


@contextmanager
def running_on(engine: str) -> Iterator[str]:
    """Skips the test where torch has no such engine."""
    if engine not in ENGINES:
        pytest.skip(f"torch has no {engine} here")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        yield engine
    finally:
        torch.backends.quantized.engine = before


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each library that torch multiplies quantized tensors with here."""
    with running_on(request.param) as name:
        yield name


def quantized_weight(per_channel: bool, n: int = N, k: int = K, zero_point: int = 0) -> Tensor:
    weight = torch.randn(n, k)
    if per_channel:
        scales, zeros = torch.rand(n).double() * 0.02 + 0.01, torch.full((n,), zero_point)
        return torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    return torch.quantize_per_tensor(weight, 0.023, zero_point, torch.qint8)


def kind(name: str) -> type[Any]:
    """A class of torch.ao by the last words of its path, imported where it is needed: it is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch.ao.nn.intrinsic.quantized.dynamic
        import torch.ao.nn.quantized.dynamic
    found: Any = torch.ao.nn
    for word in name.split("."):
        found = getattr(found, word)
    return found  # type: ignore[no-any-return]


DYNAMIC = {"Linear": "quantized.dynamic.Linear", "LinearReLU": "intrinsic.quantized.dynamic.LinearReLU"}
STATIC = {"Linear": "quantized.Linear", "LinearReLU": "intrinsic.quantized.LinearReLU"}
PER_CHANNEL = pytest.mark.parametrize("per_channel", [True, False], ids=["per_channel", "per_tensor"])
BIAS = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])


def layer_of(name: str, per_channel: bool = True, bias: bool = True, **weight: int) -> Any:
    layer = kind(name)(K, N)
    layer.set_weight_bias(quantized_weight(per_channel, **weight), torch.randn(N) if bias else None)
    return layer.eval()


def inputs(shapes: Any = ((1, K), (7, K), (2, 3, K), (0, K))) -> list[Tensor]:
    """Some on one side of 0, some that are 0."""
    first, second, third, *rest = (torch.randn(shape) for shape in shapes)
    return [first, second.abs() + 0.5, third * 30, *rest, torch.zeros(2, K), -torch.rand(3, K)]


def assert_as_before(actual: Tensor, before: Tensor, by_definition: Tensor, engine: str, bias: Tensor | None) -> None:
    """What it has to give, which is what the stock layer gave.

    On AArch64 (torch 2.10) the engine onednn has wrong results for several rows of some layers with a scale for each
    channel, whose calls before had other scales or rows: there, the definition alone decides.
    """
    case = tuple(actual.shape)
    stock.assert_near(actual, by_definition, stock.SAME_INTEGERS, bias, case)
    if engine != "onednn" or platform.machine() != "aarch64":
        stock.assert_near(actual, before, stock.SAME_INTEGERS, bias, case)


def by_definition(layer: Any, x: Tensor) -> Tensor:
    """A stock dynamic layer's output by torch's own integers."""
    weight, bias = layer.weight(), layer.bias()
    if x.numel() == 0:
        return torch.empty(*x.shape[:-1], weight.shape[0])
    scale, zero_point = torch._choose_qparams_per_tensor(x, layer.version is not None and layer.version >= 4)
    steps = torch.quantize_per_tensor(x, scale, zero_point, torch.quint8).int_repr().double() - zero_point
    per_channel = weight.qscheme() == torch.per_channel_affine
    scales = weight.q_per_channel_scales() if per_channel else torch.tensor(weight.q_scale()).double()
    output = (steps @ weight.int_repr().double().t()) * (scale * scales)
    output = output if bias is None else output + bias
    return (output.relu() if "ReLU" in type(layer).__name__ else output).float()


# --- dynamic ---


@pytest.mark.one_cpu
@torch.no_grad()
@PER_CHANNEL
@BIAS
@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_layers_give_what_they_gave(name: str, per_channel: bool, bias: bool, engine: str) -> None:
    model = nn.Sequential(layer_of(DYNAMIC[name], per_channel, bias))
    weight = model[0].weight()
    before = [(x, model(x), by_definition(model[0], x)) for x in inputs()]
    (entry,) = report = pack_(model)
    layer = model[0]
    assert report.taken == report and type(layer) is PackedDynamicLinear
    assert (entry.name, entry.shape, entry.scheme) == ("0", (N, K), layer.scheme)
    assert entry.source == f"torch.ao.nn.{DYNAMIC[name]}"
    assert ("7 bits" in entry.note) == (engine != "qnnpack")
    assert torch.equal(layer.packed_weight.qdata, weight.int_repr())
    assert layer.packed_weight.get_layout().weight_granularity == ("per_channel" if per_channel else "per_tensor")
    for x, *expected in before:
        assert_as_before(layer(x), *expected, engine, layer.bias)


@pytest.mark.x86
@torch.no_grad()
def test_dynamic_layers_of_old_checkpoints_use_all_bits(engine: str) -> None:
    model = nn.Sequential(layer_of(DYNAMIC["Linear"]))
    model[0].version = 3
    before = [(x, model(x), by_definition(model[0], x)) for x in inputs()]
    (entry,) = pack_(model).taken
    assert entry.note == "" and "7 bits" not in entry.scheme
    for x, *expected in before:
        assert_as_before(model(x), *expected, engine, model[0].bias)


@pytest.mark.x86
@torch.no_grad()
def test_the_range_of_dynamic_layers_may_be_widened() -> None:
    model, x = nn.Sequential(layer_of(DYNAMIC["Linear"])), torch.randn(64, K)
    exact = nn.functional.linear(x, model[0].weight().dequantize(), model[0].bias())
    pack_(model)
    narrow = cases.sqnr(exact, model(x))
    model[0].reduce_range = False
    assert cases.sqnr(exact, model(x)) > narrow + (0 if torch.backends.quantized.engine == "qnnpack" else 3)
    assert "7 bits" not in model[0].scheme


@pytest.mark.x86
@pytest.mark.parametrize(
    ("name", "engine"), [("default", "x86"), ("default", "qnnpack"), ("per_channel", "qnnpack"), ("float16", "fbgemm")]
)
@torch.no_grad()
def test_models_of_quantize_dynamic(name: str, engine: str) -> None:
    """As people make them."""
    with running_on(engine):
        check_quantize_dynamic(name)


def check_quantize_dynamic(name: str) -> None:
    from torch.ao import quantization

    config = getattr(quantization, f"{name}_dynamic_qconfig")
    model = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(K, 40), nn.ReLU(), nn.Linear(40, N))}).eval()
    model.add_module("attention", nn.MultiheadAttention(32, 4))
    quantized = quantization.quantize_dynamic(model, {nn.Linear: config})
    x, encoder = torch.randn(7, K), quantized["encoder"]
    before, modules = encoder(x), list(encoder)
    report = pack_(quantized)
    if name == "float16":
        assert list(encoder) == modules and len(report.left) == 2
        assert all("float16" in entry.reason for entry in report)
    else:
        assert [entry.name for entry in report.taken] == ["encoder.0", "encoder.2"] and not report.left
    # The second layer's range is that of the first one's outputs, of which a last bit may differ.
    stock.assert_near(encoder(x), before, 1e-2)


@pytest.mark.x86
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_activations_without_a_range_are_refused(value: float) -> None:
    model, x = nn.Sequential(layer_of(DYNAMIC["Linear"])), torch.randn(2, K)
    pack_(model)
    x[1, 3] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        model(x)


@pytest.mark.x86
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int8])
def test_dynamic_layers_take_float32_as_before(dtype: torch.dtype) -> None:
    model = nn.Sequential(layer_of(DYNAMIC["Linear"]))
    pack_(model)
    with pytest.raises(ValueError, match=r"must be torch\.float32"):
        model(torch.ones(2, K, dtype=dtype))
    with pytest.raises(ValueError, match="97"):
        model(torch.ones(2, K + 1))


# --- static ---


@pytest.mark.one_cpu
@torch.no_grad()
@PER_CHANNEL
@BIAS
@pytest.mark.parametrize("name", STATIC)
def test_quantized_layers_give_what_they_gave(name: str, per_channel: bool, bias: bool, engine: str) -> None:
    model = nn.Sequential(layer_of(STATIC[name], per_channel, bias))
    model[0].scale, model[0].zero_point = 0.21, 101
    quantized = [
        torch.quantize_per_tensor(x, scale, zero_point, torch.quint8)
        for x in inputs(((1, K), (7, K), (2, 3, K)))
        for scale, zero_point in ((0.03, 120), (0.4, 0), (0.01, 255))
    ]
    before = [(x, model(x)) for x in quantized]
    (entry,) = report = pack_(model)
    layer = model[0]
    assert report.taken == report and type(layer) is PackedQuantizedLinear
    assert (entry.scheme, entry.source) == (layer.scheme, f"torch.ao.nn.{STATIC[name]}")
    spread = set()
    for x, expected in before:
        actual = layer(x)
        assert (actual.dtype, actual.shape, actual.qscheme()) == (expected.dtype, expected.shape, expected.qscheme())
        assert (actual.q_scale(), actual.q_zero_point()) == (expected.q_scale(), expected.q_zero_point())
        steps = actual.int_repr().int() - expected.int_repr().int()
        assert steps.abs().max() <= 1, x.shape
        assert steps.ne(0).double().mean() <= 0.01, "more than ties"
        spread.update(actual.int_repr().flatten().tolist())
    assert len(spread) > 50 and (min(spread) == 101) == (name == "LinearReLU")
    assert layer(torch.quantize_per_tensor(torch.empty(0, K), 0.1, 3, torch.quint8)).shape == (0, N)


@pytest.mark.x86
@torch.no_grad()
def test_a_converted_model_keeps_its_layers_between_its_stubs() -> None:
    from torch.ao import quantization

    model = nn.Sequential(quantization.QuantStub(), nn.Linear(K, 40), nn.ReLU(), nn.Linear(40, N)).eval()
    model.append(quantization.DeQuantStub())
    fused = quantization.fuse_modules(model, [["1", "2"]])
    fused.qconfig = quantization.default_qconfig
    prepared = quantization.prepare(fused)
    prepared(torch.randn(64, K))
    converted = quantization.convert(prepared)
    x = torch.randn(7, K)
    before = converted(x)
    report = pack_(converted)
    assert [entry.name for entry in report.taken] == ["1", "3"] and not report.left
    assert [type(converted[i]) for i in (1, 3)] == [PackedQuantizedLinear] * 2 and converted[1].relu
    assert (converted(x) - before).abs().max() <= 1.001 * converted[3].scale * 2
    assert cases.sqnr(before, converted(x)) > 30


@pytest.mark.x86
def test_what_is_not_quantized_is_refused() -> None:
    model = nn.Sequential(layer_of(STATIC["Linear"]))
    pack_(model)
    with pytest.raises(ValueError, match="must be quantized with one scale"):
        model(torch.ones(2, K))
    by_channel = torch.quantize_per_channel(torch.ones(2, K), torch.ones(2), torch.zeros(2), 0, torch.quint8)
    with pytest.raises(ValueError, match="must be quantized with one scale"):
        model(by_channel)
    with pytest.raises(ValueError, match=r"torch\.quint8 or torch\.qint8"):
        model(torch.quantize_per_tensor(torch.ones(2, K), 0.1, 0, torch.qint32))


@pytest.mark.x86
@torch.no_grad()
def test_signed_activations() -> None:
    """Which onednn alone takes."""
    with running_on("onednn"):
        model = nn.Sequential(layer_of(STATIC["Linear"]))
        model[0].scale, model[0].zero_point = 0.2, 3
        x = torch.quantize_per_tensor(torch.randn(7, K), 0.03, -5, torch.qint8)
        expected = model(x)
        pack_(model)
        assert model(x).dtype == expected.dtype == torch.qint8
        assert (model(x).int_repr().int() - expected.int_repr().int()).abs().max() <= 1


# --- what is left, and what both have in common ---

#: Modules that are left, with a part of the reason.
LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "zero points": (lambda: layer_of(DYNAMIC["Linear"], zero_point=3), "int8 weights with zero points"),
    "zero points by channel": (lambda: layer_of(STATIC["Linear"], zero_point=3), "int8 weights with zero points"),
    "one scale with zero point": (lambda: layer_of(STATIC["Linear"], False, zero_point=-1), "weights with zero points"),
    "leaky ReLU": (
        lambda: kind("intrinsic.quantized.LinearLeakyReLU")(K, N, 0.1),
        "LinearLeakyReLU is not one of",
    ),
    "LSTM": (lambda: kind("quantized.dynamic.LSTM")(8, 8), "LSTM is not one of"),
    "convolution": (lambda: kind("quantized.Conv2d")(4, 4, 3), "Conv2d is not one of"),
    "embedding": (lambda: kind("quantized.Embedding")(8, 32), "Embedding is not one of"),
    "subclass": (lambda: type("Own", (kind("quantized.Linear"),), {})(K, N), "Own is not one of"),
    "hooks": (lambda: hooked(layer_of(DYNAMIC["Linear"])), "hooks, which would go with it"),
}


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda *_: None)
    return layer


@pytest.mark.x86
@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_replaced_stays_as_it_was(name: str) -> None:
    make, reason = LEFT[name]
    with running_on("qnnpack"):  # which packs all of them
        left = make()
        model = nn.Sequential(left, layer_of(DYNAMIC["Linear"]))
    explained = {layer.name: layer for layer in ao_arm.explain(model)}
    report = pack_(model)
    assert model[0] is left and [entry.name for entry in report.taken] == ["1"]
    (entry,) = report.left
    assert reason in entry.reason and entry.scheme == ""
    if "0" in explained:
        assert explained["0"].reason == entry.reason
    assert explained["1"].scheme.endswith("dynamic.Linear: ao_arm.pack_(model) takes it over")
    after = {layer.name: layer for layer in ao_arm.explain(model)}["1"]
    assert (after.scheme, after.kernel) == (model[1].scheme, model[1].packed_weight.kernel)


@pytest.mark.x86
def test_a_layer_that_is_the_model_cannot_be_replaced() -> None:
    (entry,) = pack_(layer_of(DYNAMIC["Linear"])).left
    assert "it is the model itself: put it into a torch.nn.Sequential" in entry.reason
    assert "the model" in str(pack_(layer_of(DYNAMIC["Linear"])))


@pytest.mark.x86
@torch.no_grad()
def test_a_layer_in_two_places_stays_one() -> None:
    layer = layer_of(DYNAMIC["Linear"])
    model = nn.ModuleDict({"a": layer, "inner": nn.Sequential(nn.ReLU(), layer)})
    report = pack_(model)
    assert [entry.name for entry in report.taken] == ["a", "inner.1"]
    assert model["a"] is model["inner"][1] and isinstance(model["a"], PackedDynamicLinear)


@pytest.mark.x86
@torch.no_grad()
@pytest.mark.parametrize("name", [DYNAMIC["Linear"], STATIC["LinearReLU"]])
def test_replaced_layers_are_copied_saved_and_shown(name: str) -> None:
    model = nn.Sequential(layer_of(name))
    pack_(model)
    x = (
        torch.randn(3, K)
        if name == DYNAMIC["Linear"]
        else torch.quantize_per_tensor(torch.randn(3, K), 0.1, 3, torch.quint8)
    )
    expected = model(x)
    for other in (copy.deepcopy(model), cases.saved_and_loaded(model)):
        assert torch.equal(
            other(x).dequantize() if x.is_quantized else other(x), expected.dequantize() if x.is_quantized else expected
        )
    target = copy.deepcopy(model)
    target[0].bias.zero_()
    target.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(target[0].bias, model[0].bias)
    assert not model[0].training and not any(p.requires_grad for p in model.parameters())
    assert f"in_features={K}, out_features={N}, bias=True" in repr(model) and model[0].packed_weight.kernel in repr(
        model
    )
    assert isinstance(model[0], PackedEagerLinear) and packed_weight_of(model[0].weight) is not None


@pytest.mark.x86
def test_nothing_keeps_the_old_layer() -> None:
    model = nn.Sequential(layer_of(DYNAMIC["Linear"]), layer_of(STATIC["Linear"]))
    references = [weakref.ref(layer) for layer in model] + [weakref.ref(layer._packed_params) for layer in model]
    report = pack_(model)
    gc.collect()
    assert len(report.taken) == 2 and not any(reference() is not None for reference in references)


@pytest.mark.one_cpu
@torch.no_grad()
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40), st.booleans(), st.integers(1, 3))
def test_integers_of_activations_are_those_of_torch(values: list[float], reduce_range: bool, m: int) -> None:
    """Of an identity matrix with scales of 1 the outputs are the integers that an activation became."""
    k = len(values)
    layer = kind(DYNAMIC["Linear"])(k, k)
    eye = torch.quantize_per_tensor(torch.eye(k), 1.0, 0, torch.qint8)
    layer.set_weight_bias(eye, None)
    model, x = nn.Sequential(layer), torch.tensor(values, dtype=torch.float32).expand(m, k)
    pack_(model)
    model[0].reduce_range = reduce_range
    scale, zero_point = torch._choose_qparams_per_tensor(x, reduce_range)
    expected = torch.quantize_per_tensor(x, scale, zero_point, torch.quint8).dequantize()
    assert torch.equal(model(x), expected)
