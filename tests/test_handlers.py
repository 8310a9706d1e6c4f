"""What `quantize_` does with a model's layers: quantizes them, or leaves them as they were."""

import gc
import weakref

import cases
import pytest
import torch
from options import CONFIGS, EACH_CONFIG, OPTIONS
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.quantization import MappingType, quantize_

import ao_arm
from ao_arm import ACLPackedLayout, ACLPackedTensor, acl_int4_grouped, acl_int8_dynamic, acl_int8_static

pytestmark = pytest.mark.one_cpu


class Model(nn.Module):
    """Three linear layers, one without a bias, and something that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 96)
        self.norm = nn.LayerNorm(96)
        self.rest = nn.Sequential(nn.Linear(96, 32, bias=False), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.norm(self.first(x)))

    def layers(self) -> list[nn.Linear]:
        return [self.first, self.rest[0], self.rest[2]]


def quantized_model(config: AOBaseConfig | None = None, dtype: torch.dtype = torch.float32) -> Model:
    model = Model().to(dtype).eval()
    quantize_(model, acl_int8_dynamic() if config is None else config)
    return model


def assert_by_reference(actual: Tensor, layer: nn.Linear, x: Tensor) -> None:
    cases.assert_by_reference(actual, x, cases.packed_in(layer), layer.bias)


# --- layers that are quantized ---


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option(option: str) -> None:
    config, layout = OPTIONS[option]
    model, x = quantized_model(config), torch.randn(5, 64)
    assert cases.packed_in(model.first).get_layout() == layout
    for layer in model.layers():
        expected = config.layout(layer.in_features) if layout.is_grouped else layout
        assert cases.packed_in(layer).get_layout() == expected
        inner = torch.randn(3, layer.in_features)
        assert_by_reference(layer(inner), layer, inner)
    assert model(x).shape == (5, 10)


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=cases.name_of)
@EACH_CONFIG
def test_models_of_every_dtype(config: AOBaseConfig, dtype: torch.dtype) -> None:
    model = quantized_model(config, dtype)
    for layer in model.layers():
        assert (layer.weight.dtype, cases.packed_in(layer).dtype) == (dtype, dtype)
        x = torch.randn(2, 3, layer.in_features, dtype=dtype)
        assert_by_reference(layer(x), layer, x)
    assert model(torch.randn(5, 64, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=cases.name_of)
def test_one_shot_scales_are_what_was_given(default: torch.dtype) -> None:
    """As numbers or as tensors, also while torch's default dtype is another one, as loaders of models make it."""
    for scale, zero_point in ((0.1, 7), (torch.tensor(0.1), torch.tensor([7], dtype=torch.uint8))):
        config = acl_int8_static(None, scale, zero_point, MappingType.ASYMMETRIC, torch.uint8)
        torch.set_default_dtype(default)
        try:
            model = quantized_model(config, torch.float32)
        finally:
            torch.set_default_dtype(torch.float32)
        for layer in model.layers():
            packed = cases.packed_in(layer)
            assert torch.equal(packed.act_scale, torch.tensor([0.1]))
            assert torch.equal(packed.act_zero_point, torch.tensor([7], dtype=torch.uint8))
        assert model(torch.randn(5, 64)).dtype == torch.float32


def test_explain_shows_the_scheme() -> None:
    for config, text in (
        (CONFIGS["dynamic"], "int8 dynamic (asymmetric, per_token x per_channel)"),
        (CONFIGS["static"], "int8 static (asymmetric uint8, per_tensor x per_channel)"),
        (
            acl_int4_grouped(),
            "int4 grouped (asymmetric, per_token x symmetric groups of 32, bfloat16 scales)",
        ),
    ):
        explanation = ao_arm.explain(quantized_model(config))
        assert [layer.scheme for layer in explanation] == [text] * 3
        assert str(explanation).count(text) == 3


def test_the_weight_is_of_the_class_that_this_torchao_has() -> None:
    layer = quantized_model().first
    assert isinstance(layer.weight, nn.Parameter)
    assert not layer.weight.requires_grad
    assert layer.weight.shape == (96, 64)
    assert ao_arm.packed_weight_of(nn.Linear(7, 5).weight) is None
    if not cases.HAS_AQT:
        assert isinstance(layer.weight, ACLPackedTensor)
        assert ao_arm.packed_weight_of(layer.weight) is layer.weight
        return
    from torchao.dtypes.affine_quantized_tensor import AffineQuantizedTensor

    assert isinstance(layer.weight, AffineQuantizedTensor)
    assert type(layer.weight.tensor_impl) is ACLPackedTensor
    assert ao_arm.packed_weight_of(layer.weight) is layer.weight.tensor_impl
    assert type(layer.weight.tensor_impl.get_layout()) is ACLPackedLayout
    assert type(layer.weight._layout) is ACLPackedLayout


def test_weights_dequantize_to_what_was_quantized() -> None:
    model = Model()
    original = model.first.weight.detach().clone()
    quantize_(model, acl_int8_dynamic())
    packed = cases.packed_in(model.first)
    qdata, scale, _ = packed.get_plain()
    assert torch.equal(model.first.weight.dequantize(), qdata * scale[:, None])
    steps = (model.first.weight.dequantize() - original).abs() / scale[:, None]
    assert float(steps.max()) <= 0.5 + 1e-4


def test_only_linear_layers_change_and_filters_are_heeded() -> None:
    model = Model()
    norm, bias = model.norm.weight, model.first.bias
    quantize_(model, acl_int8_dynamic(), filter_fn=lambda module, name: name == "rest.2")
    assert [layer.scheme.startswith("int8") for layer in ao_arm.explain(model)] == [False, False, True]
    quantize_(model, acl_int8_dynamic())
    assert all(layer.scheme.startswith("int8") for layer in ao_arm.explain(model))
    assert model.norm.weight is norm
    assert model.first.bias is bias


def test_a_layer_by_itself_can_be_quantized() -> None:
    layer = nn.Sequential(nn.Linear(7, 5))
    quantize_(layer, acl_int8_dynamic())
    assert layer(torch.randn(2, 7)).shape == (2, 5)


def test_subclasses_of_linear_are_quantized() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(Doubled(7, 5))
    quantize_(model, acl_int8_dynamic())
    x = torch.randn(2, 7)
    assert_by_reference(model(x) / 2, model[0], x)


@EACH_CONFIG
def test_autocast(config: AOBaseConfig) -> None:
    model, x = quantized_model(config), torch.randn(5, 64)
    with torch.autocast("cpu", torch.bfloat16):
        actual = model.first(x)
    assert_by_reference(actual, model.first, x.bfloat16())


# --- what remains of the model ---


@EACH_CONFIG
def test_the_model_prints_what_its_weights_are(config: AOBaseConfig) -> None:
    text = repr(quantized_model(config))
    scheme = cases.packed_in(quantized_model(config).first).scheme.split(" (")[0]
    assert f"in_features=64, out_features=96, bias=True, weight=ACLPackedTensor(shape=(96, 64), {scheme}" in text
    assert text.count("ACLPackedTensor(") == 3


def tensor_memory() -> dict[int, int]:
    """Bytes of each storage that a tensor of this process is in, by its address."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, nn.Parameter) and thing.device.type == "cpu":
            try:
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
            except (RuntimeError, NotImplementedError):  # a wrapper, which has no memory
                continue
    return storages


@pytest.mark.slow
@pytest.mark.every_torchao
@pytest.mark.x86
@pytest.mark.parametrize(
    ("config", "bytes_per_weight"), [(acl_int8_dynamic(), 1.05), (acl_int4_grouped(), 0.57)], ids=["int8", "int4"]
)
def test_no_other_copy_of_the_weight_stays_alive(config: AOBaseConfig, bytes_per_weight: float) -> None:
    n, k = 512, 1024
    model = nn.Sequential(nn.Linear(k, n))
    old = weakref.ref(model[0].weight)
    before = tensor_memory()
    assert max(before.values()) >= 4 * n * k
    quantize_(model, config)
    after = tensor_memory()
    assert old() is None, "the float weight is still alive"
    added = {address: size for address, size in after.items() if before.get(address) != size}
    assert sum(added.values()) <= bytes_per_weight * n * k, f"new tensors of {sorted(added.values())} bytes"
    assert sum(after.values()) <= sum(before.values()) - 4 * n * k + bytes_per_weight * n * k
    model(torch.randn(3, k))
    assert sum(tensor_memory().values()) <= sum(after.values()), "a call left tensors behind"


@EACH_CONFIG
def test_shared_weights_stay_usable(config: AOBaseConfig) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    quantize_(model, config)
    x = torch.randn(3, 16)
    for layer in model:
        assert_by_reference(layer(x), layer, x)
