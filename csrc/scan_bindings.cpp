#include "scan_bindings.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "mlx_faults/stream_threads.h"
#include "primitives/linear_scan.h"

namespace mlx_recurrent {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Paths = std::vector<std::tuple<int, int, std::optional<mx::array>>>;

std::vector<ScanPath> paths_of(const Paths& paths) {
  std::vector<ScanPath> all;
  for (const auto& [to, from, factor] : paths) {
    all.push_back({{to, from}, factor});
  }
  return all;
}

} // namespace

void bind_linear_scan(nb::module_& m) {
  m.def(
      "linear_scan",
      [](const StateArrays& s,
         const mx::array& V,
         int slabs,
         const Paths& A,
         const Paths& B,
         const std::optional<mx::array>& gamma,
         const StateArrays& hidden,
         const StateArrays& hidden0,
         const std::optional<mx::array>& lengths,
         const std::optional<mx::array>& reset,
         bool reverse,
         int truncate_every,
         bool transposed,
         mx::StreamOrDevice stream) {
        CourseForm form;
        form.reverse = reverse;
        form.truncate_every = truncate_every;
        return linear_scan(
            {V, gamma, paths_of(A), paths_of(B), s, hidden, hidden0},
            slabs,
            {form, lengths, reset},
            transposed,
            stream_of(stream));
      },
      nb::kw_only(),
      "s"_a,
      "V"_a,
      "slabs"_a,
      "A"_a,
      "B"_a,
      "gamma"_a.none(),
      "hidden"_a,
      "hidden0"_a,
      "lengths"_a.none(),
      "reset"_a.none(),
      "reverse"_a,
      "truncate_every"_a,
      "transposed"_a,
      "stream"_a.none());
}

} // namespace mlx_recurrent
