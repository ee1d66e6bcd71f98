// The linear scan's part of the Python face.

#pragma once

#include <nanobind/nanobind.h>

namespace mlx_recurrent {

void bind_linear_scan(nanobind::module_& m);

} // namespace mlx_recurrent
