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
from torchao.core.config import AOBaseConfig
from torchao.quantization import MappingType, quantize_

import ao_arm
from ao_arm import kernels
from ao_arm.explanation import Explanation, LayerExplanation

SHAPES = [(1, 1), (7, 33), (64, 64), (384, 768), (768, 768)] + ([] if cases.EMULATED_CPU else [(3072, 768)])
ACL = "acl/s8s32+epilogue"
NEON_I8MM, NEON_DOTPROD = "neon/i8mm", "neon/dotprod"
UNFIT = [row.id for row in kernels.list() if row.reasons]


def quantized(*sizes: int, config: AOBaseConfig | None = None) -> nn.Sequential:
    """Linear layers of these widths, one after the other."""
    layers = [nn.Linear(k, n) for k, n in pairwise(sizes)]
    model = nn.Sequential(*layers)
    quantize_(model, ao_arm.acl_int8_dynamic() if config is None else config)
    return model


# --- list, select, explain ---


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_a_row_has_a_cost_if_this_cpu_can_run_it(n: int, k: int) -> None:
    rows = kernels.list(n, k)
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        assert row.reasons or row.cost is not None, row
        if any("this CPU has no" in reason or "is built for" in reason for reason in row.reasons):
            assert row.cost is None, row
        assert row.summary and all(row.reasons), row
        assert row.cost is None or row.cost > 0, row


def test_the_table_holds_the_same_rows_on_every_cpu() -> None:
    ids = [row.id for row in kernels.list()]
    for known in (
        NEON_I8MM,
        NEON_DOTPROD,
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


def test_explain_prints_what_each_layer_was_refused_for() -> None:
    layers = [
        LayerExplanation(str(i), (1, 1), "some", "a", rejected={"b": (why,)}) for i, why in enumerate(("x", "y", "x"))
    ]
    assert str(Explanation(layers)).splitlines()[-2:] == ["not b: x", "not b: y"]


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


# --- 4-bit weights ---


def test_explain_shows_layers_of_4_bits() -> None:
    model = nn.Sequential(
        *quantized(64, 96, config=ao_arm.acl_int4_grouped()),
        *quantized(96, 48),
        *quantized(48, 33, config=ao_arm.acl_int4_grouped(None)),
    )
    explanation = ao_arm.explain(model)
    for i, (n, k, group_size) in {0: (96, 64, 32), 2: (33, 48, 48)}.items():
        layer = explanation[i]
        assert layer.shape == (n, k)
        assert layer.scheme == (
            f"int4 grouped (asymmetric, per_token x symmetric groups of {group_size}, bfloat16 scales)"
        )
        assert layer.kernel == kernels.select(n, k, group_size) == cases.packed_in(model[i]).kernel
        assert layer.packing_format
        assert layer.rejected == {row.id: row.reasons for row in kernels.list(n, k, group_size) if row.reasons}
        assert set(layer.rejected) | set(cases.INT4_KERNELS) >= {row.id for row in kernels.list(n, k, group_size)}
    assert explanation[1].kernel == kernels.select(48, 96)
    assert str(explanation).count("int4 grouped") == 2


@pytest.mark.parametrize("names", cases.KERNEL_PAIRS)
def test_kernels_for_both_kinds_of_weights_are_forced(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for separated in (names, ", ".join(reversed(names.split(",")))):
        monkeypatch.setenv("AO_ARM_KERNEL", separated)
        model = nn.Sequential(*quantized(80, 96), *quantized(96, 40, config=ao_arm.acl_int4_grouped()))
        assert [layer.kernel for layer in ao_arm.explain(model)] == names.split(",")
        x, packed = torch.randn(5, 96), cases.packed_in(model[1])
        cases.assert_by_reference(model[1](x), x, packed, model[1].bias)


@pytest.mark.parametrize("names", ["portable/baseline", "none/such,portable/baseline", "none/such", "a,b"])
def test_a_kernel_for_4_bit_weights_has_to_be_among_those_forced(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AO_ARM_KERNEL", names)
    with pytest.raises(ValueError, match=f"AO_ARM_KERNEL names an unknown kernel '{names}'") as caught:
        quantized(64, 48, config=ao_arm.acl_int4_grouped())
    for row in kernels.list(group_size=32):
        assert row.id in str(caught.value)


def test_a_slower_kernel_for_4_bit_weights_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """`quantize_` asks the table for this very problem."""
    asked = []

    def table(*problem: object) -> tuple[kernels.Kernel, ...]:
        asked.append(problem)
        chosen = kernels.select(33, 96, 32, True, True)
        refused = kernels.Kernel("kleidiai/some", "", (), ("it has bfloat16 scales only",), 1.0)
        return refused, kernels.Kernel(chosen, "", (), (), 2.0)

    monkeypatch.delenv("AO_ARM_KERNEL", raising=False)
    monkeypatch.setattr(kernels, "list", table)
    monkeypatch.setattr(kernels, "_warned", set())
    with pytest.warns(
        UserWarning, match=r"'0.weight' of Linear.*is served by the slower .*: it has bfloat16 scales only"
    ):
        quantized(96, 33, config=ao_arm.acl_int4_grouped(32, MappingType.ASYMMETRIC, torch.float32))
    assert asked == [(33, 96, 32, True, True)]


# --- on each emulated CPU ---

#: The kernel that is chosen, and what ACL's packing format says of its micro-kernel when it is forced.
EXPECTED = {
    "a64fx": (ACL, "a64_gemm_s8_4x4"),
    "neoverse-n1": (NEON_DOTPROD, "dot"),
    "neoverse-v1": (NEON_I8MM, "mmla"),
    "max": (NEON_I8MM, "mmla"),
}


@pytest.mark.skipif(not cases.EMULATED_CPU, reason="for emulated CPUs")
@pytest.mark.parametrize(("n", "k"), [(768, 768), (3072, 768), (768, 3072), (1024, 1024), (16, 16)])
def test_the_kernel_that_is_chosen_on_an_arm_cpu(n: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AO_ARM_KERNEL", raising=False)
    chosen, _ = EXPECTED[cases.EMULATED_CPU]
    if chosen == ACL and (n, k) == (16, 16):
        pytest.skip("where ACL's fixed costs prevail")
    assert kernels.select(n, k) == chosen


@pytest.mark.skipif(not cases.EMULATED_CPU, reason="for emulated CPUs")
def test_acl_is_forced_and_its_micro_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AO_ARM_KERNEL", ACL)
    (layer,) = ao_arm.explain(quantized(768, 768))
    assert layer.kernel == ACL
    assert layer.packing_format.startswith("ACL ")
    _, micro_kernel = EXPECTED[cases.EMULATED_CPU]
    assert micro_kernel in layer.packing_format, layer.packing_format
    assert layer.packing_format in str(ao_arm.explain(quantized(768, 768)))


@pytest.mark.skipif(cases.EMULATED_CPU != "a64fx", reason="for an emulated CPU without dot product instructions")
def test_an_arm_cpu_without_dotprod_says_what_it_lacks() -> None:
    reasons = {row.id: row.reasons for row in kernels.list()}
    for family in ("neon", "portable"):
        assert reasons[f"{family}/dotprod"] == ("this CPU has no dotprod",)
        assert set(reasons[f"{family}/i8mm"]) == {"this CPU has no dotprod", "this CPU has no i8mm"}


@pytest.mark.x86
def test_x86_cpus_say_that_arm_kernels_are_for_arm() -> None:
    reasons = {row.id: row.reasons for row in kernels.list()}
    for name in (ACL, NEON_I8MM, NEON_DOTPROD, "portable/dotprod", "portable/i8mm"):
        assert reasons[name] == ("it is built for AArch64 only",)


def test_a_slower_kernel_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Played with a table of its own: which shapes a kernel refuses differs from CPU to CPU."""
    chosen = kernels.Kernel("portable/dotprod", "", (), (), 300.0)
    refused = kernels.Kernel(ACL, "", (), ("it does not like this shape",), 200.0)
    monkeypatch.setattr(kernels, "list", lambda n, k: (refused, chosen))
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


@pytest.mark.parametrize("cost", [None, 300.0, 400.0])
def test_a_kernel_that_would_not_be_faster_is_not_missed(cost: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = kernels.Kernel("portable/dotprod", "", (), (), 300.0)
    refused = kernels.Kernel(ACL, "", (), ("it does not like this shape",), cost)
    monkeypatch.setattr(kernels, "list", lambda n, k: (refused, chosen))
    monkeypatch.setattr(kernels, "_warned", set())
    monkeypatch.delenv("AO_ARM_KERNEL", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernels.warn_if_slow("portable/dotprod", "layer", 7, 33)


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


def test_many_weights_take_turns() -> None:
    """More than are kept, of which some must take the same place, in two rounds."""
    x = torch.randn(3, 65)
    weights = [ao_arm.ACLPackedTensor.from_hp(torch.randn(n, k)) for n in range(1, 9) for k in (5, 17, 40, 65)]
    for _ in range(2):
        for weight in weights:
            n, k = weight.weight_shape
            assert torch.equal(linear(x[:, :k], weight), cases.by_reference(x[:, :k], weight)), (n, k)


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
