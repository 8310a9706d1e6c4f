"""The header of packed bytes as tests read and change it."""

import struct

import torch
from torch import Tensor

# magic, version, scheme, n, k, panel columns, total bytes, kernel, packing format, reserved; then the checksum
HEADER = struct.Struct("<8s I i q q q q 32s 96s 72s")
HEADER_BYTES = 256
KERNEL_FIELD, FORMAT_FIELD = slice(48, 80), slice(80, 176)


def name_in(packed_weight: Tensor) -> str:
    return bytes(packed_weight[KERNEL_FIELD].tolist()).rstrip(b"\0").decode()


def checksum(header: bytes) -> int:
    total = 0xCBF29CE484222325
    for word in struct.unpack(f"<{len(header) // 8}Q", header):
        total = ((total ^ word) * 0x9E3779B97F4A7C15) % (1 << 64)
        total ^= total >> 32
    return total


def forged(header: bytes, wanted: int) -> bytes:
    """A header with this checksum: its last word before it, which is reserved, is made to fit."""
    inverse = pow(0x9E3779B97F4A7C15, -1, 1 << 64)
    before = checksum(header[:-8])
    free = ((wanted ^ wanted >> 32) * inverse) % (1 << 64) ^ before
    return header[:-8] + struct.pack("<QQ", free, wanted)


def with_header(packed_weight: Tensor, **fields: object) -> Tensor:
    """The packed bytes with some fields of the header replaced and the checksum made right."""
    names = ("magic", "version", "scheme", "n", "k", "panel_columns", "total_bytes", "kernel", "packing_format")
    content = bytes(packed_weight.tolist())
    *values, reserved = HEADER.unpack(content[: HEADER.size])
    changed = {**dict(zip(names, values, strict=True)), **fields}
    header = HEADER.pack(*changed.values(), reserved)
    header += struct.pack("<Q", checksum(header))
    return torch.tensor([*header, *content[HEADER_BYTES:]], dtype=torch.uint8)
