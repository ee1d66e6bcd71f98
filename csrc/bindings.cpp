// The Python face of the primitives: names and conversions, no logic.

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>

#include <string>
#include <variant>

#include "kernels/partition.h"
#include "kernels/rates.h"
#include "kernels/team.h"
#include "primitives/broadcast.h"
#include "primitives/matmul.h"
#include "primitives/memory.h"
#include "primitives/operand.h"
#include "primitives/recurrence.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace mlx_recurrent;

namespace {

kernels::Activation activation_named(const std::string& name) {
  if (name == "tanh") {
    return kernels::Activation::tanh;
  }
  if (name == "relu") {
    return kernels::Activation::relu;
  }
  if (name == "sigmoid") {
    return kernels::Activation::sigmoid;
  }
  if (name == "identity") {
    return kernels::Activation::identity;
  }
  throw std::invalid_argument("[mlx_recurrent] no activation named " + name);
}

nb::dict described(const kernels::Partition& p) {
  nb::dict d;
  d["isa"] = kernels::table()->isa;
  d["threads"] = p.threads;
  d["split"] = p.split == kernels::Split::none ? "none"
      : p.split == kernels::Split::batch       ? "batch"
                                               : "hidden";
  return d;
}

} // namespace

NB_MODULE(_native, m) {
  m.doc() = "The native core of mlx_recurrent.";

  if (!kernels::table()) {
    throw nb::import_error(
        ("The environment variable MLX_RECURRENT_ISA names an instruction set "
         "that this processor or this build does not have; it has: " +
         std::string(kernels::available_isas()) + ".")
            .c_str());
  }

  m.def(
      "matmul",
      [](const mx::array& x,
         const mx::array& w,
         const std::optional<mx::array>& bias,
         mx::StreamOrDevice stream) {
        return matmul(x, w, bias, mx::to_stream(stream));
      },
      "x"_a,
      "w"_a,
      "bias"_a.none(),
      "stream"_a.none());

  m.def(
      "recurrence",
      [](const mx::array& x,
         const std::optional<mx::array>& Wxh,
         const std::optional<mx::array>& bias,
         const mx::array& Whh,
         const std::optional<mx::array>& hidden,
         const std::string& activation,
         const std::variant<bool, std::string>& return_state,
         mx::StreamOrDevice stream) -> nb::object {
        const bool* whether = std::get_if<bool>(&return_state);
        bool only = !whether;
        Arrays outputs = recurrence(
            x,
            Wxh,
            bias,
            Whh,
            hidden,
            activation_named(activation),
            only ? keep_square_root : keep_all,
            only || *whether,
            mx::to_stream(stream));
        return outputs.size() < 2 ? nb::cast(outputs[0])
            : only ? nb::cast(outputs[1])
                   : nb::object(nb::make_tuple(outputs[0], outputs[1]));
      },
      "x"_a,
      "Wxh"_a.none(),
      "bias"_a.none(),
      "Whh"_a,
      "hidden"_a.none(),
      "activation"_a,
      "return_state"_a,
      "stream"_a.none());

  m.def(
      "widen",
      [](const mx::array& x,
         const mx::array& hidden,
         mx::StreamOrDevice stream) {
        return widen(x, 2, hidden, 1, mx::to_stream(stream));
      },
      "x"_a,
      "hidden"_a,
      "stream"_a.none());

  m.def(
      "partition",
      [](int64_t N, int64_t L, int64_t D, int64_t H, mx::Dtype dtype) {
        return described(
            kernels::partition_recurrence(
                N,
                L,
                D,
                H,
                compute_bytes(dtype),
                kernels::this_machine(kernels::num_threads())));
      },
      "N"_a,
      "L"_a,
      "D"_a,
      "H"_a,
      "dtype"_a);

  m.def("get_num_threads", &kernels::num_threads);
  m.def("set_num_threads", &kernels::set_num_threads, "n"_a);
  m.def("release_scratch", &release_scratch);
  m.def("usable_cores", &kernels::usable_cores);
  m.def("isa", [] { return kernels::table()->isa; });
  m.def("available_isas", &kernels::available_isas);

  nb::call_guard<nb::gil_scoped_release> released;
  m.def(
      "measure_multiply_add",
      &kernels::multiply_add_rate,
      "threads"_a,
      released);
  m.def("measure_read", &kernels::read_rate, "threads"_a, "bytes"_a, released);
  m.def("measure_tanh", &kernels::tanh_seconds, released);
  m.def("measure_exchange", &kernels::exchange_seconds, released);
}
