"""Straight-through gradients: those of the layer with the weight dequantized, in every mode of torch's autograd."""

from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint
from torchao.core.config import AOBaseConfig
from torchao.quantization import quantize_

import ao_arm
from ao_arm import gradients
from ao_arm.affine_quantized import as_weight, packed_weight_of
from ao_arm.passes import chain_static_layers

N, K = 33, 64
SHAPES = ((K,), (1, K), (7, K), (0, K), (2, 3, K))


def layer(scheme: str, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    made = nn.Linear(K, N, bias=bias, dtype=dtype)
    weight = as_weight(cases.packed(made.weight, cases.SCHEMES[scheme]))
    made.weight = nn.Parameter(weight, requires_grad=False)
    return made


def dequantized(of: nn.Linear) -> Tensor:
    weight = packed_weight_of(of.weight)
    assert weight is not None
    floats = weight.dequantize()
    return floats if weight.act_pre_scale is None else floats * weight.act_pre_scale


EACH_SCHEME = pytest.mark.parametrize("scheme", cases.SCHEMES)


@EACH_SCHEME
def test_input_and_bias_get_the_gradients_of_the_dequantized_layer(scheme: str) -> None:
    for shape in SHAPES:
        of, x = layer(scheme), torch.randn(shape, requires_grad=True)
        output = of(x)
        with torch.no_grad():
            assert cases.same_bits(output.detach(), of(x))
        gradient = torch.randn_like(output)
        output.backward(gradient)
        assert x.grad is not None and of.bias.grad is not None and of.weight.grad is None
        torch.testing.assert_close(x.grad, gradient @ dequantized(of))
        torch.testing.assert_close(of.bias.grad, gradient.reshape(-1, N).sum(0))


@pytest.mark.one_cpu
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=cases.name_of)
def test_dtypes(dtype: torch.dtype) -> None:
    of, x = layer("dynamic", dtype=dtype), torch.randn(5, K, dtype=dtype, requires_grad=True)
    of.bias = nn.Parameter(torch.randn(N))
    of(x).sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype
    assert of.bias.grad is not None and of.bias.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, torch.ones(5, N, dtype=dtype) @ dequantized(of), rtol=0.02, atol=0.02)
    torch.testing.assert_close(of.bias.grad, torch.full((N,), 5.0))


@pytest.mark.one_cpu
@EACH_SCHEME
def test_autocast(scheme: str) -> None:
    of, x = layer(scheme), torch.randn(5, K, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = of(x)
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, torch.ones(5, N) @ dequantized(of), rtol=0.02, atol=0.02)


@pytest.mark.one_cpu
def test_a_pre_scale_is_part_of_the_gradient() -> None:
    of, x = layer("dynamic"), torch.randn(5, K, requires_grad=True)
    packed = packed_weight_of(of.weight)
    assert packed is not None
    packed.act_pre_scale = torch.rand(K) + 0.5
    of(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(5, N) @ dequantized(of))


@pytest.mark.one_cpu
@EACH_SCHEME
def test_a_residual_block_and_what_surrounds_it(scheme: str) -> None:
    """The gradients of a norm before and a head behind a block are those of the block with floats."""
    inner, outer = layer(scheme), nn.Linear(N, K)
    norm, x = nn.LayerNorm(K), torch.randn(9, K)

    def gradients_with(middle: Callable[[Tensor], Tensor]) -> list[Tensor]:
        trained = [*norm.parameters(), *outer.parameters(), inner.bias]
        normed = norm(x)
        return list(torch.autograd.grad((normed + outer(middle(normed).tanh())).square().mean(), trained))

    weight = dequantized(inner)
    found = gradients_with(inner)

    def floats(values: Tensor) -> Tensor:
        # With the quantized layer's values, so that the gradients above it are at the same place.
        straight = nn.functional.linear(values, weight, inner.bias)
        return straight + (inner(values) - straight).detach()

    for ours, expected in zip(found, gradients_with(floats), strict=True):
        torch.testing.assert_close(ours, expected)


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x @ w.t()": lambda x, w: x @ w.t(),
    "matmul": lambda x, w: torch.matmul(x, w.t()),
    "mm": lambda x, w: torch.mm(x, w.t()),
    "x.mm": lambda x, w: x.mm(w.t()),
    "addmm": lambda x, w: torch.addmm(torch.ones(N), x, w.t()),
    "addmm of matrices": lambda x, w: torch.addmm(torch.ones(5, N), x, w.t(), beta=1, alpha=1),
    "addmm by names": lambda x, w: torch.addmm(input=torch.ones(N), mat1=x, mat2=w.t()),
    "matmul by names": lambda x, w: torch.matmul(input=x, other=w.t()),
    "linear of nn": lambda x, w: nn.functional.linear(input=x, weight=w),
}


@pytest.mark.one_cpu
@pytest.mark.parametrize("product", PRODUCTS)
def test_other_ways_to_write_a_layer(product: str) -> None:
    of, x = layer("grouped"), torch.randn(5, K, requires_grad=True)
    PRODUCTS[product](x, of.weight).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(5, N) @ dequantized(of))


@pytest.mark.one_cpu
@pytest.mark.parametrize("by_columns", (False, True))
def test_a_product_that_torch_differentiates_itself(by_columns: bool) -> None:
    of, values = layer("dynamic"), torch.randn(5, K)
    packed = packed_weight_of(of.weight)
    assert packed is not None
    packed.act_pre_scale = torch.rand(K) + 0.5
    x = (values.t().contiguous().t() if by_columns else values).requires_grad_()
    with torch._C.DisableTorchFunctionSubclass():
        torch.mm(x, of.weight.t()).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(5, N) @ dequantized(of))


@pytest.mark.one_cpu
@pytest.mark.parametrize(
    "config", (ao_arm.acl_int8_dynamic(), ao_arm.acl_int4_grouped(group_size=32)), ids=("int8", "4 bits")
)
@pytest.mark.parametrize("crossed", (False, True))
def test_attention_of_torch(config: AOBaseConfig, crossed: bool) -> None:
    """Gradients are those of dequantized projections at the values that the quantized ones give."""
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(K, 4, batch_first=True)})
    ao_arm.quantize_(model, config)
    attention = model["attention"]
    assert isinstance(attention, nn.MultiheadAttention)
    trained = [attention.in_proj_bias, attention.out_proj.bias]
    query = torch.randn(2, 5, K, requires_grad=True)
    key = torch.randn(2, 7, K, requires_grad=True) if crossed else query
    inputs = [query, key] if crossed else [query]

    def straight(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        packed = packed_weight_of(weight)
        assert packed is not None
        floats = nn.functional.linear(values, packed.dequantize(), bias)
        return floats + (nn.functional.linear(values, weight, bias) - floats).detach()

    def heads(values: Tensor) -> Tensor:
        return values.unflatten(-1, (4, -1)).transpose(1, 2)

    weights, biases = attention.in_proj_weight.split(K), attention.in_proj_bias.split(K)
    projected = [
        heads(straight(values, weight, bias))
        for values, weight, bias in zip((query, key, key), weights, biases, strict=True)
    ]
    mixed = nn.functional.scaled_dot_product_attention(*projected).transpose(1, 2).flatten(2)
    expected = straight(mixed, attention.out_proj.weight, attention.out_proj.bias)
    found = attention(query, key, key, need_weights=False)[0]
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, [*inputs, *trained], gradient),
        torch.autograd.grad(expected, [*inputs, *trained], gradient),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.one_cpu
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@EACH_SCHEME
def test_functional_transforms(scheme: str) -> None:
    of, x, tangent = layer(scheme).requires_grad_(False), torch.randn(4, K), torch.randn(4, K)
    weight = dequantized(of)
    torch.testing.assert_close(jacrev(of)(x[0]), weight)
    torch.testing.assert_close(jacfwd(of)(x[0]), weight)
    values, product = jvp(of, (x,), (tangent,))
    assert cases.same_bits(values, of(x))
    torch.testing.assert_close(product, tangent @ weight.t())
    torch.testing.assert_close(vmap(grad(lambda row: of(row).sum()))(x), torch.ones(4, N) @ weight)
    if "per tensor" not in scheme:
        torch.testing.assert_close(vmap(of)(x), of(x))


@pytest.mark.one_cpu
def test_forward_mode_of_a_bias_alone() -> None:
    of, x, tangent = layer("dynamic"), torch.randn(4, K), torch.randn(N)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(of.bias.detach(), tangent)
        output = functional_call(of, {"bias": dual}, (x,))
        torch.testing.assert_close(forward_ad.unpack_dual(output).tangent, tangent.expand(4, N))


@pytest.mark.one_cpu
def test_gradients_of_gradients_and_checkpoints() -> None:
    of, x = layer("dynamic"), torch.randn(3, K, requires_grad=True)
    weight = dequantized(of)
    first = torch.autograd.grad(of(x).square().sum(), x, create_graph=True)[0]
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, 2 * torch.ones(3, K) @ weight.t() @ weight)
    again = torch.autograd.grad(checkpoint(of, x, use_reentrant=False).square().sum(), x)[0]
    torch.testing.assert_close(again, first.detach())


@pytest.mark.x86
@pytest.mark.slow
@pytest.mark.parametrize("backend", ("eager", "aot_eager", "inductor", "ao_arm"))
@pytest.mark.filterwarnings("ignore:.*were left as they were")
def test_compiled(backend: str) -> None:
    torch._dynamo.reset()
    for scheme in cases.SCHEMES:
        of, x = layer(scheme), torch.randn(5, K, requires_grad=True)
        output = torch.compile(of, fullgraph=True, backend=backend)(x)
        assert cases.same_bits(output.detach(), of(x).detach())
        gradient = torch.randn_like(output)
        output.backward(gradient)
        assert of.bias.grad is not None
        torch.testing.assert_close(x.grad, gradient @ dequantized(of))
        torch.testing.assert_close(of.bias.grad, gradient.sum(0))
    torch._dynamo.reset()


@pytest.mark.one_cpu
@pytest.mark.parametrize("mode", ("no_grad", "inference_mode", "nothing requires one"))
def test_without_gradients_nothing_of_autograd_is_entered(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def entered(*given: Any) -> None:
        raise AssertionError("an autograd function was entered")

    monkeypatch.setattr(gradients._StraightThrough, "apply", entered)
    of, x = layer("dynamic"), torch.randn(5, K, requires_grad=mode != "nothing requires one")
    if mode == "nothing requires one":
        of.requires_grad_(False)
        assert not of(x).requires_grad
    else:
        with getattr(torch, mode)():
            assert not of(x).requires_grad
        with pytest.raises(AssertionError, match="was entered"):
            of(x)


@pytest.mark.one_cpu
def test_a_packed_weight_requires_no_gradient() -> None:
    of = layer("dynamic")
    for asks in (
        lambda: of.weight.requires_grad_(),
        lambda: of.weight.requires_grad_(requires_grad=True),
        lambda: setattr(of.weight, "requires_grad", True),
        lambda: of.requires_grad_(),
    ):
        with pytest.raises(ValueError, match=r"packed integers and cannot require a gradient.*packed_weight_of"):
            asks()
    of.requires_grad_(False)
    of.weight.requires_grad = False
    assert not nn.Parameter(of.weight.detach()).requires_grad
    for parameter in of.parameters():
        parameter.requires_grad_(ao_arm.packed_weight_of(parameter) is None)
    assert of.bias.requires_grad and not of.weight.requires_grad


@pytest.mark.one_cpu
def test_a_chain_has_no_gradient_and_says_so() -> None:
    model = nn.Sequential(nn.Linear(K, N), nn.ReLU(), nn.Linear(N, 8)).eval()
    quantize_(model, ao_arm.acl_int8_static(step="prepare"))
    model(torch.randn(16, K))
    quantize_(model, ao_arm.acl_int8_static(step="convert"))
    chained, x = chain_static_layers(model), torch.randn(5, K, requires_grad=True)
    with pytest.raises(NotImplementedError, match="no gradient flows through a chain of static layers"):
        chained(x)
    with torch.no_grad():
        assert chained(x).shape == (5, 8)


@pytest.mark.one_cpu
def test_a_layer_taken_over_from_torch() -> None:
    """Of a dynamic layer with ReLU: gradients where it is positive."""
    from torch.ao.nn.intrinsic.quantized.dynamic import LinearReLU

    stock = LinearReLU(K, N)
    stock.set_weight_bias(torch.quantize_per_tensor(torch.randn(N, K), 0.02, 0, torch.qint8), torch.randn(N))
    model = nn.Sequential(stock)
    ao_arm.pack_(model)
    x = torch.randn(5, K, requires_grad=True)
    output = model(x)
    with torch.no_grad():
        assert cases.same_bits(output.detach(), model(x))
    output.sum().backward()
    weight = model[0].packed_weight.dequantize()
    torch.testing.assert_close(x.grad, (output > 0).float() @ weight)
