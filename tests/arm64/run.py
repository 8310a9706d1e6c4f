"""Runs the emulated Python: `python tests/arm64/run.py [--cpu CPU] -- ARGS...`.

For example `-- -m ao_arm info` or `-- -m pytest tests/test_tensor.py -q`. It runs in a copy of the checkout, so give
files outside the project by absolute paths.
"""

import argparse
import sys
from functools import partial

from machine import CPUS, BuildError, Machine, Unavailable


def main() -> int:
    """Run Python with the arguments given and return its exit code."""
    parser = argparse.ArgumentParser(description="Run the project's Python on emulated AArch64.")
    parser.add_argument("--cpu", choices=CPUS, default="neoverse-v1", help="CPU model (default: %(default)s)")
    parser.add_argument("args", nargs="*", metavar="ARGS", help="after `--`: what Python is to run")
    given = parser.parse_args()
    report = partial(print, file=sys.stderr, flush=True)
    try:
        with Machine(report).start(given.cpu, given.args, stdout=None) as process:
            return process.wait()
    except (Unavailable, BuildError) as error:
        report(f"arm64: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
