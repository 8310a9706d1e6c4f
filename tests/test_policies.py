"""`on_unsupported`: layers that a configuration cannot quantize raise, stay in floats or become int8 ones."""

import copy
import re
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import cases
import pytest
import torch
from models import K, N, quantized_layers
from torch import Tensor
from torchao.core.config import config_from_dict, config_to_dict
from torchao.quantization import MappingType
from torchao.quantization import quantize_ as torchaos_quantize_

import ao_arm
from ao_arm import acl_int4_grouped, acl_int8_dynamic, acl_int8_static

pytestmark = pytest.mark.one_cpu

UNEVEN = 50
REASON = rf"k = {UNEVEN} is no multiple of the group size 32"
#: How our warnings begin; torchao 0.17 warns of its own classes.
OURS = r"nothing was changed|\d.* (was left|has int8)|the parameter"
#: Ours tells of all layers at once, torchao's hands over one at a time.
BOTH = pytest.mark.parametrize("quantize_", [ao_arm.quantize_, torchaos_quantize_], ids=["ours", "torchaos"])


def model_with_an_uneven_layer() -> torch.nn.Sequential:
    """Of its three layers, two have a k that groups of 32 do not divide."""
    sizes = (K, UNEVEN, UNEVEN, N)
    return torch.nn.Sequential(*(torch.nn.Linear(k, n) for k, n in pairwise(sizes))).eval()


def state_of(model: torch.nn.Module) -> list[tuple[Any, ...]]:
    return [
        (id(module), sorted(vars(module)), repr(module), *map(id, module.parameters(recurse=False)))
        for module in model.modules()
    ]


def test_raise_leaves_the_model_as_it_was() -> None:
    model = model_with_an_uneven_layer()
    before = state_of(model)
    message = rf"nothing was quantized, because 2 of 3 layers cannot be\. 1, 2: {REASON}.*filter_fn or FqnToConfig, or"
    with pytest.raises(ValueError, match=message):
        ao_arm.quantize_(model, acl_int4_grouped())
    assert state_of(model) == before
    assert quantized_layers(model) == []


def test_each_reason_is_found_before_anything_changes() -> None:
    """Shapes, types, devices and values, in a layer behind one that could be quantized."""
    for wrong, message, error in (
        (torch.full((N, K), torch.nan), r"1: it holds nan at \[0, 0\]", ValueError),
        (torch.randn(N, K, dtype=torch.float64), "1: its dtype must be torch.float32", ValueError),
        (torch.randn(N, K, device="meta"), "1: it is on the device meta", NotImplementedError),
        (torch.ones(1, 66312), "1: .*a sum of products may not fit in int32|1: .*66311", ValueError),
    ):
        for config in (acl_int8_dynamic(), acl_int8_static(act_scale=0.1)):
            model = torch.nn.Sequential(torch.nn.Linear(K, K), torch.nn.Linear(K, N))
            model[1].weight = torch.nn.Parameter(wrong)
            with pytest.raises(error, match=message):
                ao_arm.quantize_(model, config)
            assert quantized_layers(model) == []


@BOTH
@torch.no_grad()
def test_skip_leaves_layers_in_floats(quantize_: Callable[..., Any]) -> None:
    model, x = model_with_an_uneven_layer(), torch.randn(5, UNEVEN)
    expected = model[1](x)
    with pytest.warns(UserWarning, match=rf"was left in floats: {REASON}|1, 2 was left in floats: {REASON}"):
        quantize_(model, acl_int4_grouped(on_unsupported="skip"))
    assert quantized_layers(model) == ["0"]
    assert torch.equal(model[1](x), expected)
    explained = {layer.name: layer for layer in ao_arm.explain(copy.deepcopy(model))}
    assert explained["0"].reason == "" and explained["1"].reason.startswith(f"k = {UNEVEN} is no multiple")
    assert explained["1"].scheme.startswith("not quantized")
    quantize_(model, acl_int8_dynamic())  # what was left is quantized later
    assert quantized_layers(model) == ["0", "1", "2"]
    assert [layer.reason for layer in ao_arm.explain(model)] == ["", "", ""]


@BOTH
@torch.no_grad()
def test_int8_takes_what_4_bits_do_not_fit(quantize_: Callable[..., Any]) -> None:
    model, x = model_with_an_uneven_layer(), torch.randn(5, UNEVEN)
    with pytest.warns(UserWarning, match=rf"has int8 weights and not 4-bit ones: {REASON}"):
        quantize_(model, acl_int4_grouped(on_unsupported="int8"))
    layouts = [cases.packed_in(layer).get_layout() for layer in model]
    assert layouts == [cases.grouped(32), *[acl_int8_dynamic(MappingType.ASYMMETRIC).layout()] * 2]
    for layer in model[1:]:
        cases.assert_by_reference(layer(x), x, cases.packed_in(layer), layer.bias)
    assert [bool(layer.reason) for layer in ao_arm.explain(model)] == [False, True, True]
    with warnings.catch_warnings():  # the same again is no other scheme
        warnings.filterwarnings("error", message=OURS)
        quantize_(model, acl_int4_grouped(on_unsupported="int8"))


def test_int8_has_to_fit_too() -> None:
    model = model_with_an_uneven_layer()
    with torch.no_grad():
        model[2].weight[3, 4] = torch.inf
    with pytest.raises(ValueError, match=r"1 of 3 layers cannot be\. 2: it holds inf at \[3, 4\]"):
        ao_arm.quantize_(model, acl_int4_grouped(on_unsupported="int8"))
    assert quantized_layers(model) == []
    with pytest.raises(ValueError, match=r"'2\.weight' of Linear.* was not quantized, nor to int8: it holds inf"):
        torchaos_quantize_(model, acl_int4_grouped(on_unsupported="int8"))


@pytest.mark.filterwarnings("ignore:.*was left in floats")
@BOTH
def test_layers_that_calibration_did_not_reach(quantize_: Callable[..., Any]) -> None:
    """Are skipped when the others are converted, and their observers go."""
    model = model_with_an_uneven_layer()
    quantize_(model, acl_int8_static("prepare", on_unsupported="skip"))
    model[0](torch.randn(8, K))
    quantize_(model, acl_int8_static("convert", on_unsupported="skip"))
    assert quantized_layers(model) == ["0"]
    explained = ao_arm.explain(model)
    assert all("its observer saw no data" in layer.reason for layer in explained[1:])
    assert all(layer.scheme.startswith("not quantized") for layer in explained[1:])
    assert not model[1]._forward_pre_hooks


def test_what_could_not_be_prepared_says_why_when_converted() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(K, K), torch.nn.Linear(K, N, dtype=torch.float64))
    with pytest.warns(UserWarning, match="1 was left in floats: its dtype must be"):
        ao_arm.quantize_(model, acl_int8_static("prepare", on_unsupported="skip"))
    model[0](torch.randn(8, K))
    with pytest.warns(UserWarning, match="1 was left in floats: its dtype must be"):
        report = ao_arm.quantize_(model, acl_int8_static("convert", on_unsupported="skip"))
    assert [entry.name for entry in report.quantized] == ["0"] and [entry.name for entry in report.left] == ["1"]


def test_what_the_report_says() -> None:
    model = model_with_an_uneven_layer()
    ao_arm.quantize_(model, acl_int8_dynamic(), filter_fn=lambda module, name: name == "2")
    with pytest.warns(UserWarning, match="1 was left in floats") as seen:
        report = ao_arm.quantize_(model, acl_int4_grouped(on_unsupported="skip"))
    assert len([warning for warning in seen if re.match(OURS, str(warning.message))]) == 1
    assert [entry.name for entry in report] == ["0", "1", "2"]
    assert [[entry.name for entry in part] for part in (report.quantized, report.left, report.kept)] == [
        ["0"],
        ["1"],
        ["2"],
    ]
    assert report[0].scheme == cases.packed_in(model[0]).scheme and report[0].shape == (UNEVEN, K)
    text = str(report)
    assert "left in floats" in text and "as it was: int8 dynamic" in text
    assert text.splitlines()[-1] == f"1 was left in floats: {report[1].reason}"


def test_policies_are_written_with_the_configuration() -> None:
    for config in (
        acl_int8_dynamic(on_unsupported="skip"),
        acl_int8_static("prepare", on_unsupported="skip"),
        acl_int4_grouped(on_unsupported="int8"),
    ):
        assert config_from_dict(config_to_dict(config)) == config
    for make in (acl_int8_dynamic, lambda **policy: acl_int8_static("prepare", **policy)):
        with pytest.raises(ValueError, match=r"on_unsupported must be one of \('raise', 'skip'\), not 'int8'.*4-bit"):
            make(on_unsupported="int8")
    with pytest.raises(ValueError, match=r"on_unsupported must be one of .*'int8'.*, not 'ignore'"):
        acl_int4_grouped(on_unsupported="ignore")


# --- layers that are quantized already ---


def small_model() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(K, K), torch.nn.ReLU(), torch.nn.Linear(K, N)).eval()


def everything(module: torch.nn.Module, name: str) -> bool:
    """Also takes quantized layers on a torchao whose own filter leaves them out."""
    return isinstance(module, torch.nn.Linear)


@BOTH
def test_a_call_that_changes_nothing_says_so_once(quantize_: Callable[..., Any]) -> None:
    model = small_model()
    quantize_(model, acl_int8_dynamic())
    weights = [layer.weight for layer in model if isinstance(layer, torch.nn.Linear)]
    with pytest.warns(UserWarning, match="nothing was changed: each layer is quantized already") as seen:
        quantize_(model, acl_int4_grouped(), everything)
    assert len([warning for warning in seen if re.match(OURS, str(warning.message))]) == 1
    assert weights[0] is model[0].weight and weights[1] is model[2].weight


@BOTH
def test_mixing_in_steps_is_silent(quantize_: Callable[..., Any]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=OURS)
        model = small_model()
        quantize_(model, acl_int4_grouped(), filter_fn=lambda module, name: name == "0")
        quantize_(model, acl_int8_dynamic(), everything)
        quantize_(model, acl_int4_grouped(), filter_fn=lambda module, name: name == "0")  # the same as before
    assert [cases.packed_in(model[i]).get_layout().scheme for i in (0, 2)] == ["int4_grouped", "int8_dynamic"]


def test_a_call_that_takes_no_layer_says_so() -> None:
    with pytest.warns(UserWarning, match="no layer was quantized: the model has none"):
        assert str(ao_arm.quantize_(torch.nn.Sequential(torch.nn.ReLU()), acl_int8_dynamic())) == "no layer was taken"


def test_what_torchao_quantized_is_refused_by_name() -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    model = small_model()
    torchaos_quantize_(
        model, Int8DynamicActivationInt8WeightConfig(version=2), filter_fn=lambda module, name: name == "2"
    )
    with pytest.raises(
        ValueError, match=r"2: it is quantized already, by torchao's Int8Tensor: ao_arm\.pack_\(model\) takes"
    ):
        ao_arm.quantize_(model, acl_int8_dynamic())
    assert quantized_layers(model) == []


def test_wrong_arguments() -> None:
    from torchao.quantization import FqnToConfig, Int8WeightOnlyConfig

    model: Any = small_model()
    for call, message in (
        (lambda: ao_arm.quantize_(model.state_dict(), acl_int8_dynamic()), "model must be a torch.nn.Module, not Ord"),
        (lambda: ao_arm.quantize_(model, Int8WeightOnlyConfig()), "config must be one of ACL.*give others to torchao"),
        (lambda: ao_arm.quantize_(model, FqnToConfig({"0": Int8WeightOnlyConfig()})), "or an FqnToConfig of them, not"),
        (lambda: ao_arm.quantize_(model, FqnToConfig({"0": acl_int8_dynamic()}), everything), "leave filter_fn out"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert quantized_layers(model) == []


@torch.no_grad()
def test_quantized_layers_are_the_same_as_torchaos() -> None:
    x: Tensor = torch.randn(5, K)
    for config in (acl_int8_dynamic(), acl_int4_grouped(), acl_int8_static(act_scale=0.04)):
        model = small_model()
        other = copy.deepcopy(model)
        ao_arm.quantize_(model, config)
        torchaos_quantize_(other, config)
        assert cases.same_bits(model(x), other(x)) and repr(model) == repr(other)
