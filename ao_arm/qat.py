"""Quantization-aware training: torchao's ``QATConfig`` around configurations of ours.

Prepared layers compute with floats that lie on the very grid of the quantized layer: the same functions choose it.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchao.quantization.qat import FakeQuantizedLinear, QATConfig
from torchao.quantization.qat.fake_quantizer import FakeQuantizerBase
from torchao.quantization.transform_module import _QUANTIZE_CONFIG_HANDLER, register_quantize_module_handler

from .config import CONFIGS, ACLInt8DynamicActivationInt4WeightConfig, ACLInt8StaticActivationInt8WeightConfig
from .handlers import described
from .layer_checks import Config, act_quantization, check_layer, layout_of
from .outcomes import TOLD, note_reason
from .plain import quantized
from .reference import quantize_activations, quantize_static


class _StraightThrough(torch.autograd.Function):
    """Gives quantized values, and their gradient to what was quantized, where it was within the range."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, on_grid: Tensor, inside: Tensor | None) -> Tensor:
        ctx.save_for_backward(inside)
        return on_grid

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] if inside is None else gradients[0] * inside, None, None


class WeightFakeQuantizer(FakeQuantizerBase):  # type: ignore[misc]
    """Rounds a weight (n, k) to what the packed one will hold, in float32."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.enabled = True

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on the grid, or as it is while this is not ``enabled``."""
        if not self.enabled:
            return weight.float()
        plain = quantized(weight, layout_of(self.config, weight.shape[-1]), None)
        values: Tensor = _StraightThrough.apply(weight.float(), plain.dequantized(), None)  # type: ignore[no-untyped-call]
        return values


class ActivationFakeQuantizer(FakeQuantizerBase):  # type: ignore[misc]
    """Rounds activations (..., k) to what the op makes of them, in float32."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.enabled = True

    def forward(self, input: Tensor) -> Tensor:
        """The activations on the grid, or as they are while this is not ``enabled``."""
        if not self.enabled:
            return input.float()
        on_grid, inside = self._on_grid(input.detach())
        values: Tensor = _StraightThrough.apply(input.float(), on_grid, inside)  # type: ignore[no-untyped-call]
        return values

    def _on_grid(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        scale, zero_point = act_quantization(self, self.config)
        if scale is None or zero_point is None:
            rows = input.reshape(-1, input.shape[-1])
            layout = layout_of(self.config, input.shape[-1])
            symmetric, per_token = (
                layout.activation_mapping == "symmetric",
                layout.activation_granularity == "per_token",
            )
            q, scale, zero = quantize_activations(rows, symmetric, per_token)
            return ((q.float() - zero) * scale).reshape(input.shape), None
        limits, zero = torch.iinfo(zero_point.dtype), zero_point.float()
        values = (quantize_static(input, scale, zero_point).float() - zero) * scale
        least, greatest = ((limit - zero) * scale for limit in (limits.min - 0.5, limits.max + 0.5))
        return values, (input >= least) & (input <= greatest)


class PreparedLinear(FakeQuantizedLinear):  # type: ignore[misc]
    """A linear layer in training: as ``nn.Linear``, on the grid of a configuration of ours.

    It computes in float32 and gives the input's dtype, so that in bfloat16, too, it trains on the numbers that the
    quantized layer has.

    Attributes:
        trained_for: the configuration that was asked for; the fake quantizers' is its fallback where it does not fit.
    """

    trained_for: Config

    @classmethod
    def of(cls, layer: torch.nn.Linear, config: Config, trained_for: Config) -> PreparedLinear:
        """Takes over a layer's parameters."""
        prepared = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        prepared.weight = layer.weight
        prepared.register_parameter("bias", layer.bias)
        prepared.trained_for = trained_for
        prepared.activation_fake_quantizer = ActivationFakeQuantizer(config)
        prepared.weight_fake_quantizer = WeightFakeQuantizer(config)
        return prepared.train(layer.training)  # type: ignore[no-any-return]

    def forward(self, input: Tensor) -> Tensor:
        """The input, (..., k), times the weight; (..., n) of the input's dtype."""
        bias = None if self.bias is None else self.bias.float()
        activations = self.activation_fake_quantizer(input)
        weight = self.weight_fake_quantizer(self.weight)
        return torch.nn.functional.linear(activations, weight, bias).to(input.dtype)


_torchaos: Callable[[torch.nn.Module, QATConfig], torch.nn.Module] = _QUANTIZE_CONFIG_HANDLER[QATConfig]


@register_quantize_module_handler(QATConfig)  # type: ignore[untyped-decorator]
def _prepare_or_convert(module: torch.nn.Module, config: QATConfig) -> torch.nn.Module:
    """Serves configurations of ours, of which torchao's own handler knows nothing; hands it all others."""
    base = config.base_config
    if not isinstance(base, CONFIGS):
        return _torchaos(module, config)
    if config.step == "prepare":
        return _prepared(module, base)
    if isinstance(module, FakeQuantizedLinear):
        _check_trained_for(module, base)
    return _torchaos(module, config)


def _check_trained_for(module: FakeQuantizedLinear, config: Config) -> None:
    if not isinstance(module, PreparedLinear):
        raise ValueError(
            f"{described(module, 'weight')} was trained on a grid of torchao's: convert with torchao's configuration, "
            "and ao_arm.pack_(model) takes its integers over"
        )
    trained, asked = (dataclasses.replace(each, on_unsupported="raise") for each in (module.trained_for, config))
    if trained != asked:
        raise ValueError(
            f"{described(module, 'weight')} was trained for {trained}, not for {asked}: give both steps the same"
        )


def _prepared(module: torch.nn.Module, config: Config) -> torch.nn.Module:
    if not isinstance(module, torch.nn.Linear):
        raise NotImplementedError(
            f"{type(module).__name__} cannot be trained on a grid of ao_arm's: only nn.Linear layers can. Choose them "
            "with filter_fn"
        )
    if isinstance(config, ACLInt8StaticActivationInt8WeightConfig) and config.step is not None:
        raise ValueError(
            f"static activations are trained by a scale that is known: give act_scale, from calibration, and not "
            f"step={config.step!r}"
        )
    if isinstance(config, ACLInt8DynamicActivationInt4WeightConfig) and config.search:
        raise ValueError(
            "search=True chooses scales for floats, and in training the grid follows them: leave search out"
        )
    given = config
    try:
        check_layer(module, "weight", config)
    except (ValueError, NotImplementedError) as error:
        name = described(module, "weight")
        if config.on_unsupported == "raise":
            raise type(error)(f"{name} was not prepared: {error}") from None
        if config.on_unsupported == "skip":
            warnings.warn(f"{name} {TOLD['left']}: {error}", stacklevel=3)
            note_reason(module, "weight", str(error))
            return module
        assert isinstance(config, ACLInt8DynamicActivationInt4WeightConfig)
        warnings.warn(f"{name} {TOLD['int8']}: {error}", stacklevel=3)
        config = config.fallback()
        check_layer(module, "weight", config)
    return PreparedLinear.of(module, config, given)
