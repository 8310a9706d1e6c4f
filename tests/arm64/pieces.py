"""What the emulated machine is made of besides its emulator: the cross compiler, the root file system."""

from pathlib import Path

from cache import Report, piece
from debian import codename, unpack
from wheels import PINS, PYTHON, unpack_wheels

SUITE = "trixie"
RECIPE = 1  # raise it when the way in which a piece is filled changes

COMPILER_PACKAGES = ("g++-aarch64-linux-gnu",)
ROOT_PACKAGES = (
    f"python{PYTHON}",
    f"python{PYTHON}-dev",  # torch.compile includes Python.h
    "libarm-compute-dev",
    "libkleidiai-dev",
    "libgomp1",
    "libstdc++6",
)
SITE_PACKAGES = "usr/lib/python3/dist-packages"
LIBRARIES = "usr/lib/x86_64-linux-gnu"  # of packages for this machine

# The compiler is an x86 program: it runs on this machine's own C library, which is of the same release.
NOT_WITH_COMPILER = frozenset({"libc6", "libgcc-s1", "libstdc++6"})

# Linked into a folder of their own: beside them are the C library's headers, which clash with the cross compiler's.
SDK_HEADERS = ("arm_compute", "half", "kai", "support", "utils", f"python{PYTHON}")
SDK_LIBRARIES = ("libarm_compute*.a", "libkleidiai*.a")


def compiler(report: Report) -> Path:
    """The folder of the cross compiler."""
    suite = codename()

    def fill(folder: Path) -> None:
        report("arm64: the first run downloads 1.5 GB, which takes some minutes: the cross compiler")
        unpack(
            COMPILER_PACKAGES,
            suite=suite,
            architecture="amd64",
            into=folder,
            wanted=lambda package: package not in NOT_WITH_COMPILER,
        )

    asked = {"suite": suite, "packages": COMPILER_PACKAGES, "recipe": RECIPE}
    return piece("compiler", asked, fill, report, megabytes=310)


def root_file_system(report: Report) -> Path:
    """The root file system, with the Python packages and with `sdk/`: what to compile and link against."""

    def fill(folder: Path) -> None:
        report("arm64: downloading the root file system")
        unpack(ROOT_PACKAGES, suite=SUITE, architecture="arm64", into=folder)
        for name in ("bin", "lib"):
            (folder / name).symlink_to(f"usr/{name}")
        link_sdk(folder)
        report(f"arm64: downloading {len(PINS)} Python packages, torch among them")
        unpack_wheels(folder / SITE_PACKAGES)

    asked = {"suite": SUITE, "packages": ROOT_PACKAGES, "python": PINS, "recipe": RECIPE}
    return piece("root", asked, fill, report, megabytes=1300)


def link_sdk(root: Path) -> None:
    """Make `sdk/include` and `sdk/lib`, with links that survive the renaming of the root."""
    include, lib = root / "sdk/include", root / "sdk/lib"
    lib.mkdir(parents=True)
    # Debian's pyconfig.h includes <aarch64-linux-gnu/python3.13/pyconfig.h>.
    (include / "aarch64-linux-gnu").mkdir(parents=True)
    for name in SDK_HEADERS:
        parent = "aarch64-linux-gnu" if name.startswith("python") else "."
        up = "../../.." if name.startswith("python") else "../.."
        if (root / "usr/include/aarch64-linux-gnu" / name).is_dir():
            (include / parent / name).symlink_to(f"{up}/usr/include/aarch64-linux-gnu/{name}")
    for pattern in SDK_LIBRARIES:
        for library in (root / "usr/lib/aarch64-linux-gnu").glob(pattern):
            (lib / library.name).symlink_to(f"../../usr/lib/aarch64-linux-gnu/{library.name}")
