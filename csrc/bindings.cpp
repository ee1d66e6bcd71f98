// The Python face of the primitives: names and conversions, no logic.

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <variant>

#include "kernels/cores.h"
#include "kernels/machine_speed.h"
#include "kernels/team.h"
#include "mlx_faults/file_readers.h"
#include "mlx_faults/interpreter.h"
#include "mlx_faults/stream_threads.h"
#include "primitives/broadcast.h"
#include "primitives/launch.h"
#include "primitives/matmul.h"
#include "primitives/memory.h"
#include "primitives/operand.h"
#include "primitives/pointwise.h"
#include "primitives/reading.h"
#include "primitives/steps.h"
#include "primitives/traced.h"
#include "recurrence_bindings.h"
#include "scan_bindings.h"
#include "streaming_bindings.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace mlx_recurrent;

namespace {

// Where memory runs out nanobind's own conversion ends the process.
Arrays arrays_of(nb::iterable arrays) {
  Arrays found;
  for (nb::handle a : arrays) {
    found.push_back(nb::cast<mx::array>(a));
  }
  return found;
}

} // namespace

NB_MODULE(_native, m) {
  m.doc() = "The native core of mlx_recurrent.";

  if (PyInterpreterState_GetID(PyInterpreterState_Get()) != 0) {
    throw nb::import_error(
        "mlx_recurrent cannot be imported in a subinterpreter, where MLX waits "
        "for ever: import it in the main interpreter, or in a process of its "
        "own.");
  }
  // One that was purged from sys.modules and is imported anew is the one
  // before: nanobind knows its types already.
  static PyObject* first = nullptr;
  if (first) {
    PyDict_Merge(PyModule_GetDict(m.ptr()), PyModule_GetDict(first), false);
    return;
  }

  if (!kernels::table()) {
    throw nb::import_error(
        ("The environment variable MLX_RECURRENT_ISA names an instruction set "
         "that this processor or this build does not have; it has: " +
         std::string(kernels::available_isas()) + ".")
            .c_str());
  }

  watch_forks();
  find_random_state();

  m.def(
      "matmul",
      [](const mx::array& x,
         const mx::array& w,
         const std::optional<mx::array>& bias,
         mx::StreamOrDevice stream) {
        return matmul(x, w, bias, stream_of(stream));
      },
      "x"_a,
      "w"_a,
      "bias"_a.none(),
      "stream"_a.none());

  m.def("blas", [] { return sgemm() ? kernels::blas().name : ""; });

  m.def(
      "widen",
      [](const mx::array& x,
         int x_tail,
         const mx::array& like,
         int like_tail,
         mx::StreamOrDevice stream) {
        return widen(x, x_tail, like, like_tail, stream_of(stream));
      },
      "x"_a,
      "x_tail"_a,
      "like"_a,
      "like_tail"_a,
      "stream"_a.none());

  m.def(
      "without_padding",
      [](const mx::array& x,
         const mx::array& lengths,
         mx::StreamOrDevice stream) {
        return without_padding(x, lengths, stream_of(stream));
      },
      "x"_a,
      "lengths"_a,
      "stream"_a.none());

  m.def(
      "without_skipped",
      [](const mx::array& x, const mx::array& mask, mx::StreamOrDevice stream) {
        return without_skipped(x, mask, stream_of(stream));
      },
      "x"_a,
      "mask"_a,
      "stream"_a.none());

  m.def(
      "last_step",
      [](const mx::array& y,
         const std::optional<mx::array>& otherwise,
         mx::StreamOrDevice stream) {
        return step_at(y, End::last, otherwise, {}, stream_of(stream));
      },
      "y"_a,
      "otherwise"_a.none(),
      "stream"_a.none());

  m.def(
      "two_steps",
      [](const mx::array& first,
         const mx::array& last,
         mx::StreamOrDevice stream) {
        return two_steps(first, last, stream_of(stream));
      },
      "first"_a,
      "last"_a,
      "stream"_a.none());

  nb::class_<TracedReference>(m, "Traced")
      .def(
          "__eq__",
          [](const TracedReference& a, const TracedReference& b) {
            return a.traced == b.traced;
          },
          nb::is_operator())
      .def(
          "__hash__",
          [](const TracedReference& reference) {
            return std::hash<std::shared_ptr<Traced>>()(reference.traced);
          })
      .def_prop_ro(
          "operations",
          [](const TracedReference& reference) {
            return reference.traced->expression().names();
          })
      .def_prop_rw(
          "verdict",
          [](const TracedReference& reference) -> std::optional<bool> {
            auto verdict = reference.traced->verdict.load();
            return verdict == Traced::Verdict::unknown
                ? std::nullopt
                : std::optional(verdict == Traced::Verdict::equal);
          },
          [](const TracedReference& reference, bool equal) {
            reference.traced->verdict =
                equal ? Traced::Verdict::equal : Traced::Verdict::different;
          });
  nb::class_<Reading>(m, "Reading")
      .def_ro("obstacle", &Reading::obstacle)
      .def_ro("own", &Reading::own)
      .def("difference", &difference, "other"_a)
      .def(
          "known",
          [](const Reading& reading, mx::Dtype dtype) {
            auto traced = Traced::known(reading.expression, dtype);
            return traced ? std::optional(TracedReference{std::move(traced)})
                          : std::nullopt;
          },
          "dtype"_a)
      .def(
          "trace",
          [](const Reading& reading, mx::Dtype dtype) {
            return TracedReference{Traced::of(reading.expression, dtype)};
          },
          "dtype"_a);
  bind_recurrence(m);
  bind_linear_scan(m);
  bind_streaming(m);
  m.def("read", &read_call, "result"_a, "argument"_a);
  m.def(
      "graph_of",
      [](nb::iterable results, nb::iterable arguments) {
        Arrays given = arrays_of(arguments);
        bool evaluated = false;
        for (const mx::array& a : given) {
          evaluated |= a.status() != mx::array::Status::unscheduled;
        }
        nb::dict found;
        for (const mx::array& a : arrays_of(arrays_of(results), given)) {
          nb::list shape;
          for (int size : a.shape()) {
            shape.append(size);
          }
          found[nb::int_(a.id())] = nb::make_tuple(nb::tuple(shape), a.dtype());
        }
        return nb::make_tuple(evaluated, found);
      },
      "results"_a,
      "arguments"_a);
  m.def(
      "operations_of",
      [](nb::iterable results, nb::iterable arguments) {
        nb::set names;
        for (const mx::array& a :
             arrays_of(arrays_of(results), arrays_of(arguments))) {
          if (a.has_primitive()) {
            names.add(nb::str(a.primitive().name()));
          }
        }
        return names;
      },
      "results"_a,
      "arguments"_a);
  m.def(
      "replay",
      [](const mx::array& a, const TracedReference& function) {
        return function.traced->expression().replay({a})[0];
      },
      "a"_a,
      "function"_a);
  m.def(
      "pointwise",
      [](const mx::array& a,
         const TracedReference& function,
         mx::StreamOrDevice stream) {
        return pointwise({a}, function.traced, stream_of(stream));
      },
      "a"_a,
      "function"_a,
      "stream"_a.none());

  m.def(
      "expect_threads",
      [](nb::iterable arrays) { expect_threads(arrays_of(arrays)); },
      "arrays"_a);
  m.def("expect_file_readers", &expect_file_readers);
  m.def(
      "expect_after_fork",
      [](nb::iterable arrays) { expect_after_fork(arrays_of(arrays)); },
      "arrays"_a);
  m.def(
      "expect_operands",
      [](nb::iterable operands, mx::StreamOrDevice stream) {
        expect_operands(arrays_of(operands), stream_of(stream));
      },
      "operands"_a,
      "stream"_a.none());
  m.def("random_key", &random_key);
  m.def("get_num_threads", &kernels::num_threads);
  m.def("set_num_threads", &kernels::set_num_threads, "n"_a);
  m.def("release_scratch", &release_scratch);
  m.def("usable_cores", &kernels::usable_cores);
  m.def("cores_by_kind", [] {
    kernels::Cores cores = kernels::cores_by_kind();
    return nb::make_tuple(cores.fast, cores.slow);
  });
  m.def("cpu_quota", [] {
    double cores = kernels::cpu_quota();
    return cores > 0 ? std::optional(cores) : std::nullopt;
  });
  m.def("isa", [] { return kernels::table()->isa; });
  m.def("available_isas", &kernels::available_isas);

  nb::call_guard<Released> released;
  m.def(
      "measure_multiply_add",
      &kernels::multiply_add_rate,
      "threads"_a,
      released);
  m.def("measure_read", &kernels::read_rate, "threads"_a, "bytes"_a, released);
  m.def("measure_tanh", &kernels::tanh_seconds, released);
  m.def("measure_exchange", &kernels::exchange_seconds, released);

  first = m.inc_ref().ptr();
}
