"""`python -m ao_arm selftest`: each kernel is tried, and a wrong one is found."""

import json
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from torch import Tensor

from ao_arm import _ops, kernels
from ao_arm.__main__ import main
from ao_arm.selftest import cases as selftest_cases
from ao_arm.system import current_system

TABLES = (kernels.list(65, 129), kernels.list(65, 96, 32))


@pytest.fixture(autouse=True)
def _fewer_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest_cases, "ROWS", (3,))
    monkeypatch.setattr(selftest_cases, "INT8_WEIGHTS", ((65, 129, -127), (65, 129, -128)))
    monkeypatch.setattr(selftest_cases, "INT4_WEIGHTS", ((65, 96, 32),))


def verdict(capsys: pytest.CaptureFixture[str], exit_code: int = 0) -> dict[str, Any]:
    assert main(["selftest", "--json"]) == exit_code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.every_cpu
def test_every_kernel_of_this_cpu_is_ok(capsys: pytest.CaptureFixture[str]) -> None:
    found = verdict(capsys)
    assert found["ok"] and found["cpu"] == current_system().cpu
    assert [row["id"] for row in found["kernels"]] == [row.id for table in TABLES for row in table]
    for row in found["kernels"]:
        here = row["id"] in (*cases.KERNELS, *cases.INT4_KERNELS)
        assert row["verdict"] == ("ok" if here else "not for this CPU"), row
        assert (row["cases"] > 0, row["reasons"] == []) == (here, here)
        assert row["worst_error"] <= row["tolerance"] <= 1e-6 and (row["bits"] == 4 or row["tolerance"] == 0)


@pytest.mark.one_cpu
def test_the_text_has_what_the_json_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest"]) == 0
    text = capsys.readouterr().out
    assert text.endswith("verdict: ok\n") and torch.__version__ in text and current_system().cpu in text
    lines = text.splitlines()
    for row in verdict(capsys)["kernels"]:
        (line,) = (line for line in lines if line.startswith(f"{row['id']} "))
        assert line.endswith(row["verdict"])
        assert all(f"    - {reason}" in lines for reason in row["reasons"])


def broken(name: str, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Changes what an op gives."""
    op = getattr(_ops, name)
    monkeypatch.setattr(_ops, name, lambda *args: change(op(*args)))


def one_bit_off(output: Tensor) -> Tensor:
    output.view(-1)[0] = torch.nextafter(output.view(-1)[0], torch.tensor(torch.inf, dtype=output.dtype))
    return output


@pytest.mark.x86
@pytest.mark.parametrize(
    ("op", "change", "bits"),
    [
        pytest.param("linear_int8_dynamic", one_bit_off, 8, id="the last bit of a dynamic layer"),
        pytest.param("linear_int8_static", lambda output: output + 1, 8, id="a static layer"),
        pytest.param("linear_qta8a_qga4w", lambda output: output * 1.001, 4, id="a layer of 4 bits"),
        pytest.param("linear_qta8a_qga4w", lambda output: output * torch.nan, 4, id="NaN"),
        pytest.param("linear_qta8a_qga4w", lambda output: output.half(), 4, id="another dtype"),
        pytest.param("unpack_int8", lambda output: -output, 8, id="a weight that unpacks to another"),
    ],
)
def test_a_wrong_result_fails(
    op: str, change: Any, bits: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(op, monkeypatch, change)
    found = verdict(capsys, exit_code=1)
    assert not found["ok"]
    for row in found["kernels"]:
        if row["cases"]:
            assert row["verdict"] == ("FAILED" if row["bits"] == bits else "ok")
            assert bool(row["failures"]) == (row["bits"] == bits)


@pytest.mark.one_cpu
def test_a_failing_kernel_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One of several, which complains."""
    pack = _ops.pack_int8

    def failing(qdata: Tensor, kernel: str) -> Tensor:
        if kernel == cases.KERNELS[0]:
            raise RuntimeError("out of order")
        return pack(qdata, kernel)

    monkeypatch.setattr(_ops, "pack_int8", failing)
    assert main(["selftest"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"verdict: FAILED: {cases.KERNELS[0]}. Report all of the above")
    assert sum("out of order" in line for line in lines) == 5
    assert sum(line.startswith("    - and ") and line.endswith(" more") for line in lines) == 1


#: As docs/installation.md states them; others read them.
KEYS = "thread_counts kernels ok id bits features fits reasons cases worst_error tolerance failures verdict"


@pytest.mark.x86
def test_the_keys_of_the_json_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    found = verdict(capsys)
    assert set(KEYS.split()) == {*list(found)[-3:], *found["kernels"][0]}
    page = (Path(__file__).resolve().parents[1] / "docs/installation.md").read_text()
    assert [key for key in KEYS.split() if f"`{key}`" not in page] == []
