# MLX's types are shared through nanobind only by modules of one ABI: this is
# asked of both before anything is built.

# The number in the tag that MLX's module carries: "v20_system_..." up to
# nanobind 2, "nanobind_system_..._a1_v22" since.
file(GLOB module "${MLX_ROOT}/core.*.so")
file(STRINGS "${module}" tag REGEX "^(v[0-9]+_|nanobind_.*_v[0-9]+$)")
string(REGEX REPLACE "^(nanobind_.*_)?v([0-9]+).*" "\\2" mlx_abi "${tag}")

file(GLOB internals "${nanobind_ROOT}/src/nb_abi.h"
     "${nanobind_ROOT}/src/nb_internals.h")
foreach(header ${internals})
  file(STRINGS "${header}" line REGEX "define NB_INTERNALS_VERSION")
  if(line MATCHES "([0-9]+)")
    set(nanobind_abi ${CMAKE_MATCH_1})
  endif()
endforeach()

if(NOT mlx_abi STREQUAL nanobind_abi)
  set(of_abi_20 "2.13 or 2.14: pip install \"nanobind>=2.13,<2.15\"")
  set(of_abi_21 "2.15: pip install \"nanobind==2.15.*\"")
  set(of_abi_22 "3: pip install \"nanobind>=3,<4\"")
  if(NOT DEFINED of_abi_${mlx_abi})
    set(of_abi_${mlx_abi} "of the ABI that its module names, \"${tag}\"")
  endif()
  message(
    FATAL_ERROR
      "MLX ${MLX_VERSION} and nanobind ${nanobind_VERSION} have different ABIs; "
      "MLX ${MLX_VERSION} needs nanobind ${of_abi_${mlx_abi}}.")
endif()
