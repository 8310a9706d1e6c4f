import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchao

import ao_arm
from ao_arm import kernels
from ao_arm.__main__ import main
from ao_arm.system import current_system


def shown(capsys: pytest.CaptureFixture[str], *arguments: str, exit_code: int = 0) -> str:
    assert main(["info", *arguments]) == exit_code
    return capsys.readouterr().out


def row_of(output: str, kernel: str) -> str:
    return next(line for line in output.splitlines() if line.startswith(f"{kernel} "))


@pytest.mark.parametrize(("n", "k", "group_size"), [(768, 768, 0), (1, 5, 0), (768, 768, 32), (1, 5, 5)])
def test_every_kernel_is_shown_with_cost_and_all_reasons(
    capsys: pytest.CaptureFixture[str], n: int, k: int, group_size: int
) -> None:
    options = ("--group-size", str(group_size)) if group_size else ()
    output = shown(capsys, "--n", str(n), "--k", str(k), *options)
    assert (f"4-bit weight in groups of {group_size}, (n, k)" if group_size else "int8 weight (n, k)") in output
    for kernel in kernels.list(n, k, group_size):
        row = row_of(output, kernel.id)
        assert all(feature in row for feature in kernel.features)
        for reason in kernel.reasons:
            assert f"- {reason}\n" in output
        if kernel.id == kernels.select(n, k, group_size):
            assert row.endswith("chosen")
        else:
            assert row.endswith("rejected" if kernel.reasons else "fits")
        if kernel.cost is not None:
            assert f"{kernel.cost:,.0f}" in row
    assert sum(line.endswith("chosen") for line in output.splitlines()) == 1


@pytest.mark.parametrize(("table", "settings"), [(1, ()), (2, (32,))], ids=["int8", "int4"])
def test_the_line_of_support(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, table: int, settings: tuple[int, ...]
) -> None:
    monkeypatch.delenv(kernels.FORCE, raising=False)
    header, rule, line = shown(capsys, "--support").splitlines()
    assert header.count("|") == rule.count("|") == line.count("|") == 5
    cpu, *chosen, others = line.strip("| ").split(" | ")
    served = {kernel.id for kernel in kernels.list(768, 768, *settings) if not kernel.reasons}
    first = kernels.select(768, 768, *settings)
    assert chosen[table - 1] == f"`{first}`"
    assert all(f"`{name}`" in others for name in served - {first})
    for kernel in kernels.list(768, 768, *settings):
        if kernel.id in served:
            assert all(feature in cpu for feature in kernel.features)
        else:
            assert kernel.id not in line


def test_the_system_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys)
    system = current_system()
    for fact in (system.cpu, *system.features, ao_arm.__version__, torch.__version__, torchao.__version__):
        assert fact in output
    assert "libao_arm." in output
    wants_acl = platform.machine() != "x86_64" and "Arm Compute Library" not in system.build
    assert ("not in this build" in output) == wants_acl
    if system.emulated:
        assert f"(emulated: {system.emulated})" in output


def test_a_forced_kernel_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.FORCE, "portable/baseline")
    output = shown(capsys)
    assert row_of(output, kernels.FORCE).endswith("portable/baseline")
    assert row_of(output, "portable/baseline").endswith("chosen")


def test_of_two_forced_kernels_the_one_for_the_weight_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernels.FORCE, "portable/baseline,portable/int4_baseline")
    assert row_of(shown(capsys), "portable/baseline").endswith("chosen")
    assert row_of(shown(capsys, "--group-size", "64"), "portable/int4_baseline").endswith("chosen")


def test_an_unknown_forced_kernel_does_not_stop_info(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernels.FORCE, "none/such")
    output = shown(capsys, exit_code=1)
    assert "no kernel is chosen: " in output
    assert row_of(output, "portable/baseline").endswith("fits")


def test_a_shape_that_no_kernel_serves(capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys, "--n", "0", exit_code=1)
    assert "no kernel is chosen: " in output
    assert all(row_of(output, kernel.id).endswith("rejected") for kernel in kernels.list())


def test_a_group_size_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys, "--k", "100", "--group-size", "32", exit_code=1)
    assert "no kernel is chosen: " in output and "k = 100 is no multiple of the group size 32" in output
    with pytest.raises(SystemExit):
        main(["info", "--group-size", "0"])
    assert "it must be at least 1, not 0" in capsys.readouterr().err


#: As docs/installation.md states them; others read them.
KEYS = {
    "cpu features emulated threads ao_arm torch torchao build library forced layer chosen complaint kernels",
    "n k group_size",
    "id summary features reasons cost verdict",
}


@pytest.mark.parametrize("group_size", [0, 64])
def test_json_has_what_the_text_has(capsys: pytest.CaptureFixture[str], group_size: int) -> None:
    options = ("--n", "128", "--k", "192", *(("--group-size", str(group_size)) if group_size else ()))
    found = json.loads(shown(capsys, "--json", *options))
    text = shown(capsys, *options)
    assert {" ".join(part) for part in (found, found["layer"], *found["kernels"])} == KEYS
    assert found["layer"] == {"n": 128, "k": 192, "group_size": group_size}
    table = kernels.list(128, 192, group_size)
    assert [row["id"] for row in found["kernels"]] == [kernel.id for kernel in table]
    for row, kernel in zip(found["kernels"], table, strict=True):
        assert row_of(text, row["id"]).endswith(row["verdict"])
        assert (tuple(row["features"]), tuple(row["reasons"])) == (kernel.features, kernel.reasons)
        assert row["cost"] == kernel.cost
    assert found["chosen"] == kernels.select(128, 192, group_size)
    assert (found["complaint"], found["cpu"], found["torch"]) == ("", current_system().cpu, torch.__version__)


def test_json_tells_why_no_kernel_is_chosen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernels.FORCE, "none/such")
    found = json.loads(shown(capsys, "--json", exit_code=1))
    assert (found["chosen"], found["forced"]) == (None, "none/such")
    assert "AO_ARM_KERNEL names an unknown kernel 'none/such'" in found["complaint"]


def test_the_keys_of_the_json_are_documented() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs/installation.md").read_text()
    assert {key for keys in KEYS for key in keys.split() if f"`{key}`" not in page} == set()


@pytest.mark.slow
@pytest.mark.x86
def test_info_works_without_what_the_demo_needs() -> None:
    code = (
        "import runpy, sys; sys.modules['transformers'] = None; sys.argv[1:] = ['info']; "
        "runpy.run_module('ao_arm', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert row_of(done.stdout, kernels.select(768, 768)).endswith("chosen")


@pytest.mark.slow
@pytest.mark.x86
def test_a_library_that_is_named_is_the_one_that_is_loaded() -> None:
    command = [sys.executable, "-c", "import ao_arm"]
    env = {**os.environ, "AO_ARM_LIBRARY": "/no/such/library"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode
    assert "looked for /no/such/library" in done.stderr
