// For readers and editors that take a file by itself that the build compiles once for each instruction set: the build
// says which one, and names a namespace after it.
#pragma once

#if !defined(AO_ARM_ISA)
#define AO_ARM_ISA isa_baseline
#endif
