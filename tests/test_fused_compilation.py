"""torch.compile with quantized layers fused: by the backend `ao_arm`, and by the pass for Inductor."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import EMULATED_CPU, thinned
from graphs import (
    DYNAMIC,
    GROUPED,
    HIDDEN,
    INT4,
    INT8,
    PT2E_HERE,
    SOURCES_HERE,
    STATIC,
    Calibrated,
    ChannelsByTorchao,
    K,
    Layer,
    N,
    assert_near,
    float_model,
    pt2e,
    quantized_by,
)
from torch import Tensor, nn
from torchao.quantization import quantize_

import ao_arm.passes
from ao_arm.passes import FusionReport, compiled_reports

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        yield
    torch._dynamo.reset()


@contextlib.contextmanager
def reports() -> Iterator[list[FusionReport]]:
    """The reports of what is compiled within."""
    before, made = compiled_reports(), []
    yield made
    known = {id(report) for report in before}
    made += [report for report in compiled_reports() if id(report) not in known]


def ops(made: list[FusionReport]) -> list[list[str]]:
    return [[layer.op or layer.reason for layer in report] for report in made]


def compiled(model: nn.Module, **more: Any) -> Any:
    return torch.compile(model, backend="ao_arm", **more)


# --- each source ---


@pytest.mark.one_cpu
@pytest.mark.parametrize("source", thinned([*SOURCES_HERE]))
def test_each_source_of_torchao(source: str) -> None:
    for dtype in (torch.float32, torch.bfloat16) if source == INT8 and not EMULATED_CPU else (torch.float32,):
        op = SOURCES_HERE[source].op_here(dtype)
        model, x = quantized_by(SOURCES_HERE[source].config(), dtype)[0], torch.randn(2, 3, K, dtype=dtype)
        with torch.no_grad(), reports() as made:
            assert_near(compiled(model)(x), model(x))
        assert ops(made) == [[op]]


@pytest.mark.x86
@pytest.mark.parametrize("source", PT2E_HERE)
def test_each_source_of_pt2e(source: str) -> None:
    model, x = pt2e(PT2E_HERE[source].quantizer(), 4, K), torch.randn(4, K)
    with torch.no_grad(), reports() as made:
        assert_near(compiled(model)(x), model(x), 1e-2 if PT2E_HERE[source].chained else 1e-5)
    assert ops(made) == [[PT2E_HERE[source].op] * 2]


# --- what is bound ---


@pytest.mark.x86
@torch.no_grad()
@pytest.mark.parametrize("freezing", [False, True], ids="freezing={}".format)
def test_weights_that_are_loaded_are_packed_anew(freezing: bool) -> None:
    """Into the tensors that torchao's weights consist of, which do not change themselves."""
    model, other = quantized_by(SOURCES_HERE[INT8].config())[0], nn.Linear(K, HIDDEN).requires_grad_(False)
    quantize_(other, SOURCES_HERE[INT8].config())
    x, run = torch.randn(5, K), compiled(model)
    with reports() as made, torch._inductor.config.patch(freezing=freezing):
        assert_near(run(x), model(x))
        before = model(x)
        model.load_state_dict(other.state_dict())
        assert_near(run(x), model(x))
        assert not torch.equal(before, model(x))
        assert_near(run(x), other(x))
    assert ops(made) == [[DYNAMIC]] * 2


@pytest.mark.x86
@torch.no_grad()
def test_a_parameter_that_is_replaced_is_compiled_anew() -> None:
    model, x = quantized_by(SOURCES_HERE[INT8].config())[0], torch.randn(5, K)
    run = compiled(model)
    with reports() as made:
        assert_near(run(x), model(x))
        model.bias = nn.Parameter(torch.randn(HIDDEN), requires_grad=False)
        assert_near(run(x), model(x))
        other = nn.Linear(K, HIDDEN)
        quantize_(other, SOURCES_HERE[INT8].config())
        model.weight = nn.Parameter(other.weight, requires_grad=False)
        assert_near(run(x), model(x))
        assert_near(run(x), model(x))
    assert ops(made) == [[DYNAMIC]] * 2  # the bias is an input of the op


class WithState(nn.Module):
    """A quantized layer behind a state that each call changes, as it changes a cache of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = quantized_by(SOURCES_HERE[INT8].config())[0]
        self.register_buffer("state", torch.zeros(5, K))

    def forward(self, x: Tensor) -> Tensor:
        self.state.mul_(0.5).add_(x)
        return self.layer(self.state)


@pytest.mark.x86
@torch.no_grad()
def test_a_state_that_changes_does_not_compile_anew() -> None:
    """In each call, between calls, and when it is replaced."""
    model, expected, x = WithState(), WithState(), torch.randn(5, K)
    run = compiled(model)
    with reports() as made:
        for call in range(4):
            assert_near(run(x * call), expected(x * call))
        for one in (model, expected):
            one.state.zero_()
        assert_near(run(x), expected(x))
        for one in (model, expected):
            one.state = torch.ones(5, K)
        assert_near(run(x), expected(x))
        assert torch.equal(model.state, expected.state)
    assert ops(made) == [[DYNAMIC]]


@pytest.mark.x86
@torch.no_grad()
@pytest.mark.parametrize("freezing", [False, True], ids="freezing={}".format)
def test_a_parameter_that_is_changed_in_place_is_compiled_anew(freezing: bool) -> None:
    model, x = Layer(Calibrated(), ChannelsByTorchao(N, K)), torch.randn(5, K)
    run = compiled(model)
    with reports() as made, torch._inductor.config.patch(freezing=freezing):
        assert_near(run(x), model(x))
        for tensor in (model.weight.scale, model.weight.qdata, model.bias):
            tensor.div_(2) if tensor.is_floating_point() else tensor.neg_()
            assert_near(run(x), model(x))
        assert_near(run(x * 2), model(x * 2))
    assert ops(made) == [[STATIC]] * 3  # the bias is an input of the op


@pytest.mark.x86
@torch.no_grad()
def test_tied_weights_are_packed_once() -> None:
    model, x = quantized_by(SOURCES_HERE[INT4].config(), sizes=(K, K, K)), torch.randn(5, K)
    model[2].weight = model[0].weight
    with reports() as made:
        assert_near(compiled(model)(x), model(x), 1e-2)
    assert ops(made) == [[GROUPED] * 2]


@pytest.mark.x86
@torch.no_grad()
def test_rows_that_vary_and_several_graphs() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, _, self.second = quantized_by(SOURCES_HERE[INT8].config(), sizes=(K, K, K))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            torch._dynamo.graph_break()
            return self.second(x)

    model = Broken()
    run = compiled(model, dynamic=True)
    with reports() as made:
        for m in (5, 9, 2):
            x = torch.randn(m, K)
            assert_near(run(x), model(x), 1e-2)
    assert ops(made) == [[DYNAMIC]] * 2


@pytest.mark.x86
def test_inference_mode_and_autocast() -> None:
    model, x = quantized_by(SOURCES_HERE[INT8].config())[0], torch.randn(5, K)
    with torch.inference_mode(), reports() as made:
        assert_near(compiled(model)(x), model(x))
    assert ops(made) == [[DYNAMIC]]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), reports() as made:
        assert_near(compiled(model)(x), model(x), 2e-2)


# --- gradients ---


class Adapted(nn.Module):
    """A quantized layer between layers that are trained."""

    def __init__(self, source: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after = nn.Linear(K, K), nn.Linear(HIDDEN, 3)
        self.inner = quantized_by(SOURCES_HERE[source].config())[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.inner(self.before(x)))


@pytest.mark.x86
@pytest.mark.parametrize("source", [INT8, INT4])
def test_gradients_are_those_of_eager(source: str) -> None:
    model, x = Adapted(source), torch.randn(5, K)
    run, trained = compiled(model), [*model.before.parameters(), *model.after.parameters()]
    optimizer = torch.optim.SGD(trained, lr=1e-3)
    for _ in range(3):
        expected = model(x)
        wanted = torch.autograd.grad(expected.square().sum(), trained, allow_unused=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            actual = run(x)
        found = torch.autograd.grad(actual.square().sum(), trained, allow_unused=True)
        assert_near(actual, expected, 1e-2)
        for one, other in zip(found, wanted, strict=True):
            one, other = (torch.zeros(1) if grad is None else grad for grad in (one, other))
            assert_near(one.expand_as(other) if one.numel() == 1 else one, other.expand_as(one), 1e-2)
        for parameter, gradient in zip(trained, wanted, strict=True):
            parameter.grad = gradient
        optimizer.step()


@pytest.mark.x86
def test_training_does_not_compile_each_step_anew() -> None:
    model, x = Adapted(INT8), torch.randn(5, K)
    run = compiled(model)
    optimizer = torch.optim.SGD(model.after.parameters(), lr=1e-3)
    with warnings.catch_warnings(), reports() as made:
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(4):
            optimizer.zero_grad()
            run(x).square().sum().backward()
            optimizer.step()
    assert ops(made) == [[DYNAMIC]]


# --- options and the pass for Inductor ---


@pytest.mark.x86
def test_options_that_are_none_are_refused() -> None:
    model, x = nn.Linear(K, N), torch.randn(5, K)
    with pytest.raises(Exception, match="backend ao_arm takes options and mode, not fullness"):
        ao_arm.passes.backend.ao_arm_backend(torch.fx.symbolic_trace(model), [x], fullness=3)
    with torch.no_grad(), pytest.raises(Exception, match="no_such_option"):
        compiled(model, options={"no_such_option": 1})(x)


@pytest.mark.x86
@torch.no_grad()
def test_options_and_modes_of_inductor() -> None:
    model, x = quantized_by(SOURCES_HERE[INT8].config())[0], torch.randn(5, K)
    seen = []
    for more in (
        {"options": {"freezing": True}},
        {"mode": "max-autotune-no-cudagraphs"},
        {"options": {"joint_custom_pre_pass": seen.append}},
    ):
        torch._dynamo.reset()
        with reports() as made:
            assert_near(compiled(model, **more)(x), model(x))
        assert ops(made) == [[DYNAMIC]]
    assert len(seen) == 1


@pytest.fixture
def registered() -> Iterator[None]:
    before = torch._inductor.config.joint_custom_pre_pass
    ao_arm.passes.register_with_inductor()
    ao_arm.passes.register_with_inductor()
    yield
    torch._inductor.config.joint_custom_pre_pass = before


@pytest.mark.x86
@torch.no_grad()
def test_the_pass_for_inductor_with_freezing(registered: None) -> None:
    model, x = quantized_by(SOURCES_HERE[INT8].config())[0], torch.randn(5, K)
    with torch._inductor.config.patch(freezing=True), reports() as made:
        assert_near(torch.compile(model)(x), model(x))
    assert ops(made) == [[DYNAMIC]]


@pytest.mark.x86
@torch.no_grad()
def test_a_model_without_quantized_layers(registered: None) -> None:
    model, x = float_model(), torch.randn(5, K)
    for run in (torch.compile(model), compiled(model)):
        with reports() as made, warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*quantized linear layers")
            assert_near(run(x), model(x))
        assert all(report == () and str(report) == "no quantized linear layers" for report in made)
        torch._dynamo.reset()


@pytest.mark.x86
@torch.no_grad()
def test_a_layer_that_is_left_is_told(registered: None) -> None:
    layer, x = Layer(Calibrated(), ChannelsByTorchao(N, K)), torch.randn(5, K)
    layer.weight.scale[3] = 0
    with pytest.warns(UserWarning, match="1 quantized linear layers were left as they were.*positive, finite"):
        assert_near(compiled(layer)(x), layer(x))
    assert compiled_reports()[-1].left[0].op == ""
