"""`pack_` takes over what torchao quantized: the same numbers on our kernels, and a report of it."""

import copy
import gc
import weakref
from dataclasses import replace
from itertools import product
from typing import Any

import cases
import pytest
import stock
import torch
from stock import WAYS, Way, layer_by, output, rows
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerGroup,
    quantize_,
)
from torchao.quantization.quant_primitives import MappingType

import ao_arm
from ao_arm import pack_, packed_weight_of, reference

EACH_WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
INT8 = WAYS["Int8Tensor dynamic symmetric, per_token x per_channel"]
INT4 = WAYS["Intx 4 bits asymmetric 32 None"]
INT8_CONFIG = Int8DynamicActivationInt8WeightConfig(version=2)
EACH_KIND = pytest.mark.parametrize("way", [INT8, INT4], ids=["int8", "int4"])


def quantized_by_us() -> nn.Module:
    layer = nn.Linear(32, 8)
    quantize_(layer, ao_arm.acl_int8_dynamic())
    return layer


def numbers_of(weight: Tensor) -> Tensor:
    """The integers of a stock weight."""
    weight = getattr(weight, "original_weight_tensor", weight)
    return (weight.qdata if hasattr(weight, "qdata") else weight.tensor_impl.get_plain()[0]).clone()


# --- the numbers ---


@pytest.mark.one_cpu
@torch.no_grad()
@EACH_WAY
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_float32_layers_give_what_they_gave(way: Way, bias: bool) -> None:
    model = nn.Sequential(layer_by(way, bias=bias))
    layer, integers = model[0], numbers_of(model[0].weight)
    before = [(x, output(layer, x)) for x in rows(layer)]
    (entry,) = report = pack_(model)
    assert report.taken == report and report.left == ()
    assert (entry.name, entry.shape, entry.scheme) == ("0", tuple(layer.weight.shape), way.scheme)
    assert way.note in entry.note and bool(way.note) == bool(entry.note)
    packed = cases.packed_in(layer)
    assert packed.scheme == way.scheme and torch.equal(packed.plain().qdata, integers)
    for x, expected in before:
        stock.assert_near(layer(x), expected, way.tolerance, layer.bias, x.shape)
        cases.assert_by_reference(layer(x), x, packed, layer.bias)
    assert layer(torch.empty(0, layer.in_features)).shape == (0, layer.out_features)
    assert type(layer.weight) is type(quantized_by_us().weight)
    assert "ACLPackedTensor" in repr(model)


@pytest.mark.x86
@torch.no_grad()
@EACH_WAY
@pytest.mark.parametrize("dtype", stock.NARROW, ids=cases.name_of)
def test_narrow_layers_are_no_less_accurate_than_before(way: Way, dtype: torch.dtype) -> None:
    """By the distance to the product of the same weights in float64; a note says where activations differ.

    Where they do, it is by chance which of two integers beside a value is the better one: that evens out to some
    thousandths.
    """
    model = nn.Sequential(layer_by(way, dtype))
    layer = model[0]
    inputs = (torch.randn(512, layer.in_features) * 0.8 + 0.5).to(dtype)
    before = layer(inputs)
    (entry,) = pack_(model).taken
    assert ("quantized in float32, not in" in entry.note) == (dtype not in way.exact_in)
    weight = cases.packed_in(layer).plain().dequantized().double()
    exact = inputs.double() @ weight.t() + layer.bias.double()
    errors = [float((result.double() - exact).square().mean().sqrt()) for result in (layer(inputs), before)]
    assert errors[0] <= errors[1] * (1.001 if dtype in way.exact_in else 1.01), errors
    assert layer(inputs).dtype == dtype


@pytest.mark.x86
@pytest.mark.skipif(not stock.HAS_FLOAT32_SCALES, reason="this torchao's scales are of the activations' dtype")
@pytest.mark.parametrize(
    ("mapping", "dtype"), list(product((stock.SYMMETRIC, stock.ASYMMETRIC), cases.FLOATS)), ids=str
)
def test_integers_of_activations_are_those_of_torchao(mapping: MappingType, dtype: torch.dtype) -> None:
    """For what has no note; of other layers the note says that they are not."""
    from torchao.quantization import Int8Tensor, PerRow

    x = torch.cat([scale * torch.randn(64, 96) + shift for scale, shift in product((1e-3, 1.0, 50.0), (0.0, 3.0))])
    x = x.to(dtype)
    theirs = Int8Tensor.from_hp(x, PerRow(), mapping)
    values, scale, zero_point = reference.quantize_activations(x, mapping == MappingType.SYMMETRIC)
    same = torch.equal(values, theirs.qdata) and torch.equal(scale, theirs.scale)
    assert same == (mapping == MappingType.SYMMETRIC or dtype == torch.float32)
    if same:
        assert torch.equal(zero_point, theirs.zero_point.to(torch.int32))


@pytest.mark.one_cpu
@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in WAYS if name.startswith("Int8Tensor")])
def test_weights_of_minus_128(name: str) -> None:
    """torchao writes them where a row's largest magnitude is negative."""
    model = nn.Sequential(layer_by(WAYS[name]))
    layer = model[0]
    layer.weight.qdata[::4] = -128
    before = [(x, output(layer, x)) for x in rows(layer)]
    assert pack_(model).left == ()
    assert cases.packed_in(layer).qdata[::4].eq(-128).all()
    for x, expected in before:
        stock.assert_near(layer(x), expected, WAYS[name].tolerance, layer.bias, x.shape)


@pytest.mark.x86
@torch.no_grad()
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_smoothquant_of_torchao(static: bool) -> None:
    """Activations are multiplied first, in the same order."""
    way = WAYS["Int8Tensor static symmetric"] if static else INT8
    model = nn.Sequential(layer_by(way))
    layer = model[0]
    layer.weight.act_pre_scale = torch.rand(layer.in_features) + 0.5
    before = [(x, output(layer, x)) for x in rows(layer)]
    assert pack_(model).left == ()
    for x, expected in before:
        stock.assert_near(layer(x), expected, way.tolerance, layer.bias)


@pytest.mark.x86
@torch.no_grad()
@pytest.mark.skipif(not stock.HAS_FLOAT32_SCALES, reason="this torchao's SmoothQuant is another")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name_of)
def test_smoothquant_by_its_configuration(dtype: torch.dtype) -> None:
    smoothquant = pytest.importorskip("torchao.prototype.smoothquant")
    model, outliers = nn.Sequential(stock.float_layer(33, 96, dtype)), torch.ones(96)
    outliers[::16] = 60.0
    x = (torch.randn(64, 96) * outliers).to(dtype)
    for step in ("prepare", "convert"):
        quantize_(model, smoothquant.SmoothQuantConfig(base_config=INT8_CONFIG, step=step))
        if step == "prepare":
            model(x)
    before = model(x)
    assert pack_(model).left == ()
    assert cases.packed_in(model[0]).act_pre_scale is not None
    stock.assert_near(model(x), before, stock.SAME_INTEGERS if dtype == torch.float32 else 0.02, model[0].bias)


# --- where weights are ---


def square_by(way: Way) -> nn.Linear:
    return layer_by(way, n=stock.K) if stock.is_grouped(way) else layer_by_config(INT8_CONFIG, stock.K)


@pytest.mark.x86
@torch.no_grad()
@EACH_KIND
def test_a_shared_weight_is_packed_once(way: Way) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.between, self.last = square_by(way), nn.ReLU(), square_by(way)
            self.last.weight = self.first.weight
            self.again = self.first

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.again(self.last(self.between(self.first(x))))
            return result

    model = Twice()
    x = torch.randn(5, stock.K)
    before = model(x)
    report = pack_(model)
    assert [entry.name for entry in report.taken] == ["first", "last"] and report.left == ()
    assert model.first.weight is model.last.weight and packed_weight_of(model.first.weight) is not None
    stock.assert_near(model(x), before, 1e-3)
    assert len({id(parameter) for parameter in model.parameters()}) == 3


@pytest.mark.x86
@torch.no_grad()
@EACH_KIND
def test_attention_runs_on_its_packed_out_proj(way: Way) -> None:
    """Which it does not do on stock weights."""
    attention = nn.MultiheadAttention(stock.K, 4, batch_first=True).eval().requires_grad_(False)
    attention.out_proj.weight = square_by(way).weight
    x = torch.randn(2, 3, stock.K)
    assert [entry.name for entry in pack_(attention).taken] == ["out_proj"]
    actual, _ = attention(x, x, x)
    attention.out_proj.weight = nn.Parameter(attention.out_proj.weight.dequantize(), requires_grad=False)
    assert cases.sqnr(attention(x, x, x)[0], actual) > 30


class Tied(nn.Module):
    """A language model's embedding and head of one weight, and a layer between."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(stock.N, stock.K), layer_by(INT4, n=stock.K)
        self.head = layer_by(INT4, bias=False)
        self.embed.weight = self.head.weight

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.head(self.layer(self.embed(tokens)))
        return result


@pytest.mark.x86
@torch.no_grad()
def test_a_head_tied_to_an_embedding_is_left() -> None:
    model, tokens = Tied().eval(), torch.randint(0, stock.N, (2, 5))
    weight, before = model.head.weight, model(tokens)
    report = pack_(model)
    assert [entry.name for entry in report.taken] == ["layer"]
    assert [entry.name for entry in report.left] == ["embed", "head"]
    assert all("shared with 'embed', the weight of Embedding" in entry.reason for entry in report.left)
    assert model.head.weight is weight is model.embed.weight
    stock.assert_near(model(tokens), before, 1e-3)


def in_projection() -> tuple[nn.Module, str]:
    attention = nn.MultiheadAttention(32, 4).requires_grad_(False)
    attention.in_proj_weight = layer_by_config(INT8_CONFIG, 96, 32).weight
    return attention, "in_proj_weight of MultiheadAttention"


def layer_by_config(config: Any, n: int = stock.N, k: int = stock.K) -> nn.Linear:
    layer = stock.float_layer(n, k)
    quantize_(layer, config)
    return layer


def changed(way: Way, **attributes: Any) -> nn.Linear:
    """A layer with some attributes of its stock weight changed."""
    layer = layer_by(way)
    for name, value in attributes.items():
        setattr(layer.weight, name, value)
    return layer


def with_activations(**changes: Any) -> nn.Linear:
    layer = layer_by(INT8)
    return changed(INT8, act_quant_kwargs=replace(layer.weight.act_quant_kwargs, **changes))


def in_a_parametrization() -> nn.Module:
    class Same(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight

    layer = layer_by(INT8)
    weight, layer.weight = layer.weight, nn.Parameter(torch.zeros(layer.weight.shape), requires_grad=False)
    nn.utils.parametrize.register_parametrization(layer, "weight", Same())
    layer.parametrizations.weight.original = weight
    return layer


#: What is left as it was, with a part of the reason; None where this torchao has no such thing.
LEFT: dict[str, Any] = {
    "int8 weights only": lambda: (layer_by_config(Int8WeightOnlyConfig(version=2)), "its activations are floats"),
    "4-bit weights only": lambda: (
        layer_by_config(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32), version=2)),
        "its activations are floats",
    ),
    "int8 in groups": lambda: (
        layer_by(replace(INT4, quantize=stock._intx(8, 32, stock.SYMMETRIC))),
        "groups of 32 have 8 bits: ao_arm serves groups of 4",
    ),
    "small groups": lambda: (layer_by(replace(INT4, quantize=stock._intx(4, 16, stock.SYMMETRIC))), "group size 16"),
    "zero points of int8": lambda: (
        layer_by(replace(INT4, quantize=stock._intx(8, None, stock.ASYMMETRIC))),
        "int8 weights with zero points",
    ),
    "unknown activations of Intx": lambda: (changed(INT4, activation_quantization="int2"), "does not know.*int2"),
    "packed for another kernel": lambda: (holding(opaque()), "packed for another library's kernel"),
    "plain 4 bits": lambda: (holding(plain_int4()), "its activations are floats"),
    "blocks of columns": lambda: (
        changed(INT8, block_size=[stock.N, 1], scale=torch.ones(1, stock.N)),
        r"blocks of \(33, 1\)",
    ),
    "static by row": lambda: (
        changed(WAYS["Int8Tensor static symmetric"], act_quant_scale=torch.ones(4, 1)),
        "a scale for each row",
    ),
    "activations by column": lambda: (
        with_activations(granularity=type(stock.PerRow())(dim=0)) if stock.HAS_PER_ROW_DIM else None,
        "per token or per tensor",
    ),
    "reduced range": lambda: (
        with_activations(reduce_range=True) if stock.HAS_FLOAT32_SCALES else None,
        "half of int8's range",
    ),
    "symmetric with a zero point": lambda: (
        changed(WAYS["Int8Tensor static asymmetric"], act_quant_kwargs=layer_by(INT8).weight.act_quant_kwargs)
        if stock.HAS_ASYMMETRIC_INT8
        else None,
        "symmetric, but have the zero point -9",
    ),
    "asymmetric before it was": lambda: (
        None if stock.HAS_ASYMMETRIC_INT8 else with_activations(mapping_type=stock.ASYMMETRIC),
        "this torchao leaves out the zero points",
    ),
    "pre-scale in float32": lambda: (
        nn.Sequential(changed(INT8, act_pre_scale=torch.ones(stock.ODD_K, dtype=torch.float64)))[0],
        "act_pre_scale is torch.float64",
    ),
    "NaN among scales": lambda: (changed(INT8, scale=torch.full((stock.N, 1), torch.nan)), "positive, finite"),
    "experts": lambda: (experts(), "it is the experts of Module, and ao_arm packs the weights of nn.Linear layers"),
    "embedding": lambda: (embedding(), "weight of Embedding, which looks up rows"),
    "in_proj_weight": in_projection,
    "parametrized": lambda: (in_a_parametrization(), "original of ParametrizationList"),
    "activations of another's": lambda: affine(lambda x: x, "does not know what <lambda>"),
    "activations left out while decoding": lambda: affine(
        "_int8_symm_per_token_reduced_range_quant_noop_decode", "does not know what _int8_symm"
    ),
    "symmetric activations with 4 bits": lambda: affine("_int8_symm_per_token_quant", "symmetric: those", 4, 32),
    "affine weights only": lambda: (
        without_activations() if cases.HAS_AQT else None,
        "its activations are floats",
    ),
}


def holding(weight: Tensor) -> nn.Linear:
    layer = stock.float_layer(stock.N, stock.K)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def opaque() -> Tensor:
    """As torchao's own kernels pack it, where they are built."""
    from torchao.quantization.quantize_.workflows import IntxOpaqueTensor, IntxPackingFormat

    shape = torch.Size((stock.N, stock.K))
    packed = torch.zeros(shape.numel() // 2, dtype=torch.uint8)
    layout = IntxPackingFormat.OPAQUE_TORCHAO_AUTO
    made: Tensor = IntxOpaqueTensor(packed, 4, [1, 32], shape, torch.float32, False, False, layout)
    return made


def plain_int4() -> Tensor:
    """As torchao quantizes it on other devices."""
    from torchao.quantization import Int4Tensor

    shape = torch.Size((stock.N, stock.K))
    scale = torch.ones(stock.K // 32, stock.N, dtype=torch.bfloat16)
    qdata = torch.zeros(stock.N, stock.K // 2, dtype=torch.int8)
    made: Tensor = Int4Tensor(qdata, scale, torch.zeros_like(scale), [1, 32], shape)
    return made


def experts() -> nn.Module:
    """Several weights in one, as mixtures of experts have them."""
    from torchao.quantization import Int8Tensor

    made, weight = nn.Module(), layer_by(INT8).weight
    stacked = torch.stack([weight.qdata, weight.qdata]), torch.stack([weight.scale, weight.scale])
    made.experts = nn.Parameter(
        Int8Tensor(*stacked, [1, 1, stock.ODD_K], torch.float32, act_quant_kwargs=weight.act_quant_kwargs),
        requires_grad=False,
    )
    return made


def embedding() -> nn.Module:
    made = nn.Embedding(stock.N, stock.K)
    made.weight = layer_by(INT4).weight
    return made


def affine(function: Any, reason: str, *bits: int) -> tuple[nn.Module | None, str]:
    if not cases.HAS_AQT:
        return None, ""
    return layer_by(replace(INT4, quantize=stock.affine_quantized(function, *bits))), reason


def without_activations() -> nn.Module:
    layer = layer_by(replace(INT4, quantize=stock.affine_quantized("_int8_asymm_per_token_quant")))
    layer.weight = nn.Parameter(layer.weight.original_weight_tensor, requires_grad=False)
    return layer


@pytest.mark.x86
@torch.no_grad()
@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_taken_stays_as_it_was(name: str) -> None:
    made, reason = LEFT[name]()
    if made is None:
        pytest.skip("this torchao has no such weights")
    model = nn.ModuleDict({"kept": made, "other": layer_by(INT8)})
    before = {key: (value, dict(vars(value))) for key, value in parameters_of(model)}
    explained = {layer.name: layer for layer in ao_arm.explain(model)}
    report = pack_(model)
    assert [entry.name for entry in report.taken] == ["other"]
    (entry,) = report.left
    with pytest.raises(NotImplementedError, match=reason):
        raise NotImplementedError(entry.reason)
    assert entry.scheme == "" and "Tensor" in entry.source
    for key, value in parameters_of(model):
        if not key.startswith("other"):
            assert value is before[key][0] and same_attributes(vars(value), before[key][1]), key
    if isinstance(made, nn.Linear) and name != "parametrized":
        assert (explained["kept"].scheme, explained["kept"].reason) == (
            f"quantized by {entry.source}",
            entry.reason,
        )
    assert explained["other"].scheme.endswith("Int8Tensor: ao_arm.pack_(model) takes it over")


def parameters_of(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(model.named_parameters(remove_duplicate=False))


def same_attributes(actual: dict[str, Any], expected: dict[str, Any]) -> bool:
    return actual.keys() == expected.keys() and all(actual[name] is expected[name] for name in expected)


# --- the report ---


@pytest.mark.x86
def test_the_report_prints_a_table_with_reasons_and_notes() -> None:
    weight_only = layer_by_config(Int8WeightOnlyConfig(version=2))
    model = nn.ModuleDict(
        {
            "norm": nn.LayerNorm(4),
            "unquantized": nn.Linear(4, 4),
            "int8": layer_by(INT8),
            **{f"layer{i}": copy.deepcopy(weight_only) for i in range(5)},
            "int4": layer_by(INT4, torch.bfloat16),
        }
    )
    explanation = ao_arm.explain(model)
    assert "\nlayer0, layer1, layer2 and 2 more: its activations" in str(explanation)
    assert sum("pack_(model) takes it over" in layer.scheme for layer in explanation) == 2
    report = pack_(model)
    header, _, first, *middle, last, reason, note = str(report).splitlines()
    assert header.split("  ")[0] == "layer" and header.endswith("packed as")
    assert first.split("  ")[0] == "int8" and first.endswith(INT8.scheme) and "33 x 97" in first
    assert last.startswith("int4 ") and "torchao's IntxUnpackedToInt8Tensor" in last
    assert len(middle) == 5 and all(line.endswith("left as it was") for line in middle)
    assert reason.startswith("reason for layer0, layer1, layer2 and 2 more: its activations are floats")
    assert note.startswith("note for int4: activations are quantized in float32")
    assert [len(entries) for entries in (report, report.taken, report.left)] == [7, 2, 5]


@pytest.mark.x86
def test_a_model_without_stock_weights_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), quantized_by_us())
    before = parameters_of(model)
    report = pack_(model)
    assert report == report.taken == report.left == ()
    assert str(report) == "no weight of this model was quantized by torchao or torch.ao"
    assert all(old is new for (_, old), (_, new) in zip(before, parameters_of(model), strict=True))
    with pytest.raises(ValueError, match=r"model must be a torch.nn.Module, not Linear|not Tensor"):
        pack_(torch.ones(1))  # type: ignore[arg-type]


@pytest.mark.x86
def test_the_model_may_be_the_layer() -> None:
    layer = layer_by(INT8)
    assert [entry.name for entry in pack_(layer).taken] == [""]
    assert packed_weight_of(layer.weight) is not None


@pytest.mark.x86
def test_a_module_that_contains_itself_is_walked_once() -> None:
    model = nn.Sequential(layer_by(INT8))
    model[0].add_module("outer", model)
    assert [entry.name for entry in pack_(model).taken] == ["0"]


@pytest.mark.x86
def test_packing_twice_finds_nothing_more() -> None:
    model = nn.Sequential(layer_by(INT8))
    pack_(model)
    weight = model[0].weight
    assert pack_(model) == () and model[0].weight is weight
    assert "takes it over" not in str(ao_arm.explain(model))


@pytest.mark.x86
def test_a_layer_on_the_meta_device_is_left() -> None:
    model = nn.Sequential(layer_by(INT8).to("meta"))
    (entry,) = pack_(model).left
    assert "on the device meta" in entry.reason


@pytest.mark.x86
def test_layers_that_no_kernel_serves_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AO_ARM_KERNEL", "unknown")
    model = nn.Sequential(layer_by(INT8))
    weight = model[0].weight
    (entry,) = pack_(model).left
    assert "unknown" in entry.reason and model[0].weight is weight


# --- memory and copies ---


@pytest.mark.x86
@torch.no_grad()
@EACH_WAY
def test_nothing_keeps_the_old_integers(way: Way) -> None:
    model = nn.Sequential(layer_by(way))
    weight: Any = model[0].weight
    held = getattr(weight, "original_weight_tensor", weight)
    tensors = [held.qdata, held.scale] if hasattr(held, "qdata") else [*held.tensor_impl.get_plain()[:2]]
    memory = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]
    references = [weakref.ref(thing) for thing in (*tensors, weight)]
    del weight, held, tensors
    report = pack_(model)
    if not all(part.expired() for part in memory):
        gc.collect()
    assert report.taken and all(part.expired() for part in memory)
    assert not any(reference() is not None for reference in references)


@pytest.mark.x86
@torch.no_grad()
@EACH_KIND
def test_packed_models_are_copied_saved_and_compiled(way: Way) -> None:
    model = nn.Sequential(layer_by(way))
    pack_(model)
    x = torch.randn(5, model[0].in_features)
    for other in (copy.deepcopy(model), cases.saved_and_loaded(model)):
        assert cases.same_bits(other(x), model(x))
