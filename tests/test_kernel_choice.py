"""The kernel table: which kernel is chosen or forced, and what is said of the others."""

import cases
import pytest
import torch
from models import quantized_layers_of
from packed_headers import name_in
from torch import nn
from torchao.core.config import AOBaseConfig

import ao_arm
from ao_arm import kernels

SHAPES = [(1, 1), (7, 33), (64, 64), (384, 768), (768, 768)] + ([] if cases.EMULATED_CPU else [(3072, 768)])
ACL = "acl/s8s32+epilogue"
SVE, NEON_I8MM, NEON_DOTPROD = "sve/i8mm_256", "neon/i8mm", "neon/dotprod"
UNFIT = [row.id for row in kernels.list() if row.reasons]


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
        SVE,
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
    with pytest.raises(ValueError, match=rf"n = {n} and k = {k}: (n and k must|with k = ).*filter_fn"):
        kernels.select(n, k)


# --- forcing a kernel ---


@pytest.mark.every_cpu
def test_a_forced_kernel_runs(kernel: str) -> None:
    assert kernels.select(48, 300) == kernel
    model = quantized_layers_of(300, 48)
    packed = cases.packed_in(model[0])
    (layer,) = ao_arm.explain(model)
    assert packed.kernel == layer.kernel == kernel
    assert name_in(packed.packed_weight) == kernel
    assert kernel in repr(packed)
    x = torch.randn(5, 300)
    qdata, scale, _ = packed.get_plain()
    expected = ao_arm.reference.linear_int8_dynamic(x, qdata, scale, model[0].bias, False, True)
    assert cases.same_bits(model(x), expected)


def test_the_kernel_is_chosen_when_packing_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AO_ARM_KERNEL", "portable/baseline")
    model, x = quantized_layers_of(64, 48), torch.randn(5, 64)
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
        quantized_layers_of(64, 48)


@pytest.mark.parametrize("name", UNFIT)
def test_an_unfit_kernel_is_refused_with_every_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AO_ARM_KERNEL", name)
    with pytest.raises(ValueError, match="cannot serve a layer with n = 768 and k = 768 here") as caught:
        kernels.select(768, 768)
    (row,) = (row for row in kernels.list() if row.id == name)
    for part in (name, *row.reasons, "Unset it"):
        assert part in str(caught.value)


@pytest.mark.every_cpu
@pytest.mark.parametrize("names", cases.KERNEL_PAIRS)
def test_kernels_for_both_kinds_of_weights_are_forced(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for separated in (names, ", ".join(reversed(names.split(",")))):
        monkeypatch.setenv("AO_ARM_KERNEL", separated)
        model = nn.Sequential(
            *quantized_layers_of(80, 96), *quantized_layers_of(96, 40, config=ao_arm.acl_int4_grouped())
        )
        assert [layer.kernel for layer in ao_arm.explain(model)] == names.split(",")
        x, packed = torch.randn(5, 96), cases.packed_in(model[1])
        cases.assert_by_reference(model[1](x), x, packed, model[1].bias)


@pytest.mark.parametrize(
    ("name", "kind", "layer", "config"),
    [
        ("portable/baseline", "int8", "4-bit", ao_arm.acl_int4_grouped()),
        ("portable/int4_baseline", "4-bit", "int8", ao_arm.acl_int8_dynamic()),
    ],
)
def test_a_kernel_for_the_other_kind_of_weights_is_called_that(
    name: str, kind: str, layer: str, config: AOBaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AO_ARM_KERNEL", name)
    words = f"AO_ARM_KERNEL names '{name}', a kernel for {kind} weights alone, and this layer has {layer} ones"
    with pytest.raises(ValueError, match=words) as caught:
        quantized_layers_of(64, 48, config=config)
    for row in kernels.list(group_size=32 if layer == "4-bit" else 0):
        assert row.id in str(caught.value)


@pytest.mark.parametrize("names", ["none/such,portable/baseline", "none/such", "a,b"])
def test_a_kernel_for_4_bit_weights_has_to_be_among_those_forced(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AO_ARM_KERNEL", names)
    with pytest.raises(ValueError, match=f"AO_ARM_KERNEL names an unknown kernel '{names}'") as caught:
        quantized_layers_of(64, 48, config=ao_arm.acl_int4_grouped())
    for row in kernels.list(group_size=32):
        assert row.id in str(caught.value)


# --- on each emulated CPU ---


#: The kernel that is chosen, and what ACL's packing format says of its micro-kernel when it is forced.
EXPECTED = {
    "a64fx": (ACL, "a64_gemm_s8_4x4"),
    "neoverse-n1": (NEON_DOTPROD, "dot"),
    "neoverse-v1": (SVE, "mmla"),
    "max": (NEON_I8MM, "mmla"),
}


@pytest.mark.every_cpu
@pytest.mark.skipif(not cases.EMULATED_CPU, reason="for emulated CPUs")
@pytest.mark.parametrize(("n", "k"), [(768, 768), (3072, 768), (768, 3072), (1024, 1024), (16, 16)])
def test_the_kernel_that_is_chosen_on_an_arm_cpu(n: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AO_ARM_KERNEL", raising=False)
    chosen, _ = EXPECTED[cases.EMULATED_CPU]
    if chosen == ACL and (n, k) == (16, 16):
        pytest.skip("where ACL's fixed costs prevail")
    assert kernels.select(n, k) == chosen


@pytest.mark.every_cpu
@pytest.mark.skipif(not cases.EMULATED_CPU, reason="for emulated CPUs")
def test_acl_is_forced_and_its_micro_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AO_ARM_KERNEL", ACL)
    (layer,) = ao_arm.explain(quantized_layers_of(768, 768))
    assert layer.kernel == ACL
    assert layer.packing_format.startswith("ACL ")
    _, micro_kernel = EXPECTED[cases.EMULATED_CPU]
    assert micro_kernel in layer.packing_format, layer.packing_format
    assert layer.packing_format in str(ao_arm.explain(quantized_layers_of(768, 768)))


@pytest.mark.skipif(cases.EMULATED_CPU != "a64fx", reason="for an emulated CPU without dot product instructions")
def test_an_arm_cpu_without_dotprod_says_what_it_lacks() -> None:
    reasons = {row.id: row.reasons for row in kernels.list()}
    for family in ("neon", "portable"):
        assert reasons[f"{family}/dotprod"] == ("this CPU has no dotprod",)
        assert set(reasons[f"{family}/i8mm"]) == {"this CPU has no dotprod", "this CPU has no i8mm"}


@pytest.mark.x86
def test_x86_cpus_say_that_arm_kernels_are_for_arm() -> None:
    reasons = {row.id: row.reasons for row in kernels.list()}
    for name in (ACL, SVE, NEON_I8MM, NEON_DOTPROD, "portable/dotprod", "portable/i8mm"):
        assert reasons[name] == ("it is built for AArch64 only",)
