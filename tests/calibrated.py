"""A model of two layers that is prepared, calibrated and converted, as tests of calibration do."""

from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization import quantize_

from ao_arm import acl_int8_static, packed_weight_of

K, HIDDEN, N = 48, 40, 24


class Model(nn.Module):
    """Two linear layers, of which one has no bias and is called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(K, HIDDEN)
        self.second = nn.Linear(HIDDEN, N, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(input=self.first(x).relu())

    def inputs_of_layers(self, x: Tensor) -> dict[str, Tensor]:
        return {"first": x, "second": self.first(x).relu()}


LAYERS = ("first", "second")


def batches(count: int = 3, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(3, 7, K, dtype=dtype) for _ in range(count)]


@torch.no_grad()
def calibrated(model: nn.Module, data: list[Tensor], **scheme: Any) -> nn.Module:
    quantize_(model, acl_int8_static("prepare", **scheme))
    for batch in data:
        model(batch)
    return model


def assert_like(model: nn.Module, before: nn.Module, packed: bool, text: bool = True) -> None:
    """Nothing of the observers is left; with weights that were packed in place only the text of a layer is new."""
    assert [name for name, _ in model.named_modules()] == [name for name, _ in before.named_modules()]
    for name in LAYERS:
        layer, original = model.get_submodule(name), before.get_submodule(name)
        assert set(vars(layer)) == set(vars(original)) | ({"extra_repr"} if packed and text else set())
        for hooks in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_modules", "_buffers"):
            assert not getattr(layer, hooks), hooks
        assert (packed_weight_of(layer.weight) is not None) == packed
