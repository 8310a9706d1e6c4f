"""The kernel table: choosing, forcing and explaining; and packed bytes that cannot be used."""

import re
import struct
import warnings
from itertools import pairwise

import cases
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torchao.quantization import quantize_

import ao_arm
from ao_arm import kernels

SHAPES = [(1, 1), (7, 33), (64, 64), (384, 768), (768, 768)] + ([] if cases.EMULATED_CPU else [(3072, 768)])
ACL = "acl/s8s32+epilogue"
UNFIT = [row.id for row in kernels.list() if row.reasons]


def quantized(*sizes: int) -> nn.Sequential:
    """Linear layers of these widths, one after the other."""
    layers = [nn.Linear(k, n) for k, n in pairwise(sizes)]
    model = nn.Sequential(*layers)
    quantize_(model, ao_arm.acl_int8_dynamic())
    return model


# --- list, select, explain ---


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_a_row_has_either_reasons_or_a_cost(n: int, k: int) -> None:
    rows = kernels.list(n, k)
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        assert bool(row.reasons) == (row.cost is None), row
        assert row.summary and all(row.reasons), row
        assert row.cost is None or row.cost > 0, row


def test_the_table_holds_the_same_rows_on_every_cpu() -> None:
    ids = [row.id for row in kernels.list()]
    for known in (
        ACL,
        "portable/baseline",
        "portable/avx2",
        "portable/avx512vnni",
        "portable/dotprod",
        "portable/i8mm",
    ):
        assert known in ids
    assert "portable/baseline" in cases.KERNELS, "the fallback runs everywhere"


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_the_cheapest_kernel_is_selected(n: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AO_ARM_KERNEL", raising=False)
    fit = [row for row in kernels.list(n, k) if not row.reasons]
    assert kernels.select(n, k) == min(fit, key=lambda row: row.cost).id
    monkeypatch.setenv("AO_ARM_KERNEL", "")
    assert kernels.select(n, k) == min(fit, key=lambda row: row.cost).id


@pytest.mark.parametrize(("n", "k"), [(0, 64), (64, 0), (-1, 64), (64, 66312)])
def test_shapes_that_no_kernel_serves(n: int, k: int) -> None:
    for row in kernels.list(n, k):
        assert row.reasons, row
    with pytest.raises(ValueError, match=rf"n = {n} and k = {k}\..*portable/baseline: .*filter_fn"):
        kernels.select(n, k)


def test_explain_tells_what_select_chose() -> None:
    model = quantized(64, 48, 385)
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
    assert first.scheme == "int8 dynamic (symmetric, per_token x per_channel)"
    assert (second.name, second.shape, second.kernel) == ("2", (10, 48), "torch")
    assert second.scheme == "not quantized (torch.bfloat16)"
    assert ao_arm.explain(nn.ReLU()) == ()


def test_explain_prints_a_table_and_the_reasons() -> None:
    text = str(ao_arm.explain(nn.Sequential(*quantized(64, 48), nn.Linear(48, 10))))
    first, _, *lines = text.splitlines()
    assert first.split("  ")[0] == "layer"
    assert lines[0].startswith("0 ") and "48 x 64" in lines[0] and kernels.select(48, 64) in lines[0]
    assert lines[1].startswith("1 ") and "not quantized" in lines[1]
    for row in kernels.list(48, 64):
        if row.reasons:
            assert f"not {row.id}: {'; '.join(row.reasons)}" in text
    assert str(ao_arm.explain(nn.ReLU())).startswith("layer")


# --- forcing a kernel ---


def test_a_forced_kernel_runs(kernel: str) -> None:
    assert kernels.select(48, 300) == kernel
    model = quantized(300, 48)
    packed = cases.packed_in(model[0])
    (layer,) = ao_arm.explain(model)
    assert packed.kernel == layer.kernel == kernel
    assert name_in(packed.packed_weight) == kernel
    assert kernel in repr(packed)
    x = torch.randn(5, 300)
    qdata, scale, _ = packed.get_plain()
    expected = ao_arm.reference.linear_int8_dynamic(x, qdata, scale, model[0].bias, True, True)
    assert cases.same_bits(model(x), expected)


def test_the_kernel_is_chosen_when_packing_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AO_ARM_KERNEL", "portable/baseline")
    model, x = quantized(64, 48), torch.randn(5, 64)
    before = model(x)
    monkeypatch.setenv("AO_ARM_KERNEL", "none/such")
    assert cases.same_bits(model(x), before)
    assert cases.packed_in(model[0]).kernel == "portable/baseline"


@pytest.mark.parametrize("name", ["none/such", "portable", "PORTABLE/BASELINE", " "])
def test_an_unknown_kernel_is_refused_with_the_known_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AO_ARM_KERNEL", name)
    with pytest.raises(ValueError, match=f"AO_ARM_KERNEL names an unknown kernel '{name}'") as caught:
        kernels.select(64, 64)
    for row in kernels.list():
        assert row.id in str(caught.value)
    assert "Unset it" in str(caught.value)
    with pytest.raises(ValueError, match="unknown kernel"):
        quantized(64, 48)


@pytest.mark.parametrize("name", UNFIT)
def test_an_unfit_kernel_is_refused_with_every_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AO_ARM_KERNEL", name)
    with pytest.raises(ValueError, match="cannot serve a layer with n = 768 and k = 768 here") as caught:
        kernels.select(768, 768)
    (row,) = (row for row in kernels.list() if row.id == name)
    for part in (name, *row.reasons, "Unset it"):
        assert part in str(caught.value)


# --- on each emulated CPU ---

MICRO_KERNELS = {"neoverse-n1": "dot", "neoverse-v1": "mmla", "max": "mmla"}


@pytest.mark.skipif(cases.EMULATED_CPU not in MICRO_KERNELS, reason="for emulated CPUs with dot product instructions")
def test_arm_cpus_with_dotprod_get_acl_and_its_micro_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AO_ARM_KERNEL", raising=False)
    assert kernels.select(768, 768) == ACL
    (layer,) = ao_arm.explain(quantized(768, 768))
    assert layer.kernel == ACL
    assert layer.packing_format.startswith("ACL ")
    assert MICRO_KERNELS[cases.EMULATED_CPU] in layer.packing_format, layer.packing_format
    assert layer.packing_format in str(ao_arm.explain(quantized(768, 768)))


@pytest.mark.skipif(cases.EMULATED_CPU != "a64fx", reason="for an emulated CPU without dot product instructions")
def test_an_arm_cpu_without_dotprod_says_what_it_lacks() -> None:
    reasons = {row.id: row.reasons for row in kernels.list()}
    assert reasons["portable/dotprod"] == ("this CPU has no dotprod",)
    assert set(reasons["portable/i8mm"]) == {"this CPU has no dotprod", "this CPU has no i8mm"}


@pytest.mark.x86
def test_x86_cpus_say_that_arm_kernels_are_for_arm() -> None:
    reasons = {row.id: row.reasons for row in kernels.list()}
    for name in (ACL, "portable/dotprod", "portable/i8mm"):
        assert reasons[name] == ("it is built for AArch64 only",)


def test_a_slower_kernel_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Played with a table of its own: which shapes the best kernel refuses differs from CPU to CPU."""
    refused = kernels.Kernel(ACL, "", (), ("it does not like this shape",), None)
    monkeypatch.setattr(kernels, "list", lambda n, k: (refused,))
    monkeypatch.setattr(kernels, "_architecture", lambda: "AArch64")
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
        monkeypatch.delenv("AO_ARM_KERNEL")
        monkeypatch.setattr(kernels, "_architecture", lambda: "x86_64")
        kernels.warn_if_slow("portable/dotprod", "layer 8", 7, 33)


# --- packed bytes that cannot be used ---

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


def with_header(packed_weight: Tensor, **fields: object) -> Tensor:
    """The packed bytes with some fields of the header replaced and the checksum made right."""
    names = ("magic", "version", "scheme", "n", "k", "panel_columns", "total_bytes", "kernel", "packing_format")
    content = bytes(packed_weight.tolist())
    *values, reserved = HEADER.unpack(content[: HEADER.size])
    changed = {**dict(zip(names, values, strict=True)), **fields}
    header = HEADER.pack(*changed.values(), reserved)
    header += struct.pack("<Q", checksum(header))
    return torch.tensor([*header, *content[HEADER_BYTES:]], dtype=torch.uint8)


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
    "other scheme": (lambda b: with_header(b, scheme=77), "serves no other scheme"),
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


@pytest.mark.parametrize("place", [8, 12, 16, 24, 32, 40, 50, 100, 200, 247, 248, 255])
def test_a_damaged_header_is_found(place: int) -> None:
    content = packed().packed_weight.clone()
    content[place] ^= 0x10
    message = "has version 17" if place == 8 else "header of this packed weight is damaged"
    with pytest.raises(ValueError, match=message) as caught:
        run_with(content)
    assert WHAT_TO_DO in str(caught.value)


def test_packed_bytes_of_another_type_are_refused() -> None:
    content = packed().packed_weight
    for wrong, message in (
        (content.view(torch.int8), "packed_weight must be uint8"),
        (torch.stack([content, content], dim=1)[:, 0], "packed_weight must be contiguous"),
    ):
        with pytest.raises(ValueError, match=message):
            run_with(wrong)
