// The recurrence in Python.

#pragma once

#include <nanobind/nanobind.h>

namespace mlx_recurrent {

void bind_recurrence(nanobind::module_& m);

} // namespace mlx_recurrent
