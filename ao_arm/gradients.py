"""Gradients of a layer with a quantized weight: those of the float layer that it stands for."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

_is_grad_enabled = torch.is_grad_enabled


def are_asked_for(input: Tensor, bias: Tensor | None) -> bool:
    """Whether a derivative of the layer may be asked for later: backward, or forward with tangents."""
    if _is_grad_enabled() and (input.requires_grad or (bias is not None and bias.requires_grad)):
        # A trace would record a call back into Python, which no file can hold.
        return torch._C._get_tracing_state() is None
    return forward_ad._current_level >= 0


def are_being_made() -> bool:
    """Whether torch is in a backward pass."""
    return torch._C._current_graph_task_id() != -1


def refuse(input: Tensor, layer: str) -> None:
    """For a layer that has no gradient.

    Raises:
        NotImplementedError: if one would be asked for.
    """
    if are_asked_for(input, None):
        raise NotImplementedError(
            f"no gradient flows through {layer}, but its input requires one: call it under torch.no_grad() or with "
            "input.detach(), or train the model as it was before"
        )


def require_for_weight(weight: Tensor, requires_grad: bool = True) -> Tensor:
    """``weight.requires_grad_(requires_grad)`` for a packed weight, which never requires one.

    A tensor that is no parameter yet stays as it is: ``torch.nn.Parameter`` asks for a gradient unless told otherwise,
    and so do programs that load models.

    Raises:
        ValueError: if a parameter is to require a gradient.
    """
    if requires_grad and isinstance(weight, torch.nn.Parameter):
        raise ValueError(
            "a weight that ao_arm quantized consists of packed integers and cannot require a gradient, though gradients"
            " flow through it. Leave it out, as `for p in model.parameters(): p.requires_grad_("
            "ao_arm.packed_weight_of(p) is None)` does, or train adapters beside it (LoRA), or the float model before "
            "quantize_"
        )
    return weight


class DifferentiableLayer(Protocol):
    """A linear layer but for its input and bias. No tensor itself: functional transforms would take it apart."""

    def __call__(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """The output, (..., n)."""

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight that it stands for, (n, k)."""


class _StraightThrough(torch.autograd.Function):
    """``layer(input, bias)``, differentiated as if it were ``input @ layer.dequantized().t() + bias``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(layer: DifferentiableLayer, input: Tensor, bias: Tensor | None) -> Tensor:
        return layer(input, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[DifferentiableLayer, Tensor, Tensor | None], output: Tensor) -> None:
        layer, input, bias = inputs
        ctx.layer, ctx.input_dtype, ctx.output_dtype, ctx.output_shape = layer, input.dtype, output.dtype, output.shape
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        of_input = of_bias = None
        if ctx.needs_input_grad[1]:
            of_input = (gradient @ ctx.layer.dequantized(gradient.dtype)).to(ctx.input_dtype)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0, dtype=torch.float32).to(ctx.bias_dtype)
        return None, of_input, of_bias

    @staticmethod
    def jvp(ctx: Any, _: None, input: Tensor | None, bias: Tensor | None) -> Tensor | None:
        of_bias: Tensor | None = None if bias is None else bias.to(ctx.output_dtype).expand(ctx.output_shape)
        if input is None:
            return of_bias
        of_input: Tensor = (input @ ctx.layer.dequantized(input.dtype).t()).to(ctx.output_dtype)
        return of_input if of_bias is None else of_input + of_bias


def straight_through(layer: DifferentiableLayer, input: Tensor, bias: Tensor | None) -> Tensor:
    """A layer's output with the straight-through gradient, in reverse mode and in forward mode."""
    output: Tensor = _StraightThrough.apply(layer, input, bias)  # type: ignore[no-untyped-call]
    return output
