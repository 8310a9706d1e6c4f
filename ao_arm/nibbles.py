"""4-bit values two to a byte, as files hold them."""

from __future__ import annotations

import torch
from torch import Tensor


def to_nibbles(values: Tensor) -> Tensor:
    """Each row's values in [-8, 7] plus 8, two to a byte: the first of a pair in the lower half.

    Args:
        values: (n, k) int8 in [-8, 7].

    Returns:
        (n, (k + 1) // 2) uint8; where k is odd, the upper half of a row's last byte stands for 0.
    """
    n, k = values.shape
    shifted = torch.full((n, k + k % 2), 8, dtype=torch.uint8, device=values.device)
    shifted[:, :k] = values.view(torch.uint8) + 8  # modulo 256: -8 is 248
    return shifted[:, ::2] | (shifted[:, 1::2] << 4)


def from_nibbles(nibbles: Tensor, k: int) -> Tensor:
    """What ``to_nibbles`` made such bytes of: (n, k) int8.

    Raises:
        ValueError: if their shape is not (n, (k + 1) // 2).
    """
    width = (k + 1) // 2
    if nibbles.dim() != 2 or nibbles.shape[1] != width:
        raise ValueError(
            f"rows of k = {k} 4-bit values take {width} bytes, two values each, and these have the shape "
            f"{tuple(nibbles.shape)}: the file is damaged"
        )
    values = torch.stack((nibbles & 15, nibbles >> 4), dim=-1).view(len(nibbles), 2 * width)[:, :k]
    return values.view(torch.int8) - 8
