"""The documentation is true: pages are linked, its Python runs, messages and settings it quotes are the sources'."""

import ast
import inspect
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType

import cases
import notebooks
import pytest
import torch
from torchao.quantization import FqnToConfig, MappingType, quantize_

import ao_arm
from ao_arm.affine_quantized import packed_weight_of

CHECKOUT = Path(__file__).resolve().parents[1]
DOCS = CHECKOUT / "docs"

pytestmark = pytest.mark.x86


def read(name: str) -> str:
    return (CHECKOUT / name).read_text()


# --- pages ---


@pytest.mark.slow
def test_the_pages_are_built_and_their_links_resolve(tmp_path: Path) -> None:
    """By CONTRIBUTING's command, into another folder."""
    (command,) = re.findall(r"^\.venv/bin/python (-m sphinx .*) build/site$", read("CONTRIBUTING.md"), re.MULTILINE)
    done = subprocess.run([sys.executable, *command.split(), tmp_path], cwd=CHECKOUT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    first = (tmp_path / "README.html").read_text()
    pages = [*DOCS.glob("*.md"), *notebooks.FOLDER.glob("*.ipynb")]
    assert len(pages) > 10
    assert [page for page in pages if f'href="{page.parent.name}/{page.stem}.html"' not in first] == []
    assert 'id="ao_arm.ACLPackedTensor.from_plain"' in (tmp_path / "docs/api.html").read_text()


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/\w+\.md)\)", read("README.md")))
    assert linked == {f"docs/{path.name}" for path in DOCS.glob("*.md")}


# --- messages ---


def literals_of_python(text: str) -> Iterator[str]:
    """String literals without docstrings; of an f-string each part between its fields."""
    tree = ast.parse(text)
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.value


def literals_of_c(text: str) -> Iterator[str]:
    """String literals of C++ and of CMake, adjacent ones as one."""
    code = re.sub(r"^\s*(//|#(?!define)).*$", "", text, flags=re.MULTILINE)
    for run in re.findall(r'"(?:[^"\\\n]|\\.)*"(?:\s*"(?:[^"\\\n]|\\.)*")*', code):
        yield re.sub(r'"\s*"', "", run)[1:-1]


@pytest.fixture(scope="module")
def literals() -> list[str]:
    """All string literals of the package, the library and its build."""
    found = [text for path in (CHECKOUT / "ao_arm").rglob("*.py") for text in literals_of_python(path.read_text())]
    sources = [*(CHECKOUT / "csrc").rglob("*.cpp"), *(CHECKOUT / "csrc").rglob("*.h"), CHECKOUT / "csrc/CMakeLists.txt"]
    return found + [text for path in sources for text in literals_of_c(path.read_text())]


def test_quoted_messages_are_in_the_sources(literals: list[str]) -> None:
    """Headings in code font, each within one literal."""
    messages = re.findall(r"^### `(.+)`$", read("docs/troubleshooting.md"), re.MULTILINE)
    assert len(messages) > 40
    assert [message for message, count in Counter(messages).items() if count > 1] == []
    assert [message for message in messages if not any(message in literal for literal in literals)] == []


# --- settings, limits, commands ---


def test_every_setting_is_described() -> None:
    files = [path for folder in ("ao_arm", "tests") for path in (CHECKOUT / folder).rglob("*.py")]
    texts = [path.read_text() for path in files if path != Path(__file__).resolve()]
    texts += [cell.source for path in notebooks.FOLDER.glob("*.ipynb") for cell in notebooks.read(path.name).cells]
    cmake = read("csrc/CMakeLists.txt")
    used = {name for text in texts for name in re.findall(r"""["'](AO_ARM_[A-Z_]+)["']""", text)}
    used |= set(re.findall(r"^(?:option|set)\((AO_ARM_\w+) .*(?:CACHE| OFF\))", cmake, re.MULTILINE))
    assert len(used) > 8
    described = set(re.findall(r"AO_ARM_[A-Z_]+", read("docs/installation.md")))
    assert used - described == set()
    assert [name for name in described if not any(name in text for text in (*texts, cmake))] == []


def test_versions_are_those_that_are_asked_for() -> None:
    page, cmake = read("docs/installation.md"), read("csrc/CMakeLists.txt")
    least = re.search(r"AO_ARM_LEAST_ACL ([\d.]+)\)", cmake)
    kleidiai = re.search(r"no KleidiAI ([\d.]+) or newer", cmake)
    torch_needed = re.search(r'"torch>=([\d.]+)"', read("pyproject.toml"))
    assert least and kleidiai and torch_needed
    assert f"Arm Compute Library (ACL) {least[1]} or newer" in page
    assert f"KleidiAI {kleidiai[1]} or newer" in page
    assert f"torch {torch_needed[1]} or newer" in page


def test_the_longest_row() -> None:
    (longest,) = {int(number) for number in re.findall(r"\b(66\d{3})\b", read("docs/numerics.md"))}
    for group_size in (0, longest):
        assert any(not kernel.reasons for kernel in ao_arm.kernels.list(1, longest, group_size))
    for group_size in (0, longest + 1):
        assert all(kernel.reasons for kernel in ao_arm.kernels.list(1, longest + 1, group_size))
    (with_minus_128,) = {int(number) for number in re.findall(r"\b(65\d{3})\b", read("docs/numerics.md"))}
    for more, expected in ((0, False), (1, True)):
        rows = ao_arm.kernels.list(1, with_minus_128 + more, full_range=True)
        assert all(kernel.reasons for kernel in rows) == expected


# --- Python in the pages ---


def blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", read(name), re.MULTILINE | re.DOTALL)


def test_the_formula_of_a_dynamic_layer() -> None:
    (block,) = blocks("docs/numerics.md")
    exec(compile(block, "numerics.md", "exec"), {})


@pytest.mark.slow
def test_a_checkpoint_is_read_without_ao_arm(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(96, 40), torch.nn.Linear(40, 64), torch.nn.Linear(64, 33)).bfloat16()
    configs = {
        "0": ao_arm.acl_int8_dynamic(),
        "1": ao_arm.acl_int8_static(None, 0.02, 9, MappingType.ASYMMETRIC, torch.uint8),
        "2": ao_arm.acl_int4_grouped(32, MappingType.ASYMMETRIC),
    }
    quantize_(model, FqnToConfig(configs), filter_fn=None)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    (block,) = blocks("docs/checkpoint_format.md")
    check = "\nimport sys\nassert 'ao_arm' not in sys.modules\ntorch.save(weights, 'plain.pt')\n"
    subprocess.run([sys.executable, "-c", block + check], cwd=tmp_path, check=True)
    plain = torch.load(tmp_path / "plain.pt")
    for name in ("0.weight", "1.weight", "2.weight"):
        packed = packed_weight_of(model.get_parameter(name))
        assert packed is not None
        assert cases.same_bits(plain[name], packed.dequantize()), name


def test_the_keys_of_a_checkpoint() -> None:
    packed = ao_arm.ACLPackedTensor.from_hp(torch.randn(4, 32))
    _, (state,) = ao_arm.checkpoint.reduce_packed(packed)
    page = read("docs/checkpoint_format.md")
    named = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert named[: len(state)] == list(state)
    assert set(named[len(state) :]) == set(state["layout"])
    assert f"version {ao_arm.checkpoint.FORMAT_VERSION}\n" in page.splitlines(keepends=True)[0]


# --- the API reference ---


def public_modules() -> list[ModuleType]:
    return [ao_arm, *(value for name in ao_arm.__all__ if inspect.ismodule(value := getattr(ao_arm, name)))]


def public_objects() -> Iterator[tuple[str, object]]:
    """Public functions and classes, and methods and properties of ours, by their qualified names."""
    for module in public_modules():
        for name in getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")]):
            value = getattr(module, name)
            if not inspect.isclass(value) and not inspect.isfunction(value):
                continue
            if not hasattr(module, "__all__") and value.__module__ != module.__name__:
                continue
            yield f"{module.__name__}.{name}", value
            for member, found in vars(value).items() if inspect.isclass(value) else ():
                function = getattr(found, "__func__", found)
                ours = isinstance(function, property) or inspect.isfunction(function)
                if ours and not member.startswith("_"):
                    yield f"{module.__name__}.{name}.{member}", function


PUBLIC = dict(public_objects())


def fields_of(value: object) -> list[str]:
    """The fields of a data class or a named tuple."""
    named = is_dataclass(value) or hasattr(value, "_fields")
    return [name for name in getattr(value, "__annotations__", ()) if not name.startswith("_")] if named else []


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_have_docstrings(name: str) -> None:
    value = PUBLIC[name]
    text = value.__doc__ or ""
    assert len(text.split()) >= 3 and not text.startswith(f"{name.rpartition('.')[2]}("), text
    assert [field for field in fields_of(value) if not re.search(rf"\b{field}\b", text)] == []
    if "    Args:\n" in text and inspect.isfunction(value):
        arguments = set(inspect.signature(value).parameters) - {"cls", "self"}
        assert {argument for argument in arguments if not re.search(rf"\b{argument}\b", text)} == set()


@pytest.mark.parametrize("module", public_modules(), ids=lambda module: module.__name__)
def test_public_constants_have_docstrings(module: ModuleType) -> None:
    assert module.__doc__ and module.__file__
    body = ast.parse(Path(module.__file__).read_text()).body
    for statement, following in zip(body, [*body[1:], None], strict=True):
        for target in statement.targets if isinstance(statement, ast.Assign) else ():
            if isinstance(target, ast.Name) and not target.id.startswith("_"):
                described = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                assert described, f"{module.__name__}.{target.id}"
