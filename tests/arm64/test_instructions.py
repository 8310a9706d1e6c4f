"""Instructions beyond AArch64's baseline are found where they may not be."""

from pathlib import Path

from machine import Machine
from test_library_gate import BASELINE, judged


def test_objects_have_what_they_are_compiled_for_and_no_more(machine: Machine, tmp_path: Path) -> None:
    def found(place: str, instruction: str) -> list[str]:
        source = f'void ours() {{ __asm__(".arch armv8.6-a+sve+bf16\\n{instruction}"); }}'
        return judged(tmp_path, {place: (source, ())}, compiler=machine.tools() / "g++")

    dotprod, i8mm, sve256 = (f"CMakeFiles/ao_arm_{name}.dir/a.o" for name in ("dotprod", "i8mm", "sve256"))
    assert found(BASELINE, "mla v0.4s, v1.4s, v2.4s") == []
    assert found(dotprod, "sdot v0.4s, v1.16b, v2.16b") == found(i8mm, "smmla v0.4s, v1.16b, v2.16b") == []
    assert found(sve256, "smmla z0.s, z1.b, z2.b") == []
    for place, instruction, word in (
        (BASELINE, "sdot v0.4s, v1.16b, v2.16b", "4e829420"),
        (BASELINE, "ldadd w0, w1, [x2]", "b8200041"),
        (dotprod, "smmla v0.4s, v1.16b, v2.16b", "4e82a420"),
        (i8mm, "fadd z0.s, z1.s, z2.s", "65820020"),
        (sve256, "bfdot v0.4s, v1.8h, v2.8h", "6e42fc20"),
    ):
        (violation,) = found(place, instruction)
        assert f" of {place} may be run by any CPU but has 1 instructions that not each has: {word} at " in violation
