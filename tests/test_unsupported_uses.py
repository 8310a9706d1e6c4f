"""What is asked of a packed weight or a layer and is not supported names the weight, its scheme and what to do."""

import re
from collections.abc import Callable

import cases
import pytest
import torch
from models import quantized_layers_of
from torch import Tensor, nn
from torch.nn.utils import prune
from torchao.core.config import AOBaseConfig
from torchao.quantization import PerRow, quantize_

import ao_arm
from ao_arm import packed_weight_of

N, K = 48, 64
SCHEMES = {
    "int8": (ao_arm.acl_int8_dynamic(), "int8 dynamic"),
    "4 bits": (ao_arm.acl_int4_grouped(), "int4 grouped"),
}
EACH_SCHEME = pytest.mark.parametrize(("config", "scheme"), SCHEMES.values(), ids=SCHEMES)
X = torch.ones(3, K)

#: By what users write, the op of torch's that the message names.
USES: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "einsum": (lambda w: torch.einsum("bk,nk->bn", X, w), "aten."),
    "w[5]": (lambda w: w[5], "aten.select.int"),
    "cat": (lambda w: torch.cat([w, w]), "aten.cat.default"),
    "sum": (lambda w: w.sum(), "aten.sum.default"),
    "mean": (lambda w: w.mean(0), "aten.mean.dim"),
    "expand": (lambda w: w.expand(N, K), "aten.expand.default"),
    "view": (lambda w: w.view(-1), "aten.view.default"),
    "reshape": (lambda w: w.reshape(2, -1, K), "aten.view.default"),
    "w * 2": (lambda w: w * 2, "aten.mul.Tensor"),
    "x @ w": (lambda w: torch.ones(2, N) @ w, "another product"),
    "where": (lambda w: torch.where(torch.ones(N, K) > 0, torch.ones(N, K), w), "aten.where.self"),
    "init": (nn.init.zeros_, "aten.zero_.default"),
    "conv1d": (lambda w: nn.functional.conv1d(torch.ones(1, K, 3), w[:, :, None]), "aten.unsqueeze.default"),
}


@pytest.mark.one_cpu
@EACH_SCHEME
@pytest.mark.parametrize(("use", "op"), USES.values(), ids=USES)
def test_another_use_of_a_weight_names_the_op_the_weight_and_what_to_do(
    use: Callable[[Tensor], object], op: str, config: AOBaseConfig, scheme: str
) -> None:
    weight = quantized_layers_of(K, N, config=config)[0].weight
    before = packed_weight_of(weight).dequantize()
    with pytest.raises(NotImplementedError) as caught:
        use(weight)
    words = (op, f"shape=({N}, {K})", scheme, "quantize_", "filter_fn", "weight.dequantize()")
    assert [word for word in words if word not in str(caught.value)] == []
    assert torch.equal(packed_weight_of(weight).dequantize(), before)


@pytest.mark.x86
def test_a_packed_input_is_named() -> None:
    weight = quantized_layers_of(K, N)[0].weight
    with pytest.raises(NotImplementedError, match=rf"F.linear takes .*\({N}, {K}\), int8 dynamic.* as its weight only"):
        nn.functional.linear(weight, torch.ones(5, K))


@pytest.mark.x86
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", [nn.utils.weight_norm, lambda x: prune.l1_unstructured(x, "weight", 0.5)])
def test_layers_are_not_reparametrized_after_quantizing(change: Callable[[nn.Module], object]) -> None:
    with pytest.raises(NotImplementedError, match=r"Resize, prune and reparametrize before quantize_"):
        change(quantized_layers_of(K, N)[0])


COMPUTED = {
    "pruning": (
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: prune.remove(layer, "weight"),
    ),
    "weight norm": (nn.utils.weight_norm, nn.utils.remove_weight_norm),
    "parametrization": (
        nn.utils.parametrizations.weight_norm,
        lambda layer: nn.utils.parametrize.remove_parametrizations(layer, "weight"),
    ),
    "spectral norm": (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
}


@pytest.mark.x86
@torch.no_grad()
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("config", [ao_arm.acl_int8_dynamic(), ao_arm.acl_int8_static("prepare")], ids=["", "prepare"])
@pytest.mark.parametrize(("compute", "keep"), COMPUTED.values(), ids=COMPUTED)
def test_a_weight_that_is_computed_is_refused_until_it_is_kept(
    compute: Callable[[nn.Module], object], keep: Callable[[nn.Module], object], config: AOBaseConfig
) -> None:
    model = nn.Sequential(nn.Linear(K, N)).eval()
    compute(model[0])
    before = model(X)
    with pytest.raises(NotImplementedError, match=r"'0.weight' of .*Linear\(in_features=64.*computed at each call"):
        quantize_(model, config)
    assert torch.equal(model(X), before)
    keep(model[0])
    quantize_(model, config)
    assert cases.sqnr(before, model(X)) > 30


@pytest.mark.x86
@pytest.mark.parametrize("mean_resizing", [True, False])
def test_embeddings_are_resized_before_quantizing(mean_resizing: bool) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = dict(vocab_size=128, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = transformers.LlamaConfig(**sizes, num_key_value_heads=2, tie_word_embeddings=False)
    model = transformers.LlamaForCausalLM(config).eval()
    quantize_(model, ao_arm.acl_int8_dynamic())
    with pytest.raises(
        (NotImplementedError, ValueError), match=r"(?i)shape=\(128, 32\), int8.*resize.* before quantize_"
    ):
        model.resize_token_embeddings(140, mean_resizing=mean_resizing)


# --- arguments ---


@pytest.mark.x86
@pytest.mark.parametrize("name", ["weight_granularity", "act_granularity"])
def test_a_scale_for_each_column_is_refused(name: str) -> None:
    words = re.escape("or PerTensor(), not PerRow(dim=0): only rows have a scale each")
    with pytest.raises(ValueError, match=f"{name} must be PerRow.*{words}"):
        ao_arm.acl_int8_dynamic(**{name: PerRow(0)})
    assert ao_arm.acl_int8_dynamic(**{name: PerRow(1)}).layout() == ao_arm.acl_int8_dynamic().layout()


@pytest.mark.x86
@pytest.mark.parametrize("kind", ["int64", "uint8"])
def test_integers_of_numpy_are_integers(kind: str) -> None:
    numpy = pytest.importorskip("numpy")
    config = ao_arm.acl_int4_grouped(getattr(numpy, kind)(32))
    assert type(config.group_size) is int and config == ao_arm.acl_int4_grouped(32)
    layout = dict(activation_mapping="asymmetric", weight_granularity="per_group", scheme="int4_grouped")
    assert type(ao_arm.ACLPackedLayout(**layout, group_size=getattr(numpy, kind)(32)).group_size) is int
    for wrong in (True, numpy.float32(32), numpy.bool_(True)):
        with pytest.raises(ValueError, match=r"group_size must be a whole number of at least 1"):
            ao_arm.acl_int4_grouped(wrong)
        with pytest.raises(ValueError, match=r"group_size must be at least 1 for int4_grouped"):
            ao_arm.ACLPackedLayout(**layout, group_size=wrong)


# --- ONNX ---


@pytest.mark.x86
@pytest.mark.parametrize("config", [ao_arm.acl_int8_dynamic(), ao_arm.acl_int4_grouped()], ids=["int8", "int4"])
def test_exporting_to_onnx_says_what_to_do_instead(config: AOBaseConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch.onnx.export sets it while it exports; onnxscript, which that needs, is no part of the extras."""
    model = quantized_layers_of(K, N, config=config).eval()
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with pytest.raises(NotImplementedError, match=r"ONNX has no op for ao_arm::linear_\w+: export the float model"):
        torch.export.export(model, (X,))
