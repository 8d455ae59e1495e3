# Cross-compilation for arm64 with Debian's g++-aarch64-linux-gnu; programs run under qemu's user emulation.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)

find_program(PENSTOCK_QEMU NAMES qemu-aarch64-static qemu-aarch64)
if(PENSTOCK_QEMU)
  # "max" has every extension that qemu knows: dot products, i8mm, bf16.
  set(CMAKE_CROSSCOMPILING_EMULATOR ${PENSTOCK_QEMU} -cpu max -L /usr/aarch64-linux-gnu)
endif()
