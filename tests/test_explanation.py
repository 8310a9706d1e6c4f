"""What is told of a model's layers: by `explain`, and by warnings of slower kernels."""

import warnings

import cases
import pytest
import torch
from models import quantized_layers_of
from torch import nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, MappingType, quantize_

import ao_arm
from ao_arm import kernels
from ao_arm.explanation import Explanation, LayerExplanation

ACL = "acl/s8s32+epilogue"


def test_explain_tells_what_select_chose() -> None:
    model = quantized_layers_of(64, 48, 385)
    explanation = ao_arm.explain(model)
    assert [layer.name for layer in explanation] == ["0", "1"]
    for layer, module in zip(explanation, model, strict=True):
        n, k = layer.shape
        assert (n, k) == (module.out_features, module.in_features)
        assert layer.kernel == kernels.select(n, k) == cases.packed_in(module).kernel
        assert layer.packing_format
        assert layer.scheme == cases.packed_in(module).scheme
        assert layer.rejected == {row.id: row.reasons for row in kernels.list(n, k) if row.reasons}


def test_explain_lists_layers_that_are_not_quantized() -> None:
    model = nn.Sequential(nn.Linear(64, 48), nn.LayerNorm(48), nn.Linear(48, 10, dtype=torch.bfloat16))
    quantize_(model, ao_arm.acl_int8_dynamic(), filter_fn=lambda module, name: name == "0")
    first, second = ao_arm.explain(model)
    assert first.scheme == "int8 dynamic (asymmetric, per_token x per_channel)"
    assert (second.name, second.shape, second.kernel) == ("2", (10, 48), "torch")
    assert second.scheme == "not quantized (torch.bfloat16)"
    assert ao_arm.explain(nn.ReLU()) == ()


def test_explain_prints_a_table_and_the_reasons() -> None:
    text = str(ao_arm.explain(nn.Sequential(*quantized_layers_of(64, 48), nn.Linear(48, 10))))
    covered, linear, vectors, first, _, *lines = text.splitlines()
    assert covered == "85% of 3.6 k parameters quantized by ao_arm; not: Linear.weight 13%, biases and norms 2%"
    assert linear.startswith("  Linear.weight (480; 1): was not chosen") and vectors.startswith(
        "  biases and norms (58"
    )
    assert first.split("  ")[0] == "layer"
    assert lines[0].startswith("0 ") and "48 x 64" in lines[0] and kernels.select(48, 64) in lines[0]
    assert lines[1].startswith("1 ") and "not quantized" in lines[1]
    for row in kernels.list(48, 64):
        if row.reasons:
            assert f"not {row.id}: {'; '.join(row.reasons)}" in text
    assert str(ao_arm.explain(nn.ReLU())).startswith("layer")


def test_explain_prints_what_each_layer_was_refused_for() -> None:
    layers = [
        LayerExplanation(str(i), (1, 1), "some", "a", rejected={"b": (why,)}) for i, why in enumerate(("x", "y", "x"))
    ]
    assert str(Explanation(layers)).splitlines()[-2:] == ["not b: x", "not b: y"]


def test_explain_shows_layers_of_4_bits() -> None:
    model = nn.Sequential(
        *quantized_layers_of(64, 96, config=ao_arm.acl_int4_grouped()),
        *quantized_layers_of(96, 48),
        *quantized_layers_of(48, 33, config=ao_arm.acl_int4_grouped(None)),
    )
    explanation = ao_arm.explain(model)
    for i, (n, k, group_size) in {0: (96, 64, 32), 2: (33, 48, 48)}.items():
        layer = explanation[i]
        assert layer.shape == (n, k)
        assert layer.scheme == (
            f"int4 grouped (asymmetric, per_token x symmetric groups of {group_size}, bfloat16 scales)"
        )
        assert layer.kernel == kernels.select(n, k, group_size) == cases.packed_in(model[i]).kernel
        assert layer.packing_format
        assert layer.rejected == {row.id: row.reasons for row in kernels.list(n, k, group_size) if row.reasons}
        assert set(layer.rejected) | set(cases.INT4_KERNELS) >= {row.id for row in kernels.list(n, k, group_size)}
    assert explanation[1].kernel == kernels.select(48, 96)
    assert str(explanation).count("int4 grouped") == 2


# --- warnings ---


def test_a_slower_kernel_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Played with a table of its own: which shapes a kernel refuses differs from CPU to CPU."""
    chosen = kernels.Kernel("portable/dotprod", "", (), (), 300.0)
    refused = kernels.Kernel(ACL, "", (), ("it does not like this shape",), 200.0)
    monkeypatch.setattr(kernels, "list", lambda n, k: (refused, chosen))
    monkeypatch.setattr(kernels, "_warned", set())
    monkeypatch.delenv("AO_ARM_KERNEL", raising=False)
    with pytest.warns(
        UserWarning, match=r"layer 5 is served by .*portable/dotprod.*it does not like this shape.*explain"
    ):
        kernels.warn_if_slow("portable/dotprod", "layer 5", 7, 33)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernels.warn_if_slow("portable/dotprod", "layer 6", 7, 33)
        monkeypatch.setattr(kernels, "_warned", set())
        monkeypatch.setenv("AO_ARM_KERNEL", "portable/dotprod")
        kernels.warn_if_slow("portable/dotprod", "layer 7", 7, 33)


@pytest.mark.parametrize("cost", [None, 300.0, 400.0])
def test_a_kernel_that_would_not_be_faster_is_not_missed(cost: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = kernels.Kernel("portable/dotprod", "", (), (), 300.0)
    refused = kernels.Kernel(ACL, "", (), ("it does not like this shape",), cost)
    monkeypatch.setattr(kernels, "list", lambda n, k: (refused, chosen))
    monkeypatch.setattr(kernels, "_warned", set())
    monkeypatch.delenv("AO_ARM_KERNEL", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernels.warn_if_slow("portable/dotprod", "layer", 7, 33)


def test_a_slower_kernel_for_4_bit_weights_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """`quantize_` asks the table for this very problem."""
    asked = []

    def table(*problem: object) -> tuple[kernels.Kernel, ...]:
        asked.append(problem)
        chosen = kernels.select(33, 96, 32, True, True)
        refused = kernels.Kernel("kleidiai/some", "", (), ("it has bfloat16 scales only",), 1.0)
        return refused, kernels.Kernel(chosen, "", (), (), 2.0)

    monkeypatch.delenv("AO_ARM_KERNEL", raising=False)
    monkeypatch.setattr(kernels, "list", table)
    monkeypatch.setattr(kernels, "_warned", set())
    with pytest.warns(
        UserWarning, match=r"'0.weight' of Linear.*is served by the slower .*: it has bfloat16 scales only"
    ):
        quantized_layers_of(96, 33, config=ao_arm.acl_int4_grouped(32, MappingType.ASYMMETRIC, torch.float32))
    assert asked == [kernels.Problem(33, 96, 32, True, True)]


# --- what holds the rest ---


def test_coverage_names_what_is_not_quantized_and_why() -> None:
    model = nn.ModuleDict(
        {
            "chosen": nn.Linear(64, 48),
            "left": nn.Linear(64, 10),
            "attention": nn.MultiheadAttention(64, 2),
            "embedding": nn.Embedding(50, 64),
            "convolution": nn.Conv1d(3, 4, 2),
            "by torchao": nn.Linear(32, 32, bias=False),
        }
    )
    model["head"] = nn.Linear(64, 50, bias=False)
    model["head"].weight = model["embedding"].weight
    model["unknown"] = nn.ParameterDict({"experts": torch.zeros(2, 3, 4), "matrix": torch.zeros(3, 4)})
    quantize_(model, Int8DynamicActivationInt8WeightConfig(version=2), filter_fn=lambda _, name: name == "by torchao")
    quantize_(model, ao_arm.acl_int8_dynamic(), filter_fn=lambda _, name: name == "chosen")
    coverage = ao_arm.explain(model).coverage
    rest = {holder.name: holder for holder in coverage.rest}
    assert coverage.quantized == 64 * 48
    # The head shares the embedding's weight, which counts once.
    counted = 64 * 48 + 48 + 64 * 10 + 10 + 4 * 64 * 64 + 4 * 64 + 50 * 64 + 24 + 4 + 32 * 32 + 24 + 12
    assert coverage.parameters == counted == coverage.quantized + sum(holder.parameters for holder in coverage.rest)
    assert coverage.share == coverage.quantized / counted
    for name, parameters, place, why in (
        ("Linear.weight", 64 * 10, "left", "was not chosen"),
        ("MultiheadAttention.in_proj_weight", 3 * 64 * 64, "attention", "filter_fn=ao_arm.quantizable"),
        ("NonDynamicallyQuantizableLinear.weight", 64 * 64, "attention.out_proj", "its nn.MultiheadAttention"),
        ("Embedding.weight", 50 * 64, "embedding", "looks up rows"),
        ("Conv1d.weight", 24, "convolution", "no kernels for convolutions"),
        ("ParameterDict.experts", 24, "unknown", "multiplies by 3-D weights"),
        ("ParameterDict.matrix", 12, "unknown", "name it in an FqnToConfig"),
        ("biases and norms", 48 + 10 + 4 * 64 + 4, "chosen", "vectors stay floats"),
    ):
        holder = rest.pop(name)
        assert (holder.parameters, holder.places[0]) == (parameters, place), name
        assert why in holder.why, name
    assert not rest
    with pytest.raises(
        ValueError, match=r"'by torchao.weight' of .* it is quantized already, by torchao's .*ao_arm.pack_"
    ):
        quantize_(model, ao_arm.acl_int8_dynamic(), filter_fn=ao_arm.quantizable)
    ao_arm.pack_(model)
    quantize_(model, ao_arm.acl_int8_dynamic(), filter_fn=ao_arm.quantizable)
    left = {holder.name for holder in ao_arm.explain(model).coverage.rest}
    assert not left & {"Linear.weight", "MultiheadAttention.in_proj_weight", "NonDynamicallyQuantizableLinear.weight"}


def test_coverage_of_stock_layers_and_of_nothing() -> None:
    model = nn.Sequential(nn.Linear(32, 32, bias=False))
    quantize_(model, Int8DynamicActivationInt8WeightConfig(version=2))
    (holder,) = ao_arm.explain(model).coverage.rest
    assert holder.parameters == 32 * 32 and "ao_arm.pack_(model) takes it over" in holder.why
    ao_arm.pack_(model)
    assert str(ao_arm.explain(model).coverage) == "100% of 1.0 k parameters quantized by ao_arm"
    assert str(ao_arm.explain(nn.ReLU()).coverage) == ""
