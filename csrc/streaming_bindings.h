// The Python face of Stream.

#pragma once

#include <nanobind/nanobind.h>

namespace mlx_recurrent {

void bind_streaming(nanobind::module_& m);

} // namespace mlx_recurrent
