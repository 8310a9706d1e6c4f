# Cross-builds for AArch64. AO_ARM_CROSS_TOOLS is the folder of the cross compiler's programs (machine.py writes it).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)

# CMake's own compiler checks are projects of their own: without this they would not see the variable.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES AO_ARM_CROSS_TOOLS)

set(CMAKE_C_COMPILER "${AO_ARM_CROSS_TOOLS}/gcc")
set(CMAKE_CXX_COMPILER "${AO_ARM_CROSS_TOOLS}/g++")
foreach(tool AR NM OBJCOPY OBJDUMP RANLIB READELF STRIP)
  string(TOLOWER ${tool} program)
  set(CMAKE_${tool} "${AO_ARM_CROSS_TOOLS}/${program}" CACHE FILEPATH "")
endforeach()
set(CMAKE_LINKER "${AO_ARM_CROSS_TOOLS}/ld" CACHE FILEPATH "")

# Programs come from this machine; headers and libraries must be named, never found in this machine's folders.
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_USE_CMAKE_SYSTEM_PATH FALSE)
set(CMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH FALSE)
set(CMAKE_FIND_USE_PACKAGE_REGISTRY FALSE)

# torch's libraries bring libraries that are absent from the compiler's folders.
set(CMAKE_SHARED_LINKER_FLAGS_INIT "-Wl,--allow-shlib-undefined")
set(CMAKE_MODULE_LINKER_FLAGS_INIT "-Wl,--allow-shlib-undefined")
set(CMAKE_EXE_LINKER_FLAGS_INIT "-Wl,--allow-shlib-undefined")
