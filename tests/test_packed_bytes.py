"""Packed bytes that cannot be used here are refused, and say what to do."""

import re

import cases
import pytest
import torch
from packed_headers import HEADER, HEADER_BYTES, with_header
from torch import Tensor
from torch.nn.functional import linear

import ao_arm
from ao_arm import kernels

UNFIT = [row.id for row in kernels.list() if row.reasons]


def packed() -> ao_arm.ACLPackedTensor:
    return ao_arm.ACLPackedTensor.from_hp(torch.randn(7, 33))


def run_with(packed_weight: Tensor) -> Tensor:
    weight = packed()
    weight.packed_weight = packed_weight
    return linear(torch.randn(5, 33), weight)


def test_the_header_is_as_these_tests_know_it() -> None:
    weight = packed()
    assert HEADER.size == HEADER_BYTES - 8
    assert torch.equal(with_header(weight.packed_weight), weight.packed_weight)
    assert run_with(with_header(weight.packed_weight)).shape == (5, 7)
    magic, version, _, n, k, *_ = HEADER.unpack(bytes(weight.packed_weight[: HEADER.size].tolist()))
    assert (magic, version, n, k) == (b"AOARMPW\0", 1, 7, 33)


WHAT_TO_DO = "Pack the weight again on this machine: load the checkpoint"

BROKEN = {
    "no bytes": (lambda b: b[:0], "these 0 bytes are no packed weight"),
    "fewer bytes than a header": (lambda b: b[:255], "these 255 bytes are no packed weight"),
    "header alone": (lambda b: b[:256], r"should have \d+ bytes but has 256"),
    "last byte missing": (lambda b: b[:-1], r"should have \d+ bytes but has \d+"),
    "a byte too many": (lambda b: torch.cat([b, b[:1]]), r"should have \d+ bytes but has \d+"),
    "foreign bytes": (lambda b: torch.arange(1000).to(torch.uint8), "do not begin with its mark"),
    "zeros": (torch.zeros_like, "do not begin with its mark"),
    "newer version": (lambda b: with_header(b, version=2), "has version 2 of the packing; this ao_arm reads version 1"),
    "other kernel": (lambda b: with_header(b, kernel=b"other/kernel"), "other/kernel, which this ao_arm does not have"),
    "other format": (
        lambda b: with_header(b, packing_format=b"another format"),
        "for another format; on this CPU it needs",
    ),
    "other panels": (lambda b: with_header(b, panel_columns=128), "in another arrangement"),
    "other n": (lambda b: with_header(b, n=1000), "in another arrangement|on this CPU it needs"),
    "n of 0": (lambda b: with_header(b, n=0), "n and k must be at least 1"),
    "negative k": (lambda b: with_header(b, k=-33), "n and k must be at least 1"),
    "k above the int32 limit": (lambda b: with_header(b, k=1 << 40), "may not fit in int32"),
    "other scheme": (lambda b: with_header(b, scheme=77), "it serves int8 weights only"),
    **{
        f"packed by {name}": (
            lambda b, name=name: with_header(b, kernel=name.encode()),
            f"{re.escape(name)}, which cannot run here",
        )
        for name in UNFIT
    },
}


@pytest.mark.parametrize("broken", BROKEN)
def test_packed_bytes_that_cannot_be_used_say_what_to_do(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AO_ARM_KERNEL", raising=False)
    change, message = BROKEN[broken]
    content = change(packed().packed_weight)
    for _ in range(2):  # what was found out about a header is kept
        with pytest.raises(ValueError, match=message) as caught:
            run_with(content)
        assert WHAT_TO_DO in str(caught.value)


@pytest.mark.one_cpu
def test_a_header_that_was_found_good_vouches_for_no_other() -> None:
    """Checked headers are kept by their checksum: after a good call, in the same thread and in the same memory."""
    content = packed().packed_weight.clone()
    good = content.clone()
    stale = good[248:HEADER_BYTES]
    for fields, message in (
        (dict(n=50), "in another arrangement|on this CPU it needs"),
        (dict(kernel=b"other/kernel"), "which this ao_arm does not have"),
        (dict(packing_format=b"another format"), "on this CPU it needs"),
    ):
        for keeps_checksum, expected in ((False, message), (True, "its checksum does not match")):
            content.copy_(good)
            assert run_with(content).shape == (5, 7)
            content.copy_(with_header(good, **fields))
            if keeps_checksum:
                content[248:HEADER_BYTES] = stale
            with pytest.raises(ValueError, match=expected):
                run_with(content)
    content.copy_(good)
    with pytest.raises(ValueError, match=r"should have \d+ bytes but has"):
        run_with(content[:-1])
    assert run_with(content).shape == (5, 7)


@pytest.mark.one_cpu
def test_many_weights_take_turns() -> None:
    """More than are kept, of which some must take the same place, in two rounds."""
    x = torch.randn(3, 65)
    weights = [ao_arm.ACLPackedTensor.from_hp(torch.randn(n, k)) for n in range(1, 9) for k in (5, 17, 40, 65)]
    for _ in range(2):
        for weight in weights:
            n, k = weight.weight_shape
            assert torch.equal(linear(x[:, :k], weight), cases.by_reference(x[:, :k], weight)), (n, k)


@pytest.mark.one_cpu
@pytest.mark.parametrize("place", [8, 12, 16, 24, 32, 40, 50, 100, 200, 247, 248, 255])
def test_a_damaged_header_is_found(place: int) -> None:
    content = packed().packed_weight.clone()
    content[place] ^= 0x10
    message = "has version 17" if place == 8 else "header of this packed weight is damaged"
    with pytest.raises(ValueError, match=message) as caught:
        run_with(content)
    assert WHAT_TO_DO in str(caught.value)


@pytest.mark.one_cpu
def test_packed_bytes_of_another_type_are_refused() -> None:
    content = packed().packed_weight
    for wrong, message in (
        (content.view(torch.int8), "packed_weight must be torch.uint8"),
        (torch.stack([content, content], dim=1)[:, 0], "packed_weight must be contiguous"),
    ):
        with pytest.raises(ValueError, match=message):
            run_with(wrong)


@pytest.mark.parametrize("layout", cases.SCHEMES.values(), ids=cases.SCHEMES)
def test_any_bytes_behind_a_header_give_numbers_and_no_more(layout: ao_arm.ACLPackedLayout) -> None:
    """Of each kernel: places are those of the shape, whatever the bytes say. Random ones, all of one kind, and NaN."""
    x = torch.randn(9, cases.LAYER[1])
    for kernel in cases.kernels_for(layout):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AO_ARM_KERNEL", kernel)
            weight = cases.packed(torch.randn(cases.LAYER), layout)
        body = weight.packed_weight[HEADER_BYTES:]
        before = body.clone()
        for content in (torch.randint_like(body, 256), torch.full_like(body, 0x80), torch.full_like(body, 0xFF)):
            body.copy_(content)
            assert linear(x, weight).shape == (9, cases.LAYER[0])
            qdata, _, _ = weight.get_plain()
            assert qdata.shape == cases.LAYER
        body.copy_(before)
        cases.assert_by_reference(linear(x, weight), x, weight)
