# The toolchain that makes macOS' library on Linux: zig's compiler and linker, which
# bring macOS' C library with them. It is read twice: before CMake's own rules for
# Darwin, and after them, where it replaces those that are for Apple's linker.

set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(CMAKE_USER_MAKE_RULES_OVERRIDE_CXX "${CMAKE_CURRENT_LIST_FILE}")

find_program(zig NAMES python-zig REQUIRED)
if(NOT CMAKE_CXX_COMPILER)
  set(CMAKE_CXX_COMPILER "${zig}" c++)
endif()
set(CMAKE_CXX_COMPILER_TARGET aarch64-macos.$ENV{MACOSX_DEPLOYMENT_TARGET})
# Nothing that is made here can be run, and no piece but the module is linked.
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
# Needed only where a path in a library is changed as it is installed.
set(CMAKE_INSTALL_NAME_TOOL "${zig}")

set(CMAKE_CXX_ARCHIVE_CREATE "${zig} ar qcs <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_FINISH "")
# What the linker finds in no library is left to Python, of which there is none to link
# with. Flags of Apple's linker are not handed on.
set(CMAKE_CXX_CREATE_SHARED_MODULE
    "<CMAKE_CXX_COMPILER> <FLAGS> -shared -undefined dynamic_lookup \
-o <TARGET> <OBJECTS> <LINK_LIBRARIES>")
