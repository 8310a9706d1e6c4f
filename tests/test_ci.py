"""`.ci/run` finds in README.md and CONTRIBUTING.md each command that it runs; workflows run what pages say."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
SCRIPT = CHECKOUT / ".ci/run"
WORKFLOW = CHECKOUT / ".github/workflows/checks.yml"
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
#: What a copy of the script must not run here.
COMMANDS = ('eval "$found"', ".venv/bin/pre-commit run --all-files")

pytestmark = [pytest.mark.x86, pytest.mark.skipif(not SCRIPT.exists(), reason="source distributions have no .ci")]


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a copy that only prints the commands, beside the documents in a folder."""
    text = SCRIPT.read_text()
    for command in COMMANDS:
        assert text.count(command) == 1
        text = text.replace(command, ":")
    copy = folder / ".ci/run"
    copy.parent.mkdir()
    copy.write_text(text)
    return subprocess.run(["bash", copy], cwd=folder, capture_output=True, text=True)


def test_each_command_is_found(tmp_path: Path) -> None:
    for name in DOCUMENTS:
        shutil.copy2(CHECKOUT / name, tmp_path)
    done = run(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    printed = [line for line in done.stdout.splitlines() if not re.fullmatch(r"\(after \d+ s\)", line)]
    demo, hooks, soak, tests, wheel, arm64_wheel, runtimes, sanitized, fuzzed = printed
    assert demo.startswith("+ python3 -m venv .venv && ") and demo.endswith(" -m ao_arm demo")
    assert hooks.startswith("+ .venv/bin/pip install ") and hooks.endswith("/pre-commit install")
    assert soak == "+ .venv/bin/python tests/soak.py --seconds 10 --calls 20000 --bytes-apart 7"
    assert tests.startswith("+ .venv/bin/pip install ") and tests.endswith(" && .venv/bin/python -m pytest")
    for line, options in ((wheel, ""), (arm64_wheel, " --arm64")):
        build, tried = (f".venv/bin/python tests/wheels/{name}_wheel.py{options}" for name in ("build", "try"))
        assert line == f"+ {build} && {tried}"
    assert runtimes.startswith("+ python3 -m venv build/runtimes && ")
    assert runtimes.endswith(" tests/test_other_runtimes.py tests/arm64/test_cycles.py -k runtimes")
    assert sanitized == "+ .venv/bin/python tests/sanitized.py python kernels races --all"
    assert fuzzed == "+ .venv/bin/python tests/fuzzed.py"


def test_a_command_that_is_missing_fails_and_is_named(tmp_path: Path) -> None:
    for name in DOCUMENTS:
        (tmp_path / name).write_text((CHECKOUT / name).read_text().replace("pre-commit install", "pre-commit setup"))
    done = run(tmp_path)
    assert done.returncode == 1
    assert "neither README.md nor CONTRIBUTING.md has a command that ends in 'pre-commit install'" in done.stderr
    assert "pytest" not in done.stdout


def test_workflows_run_what_pages_tell_people_to_run() -> None:
    pages = "".join((CHECKOUT / name).read_text() for name in (*DOCUMENTS, "docs/installation.md"))
    steps = re.findall(r"^      - run: (.*)$", WORKFLOW.read_text(), re.MULTILINE)
    assert len(steps) > 10
    commands = {
        step.partition(" | tee ")[0] for step in steps if not step.startswith("apt-get update && apt-get install ")
    }
    assert [command for command in commands if command not in pages] == []
