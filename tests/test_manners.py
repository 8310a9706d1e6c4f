"""What a package and a command owe to whoever uses them: names, types, exit codes, clean streams, Ctrl-C."""

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import notebooks
import pytest
from benchmarked import bench

import ao_arm
from ao_arm.__main__ import main
from ao_arm.benchmark import command, measuring

CHECKOUT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.x86


# --- names and types ---


def test_dir_shows_the_public_names_alone() -> None:
    shown = [name for name in dir(ao_arm) if not name.startswith("__")]
    assert shown == sorted(ao_arm.__all__)
    assert "passes" in shown and "__version__" in dir(ao_arm)


def imports_of_tutorials() -> Iterator[tuple[str, str]]:
    """Each module of ours that a tutorial imports from, and a name that it imports."""
    for path in notebooks.FOLDER.glob("*.ipynb"):
        for cell in notebooks.read(path.name).cells:
            for module, names in re.findall(r"^from (ao_arm[\w.]*) import (.+)$", cell.source, re.MULTILINE):
                yield from ((module, name.strip()) for name in names.split(","))


def test_what_tutorials_import_is_public() -> None:
    found = set(imports_of_tutorials())
    assert len(found) > 5
    page = (CHECKOUT / "docs/api.md").read_text()
    described = {f"{module}.{name}" for module, name in found if f"automodule:: {module}\n" in page}
    described |= {f"{module}.{name}" for module, name in found if f"autofunction:: {module}.{name}\n" in page}
    assert {f"{module}.{name}" for module, name in found} - described == set()
    public = {module.split(".")[1] for module, _ in found if "." in module} - {"demo"}
    assert public <= set(ao_arm.__all__)


PROGRAM = """
    import ao_arm

    reveal_type(ao_arm.acl_int8_dynamic())
    reveal_type(ao_arm.acl_int4_grouped(group_size=32).group_size)
    reveal_type(ao_arm.kernels.select(64, 64))
    reveal_type(ao_arm.kernels.list()[0].cost)
    reveal_type(ao_arm.explain)
    reveal_type(ao_arm.ACLPackedTensor.from_plain)
    reveal_type(ao_arm.system.current_system().threads)
    ao_arm.acl_int4_grouped(group_size="32")
"""


@pytest.mark.slow
def test_mypy_sees_the_types(tmp_path: Path) -> None:
    """Of the package as it would be installed: without py.typed, mypy takes all of it for Any."""
    pytest.importorskip("mypy")
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    # What others wrote takes a minute, and is not what is asked for.
    others = (
        "torch torchao numpy tqdm transformers accelerate gguf tokenizers matplotlib nbclient nbformat peft safetensors"
    )
    patterns = ",".join(f"{name}.*" for name in others.split())
    (tmp_path / "mypy.ini").write_text(f"[mypy]\n[mypy-{patterns}]\nfollow_imports = skip\n")
    command = (sys.executable, "-m", "mypy", "--strict", "--no-incremental", "program.py")
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("program.py")]
    revealed = [line.partition("Revealed type is ")[2].strip('"') for line in lines if "Revealed" in line]
    assert [kind for kind in revealed if kind == "Any"] == [] and len(revealed) == 7, done.stdout
    assert revealed[0].endswith("ACLInt8DynamicActivationInt8WeightConfig")
    assert revealed[2].endswith("str") and "float | None" in revealed[3] and revealed[6].endswith("int")
    assert "Explanation" in revealed[4] and "ACLPackedTensor" in revealed[5]
    assert any('incompatible type "str"; expected "int | None"' in line for line in lines), done.stdout


@pytest.mark.slow
def test_inductor_is_imported_when_it_is_needed() -> None:
    """What graph passes are made of takes longer to import than all else of ao_arm."""
    program = "import sys, ao_arm, torch; print('ao_arm' in torch._dynamo.list_backends(), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    known, *imported = done.stdout.split()
    assert known == "True" and "ao_arm.passes" in imported
    assert not {"ao_arm.passes.fusion", "ao_arm.passes.compiler"} & {*imported}
    assert {*ao_arm.passes.__all__} <= {*dir(ao_arm.passes)}
    with pytest.raises(AttributeError, match=r"module 'ao_arm.passes' has no attribute 'fusing'"):
        ao_arm.passes.fusing  # noqa: B018


# --- the command ---


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"ao_arm {ao_arm.__version__}\n")
    assert f'\nversion = "{ao_arm.__version__}"\n' in (CHECKOUT / "pyproject.toml").read_text()


def test_a_reader_that_leaves_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As of `info | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["info"]) == 141
    assert capsys.readouterr().err == ""


# --- Ctrl-C ---

CASES = ("2x32x32", "3x32x32")


def test_ctrl_c_ends_any_command_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_subjects", interrupted)
    assert main(["bench", "--shapes", CASES[0]]) == 130
    assert capsys.readouterr().err == "ao_arm bench: interrupted\n"


@pytest.mark.parametrize("finished", [0, 1])
def test_bench_keeps_what_it_has_measured(
    finished: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def measured(*arguments: object) -> Iterator[object]:
        rows = measuring.measure(*arguments)  # type: ignore[arg-type]
        for _ in range(finished):
            yield next(rows)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure", measured)
    file = tmp_path / "results.json"
    assert bench("--shapes", ",".join(CASES), "--no-timing", "--json", str(file)) == 130
    output = capsys.readouterr()
    what = "1 of 2 cases were finished" if finished else "no case was finished"
    assert output.err == f"ao_arm bench: interrupted: {what}\n"
    assert ("results: SQNR to fp32" in output.out) == file.exists() == bool(finished)
    if finished:
        assert {row["name"] for row in json.loads(file.read_text())["measurements"]} == {CASES[0]}
