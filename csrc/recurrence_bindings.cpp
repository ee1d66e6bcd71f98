// The recurrence's part of the Python face. A call comes as objects, whose
// attributes have the names that they have here: no order is to be kept.

#include "recurrence_bindings.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <string>
#include <variant>
#include <vector>

#include "cell_names.h"
#include "mlx_faults/stream_threads.h"
#include "primitives/launch.h"
#include "primitives/reading.h"
#include "primitives/recurrence_slots.h"

namespace mlx_recurrent {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Slot = RecurrenceSlot;

// Operations that a cell may have.
constexpr int kMostOfCell = 1024;

// Where memory runs out nanobind's own conversion ends the process.
Arrays arrays_of(nb::iterable arrays) {
  Arrays found;
  for (nb::handle a : arrays) {
    found.push_back(nb::cast<mx::array>(a));
  }
  return found;
}

// Python finds a name by its identity: made once, and kept.
PyObject* interned(const char* name) {
  return PyUnicode_InternFromString(name);
}

nb::object attribute(nb::handle object, PyObject* name) {
  PyObject* found = PyObject_GetAttr(object.ptr(), name);
  if (!found) {
    nb::raise_python_error();
  }
  return nb::steal(found);
}

template <class T>
void read(nb::handle object, PyObject* name, T& number) {
  number = nb::cast<T>(attribute(object, name));
}

// Arrays, each an attribute with the name of its slot, or None.
void read(
    nb::handle object,
    std::initializer_list<Slot> slots,
    Slotted<Slot>& arrays) {
  static PyObject* names[Slotted<Slot>::most] = {};
  for (Slot slot : slots) {
    PyObject*& name = names[static_cast<int>(slot)];
    if (!name) {
      name = interned(kind_of(slot).name);
    }
    nb::object found = attribute(object, name);
    if (!found.is_none()) {
      arrays[slot] = nb::cast<mx::array>(found);
    }
  }
}

// What each of a cell's states has, of a tuple that is an attribute.
template <class Take>
void read_each(nb::handle object, PyObject* name, int states, Take take) {
  nb::object all = attribute(object, name);
  for (int k = 0; k < states; ++k) {
    take(k, all[k]);
  }
}

void read_each(
    nb::handle object,
    PyObject* name,
    int states,
    Slot first,
    Slotted<Slot>& arrays) {
  read_each(object, name, states, [&](int k, nb::handle found) {
    if (!found.is_none()) {
      arrays[nth(first, k)] = nb::cast<mx::array>(found);
    }
  });
}

Slotted<Slot> operands_of(
    nb::handle operands,
    const kernels::CellShape& shape =
        kernels::shape_of(kernels::CellKind::elman)) {
  static PyObject* const states = interned("states");
  Slotted<Slot> arrays;
  read(operands, {Slot::x, Slot::Wxh, Slot::bias, Slot::Whh}, arrays);
  if (shape.state_only > 0) {
    read(operands, {Slot::bhn}, arrays);
  }
  if (shape.parameters > 0) {
    read(operands, {Slot::parameters}, arrays);
  }
  read_each(operands, states, shape.states, Slot::hidden, arrays);
  return arrays;
}

void read_options(
    nb::handle options,
    Slotted<Slot>& arrays,
    RecurrenceForm& form) {
  using kernels::Drawn;
  read(options, {Slot::lengths, Slot::reset, Slot::mask, Slot::key}, arrays);
  static PyObject* const starts = interned("starts");
  static PyObject* const leaks = interned("leaks");
  static PyObject* const zoneouts = interned("zoneouts");
  int states = form.shape().states;
  read_each(options, starts, states, Slot::hidden0, arrays);
  read_each(options, leaks, states, Slot::leak, arrays);
  read_each(options, zoneouts, states, [&](int k, nb::handle probability) {
    form.probability(kernels::zoneout_of(k)) = nb::cast<double>(probability);
  });
  static PyObject* const reverse = interned("reverse");
  static PyObject* const flips = interned("flips");
  static PyObject* const truncate_every = interned("truncate_every");
  static PyObject* const checkpoint_every = interned("checkpoint_every");
  static PyObject* const recurrent_dropout = interned("recurrent_dropout");
  static PyObject* const input_dropout = interned("input_dropout");
  read(options, reverse, form.course.reverse);
  read(options, flips, form.course.flips);
  read(options, truncate_every, form.course.truncate_every);
  read(options, checkpoint_every, form.checkpoint_every);
  read(options, recurrent_dropout, form.probability(Drawn::recurrent_dropout));
  read(options, input_dropout, form.probability(Drawn::input_dropout));
}

Returned returned_of(const std::variant<bool, std::string>& return_state) {
  const bool* whether = std::get_if<bool>(&return_state);
  return !whether ? Returned::state
      : *whether  ? Returned::both
                  : Returned::states;
}

// Operands in a tuple; none where one is neither an array nor None.
std::optional<Slotted<Slot>> plain_operands(
    const nb::tuple& operands,
    kernels::CellKind kind) {
  // What a cell has beside those of all.
  Slot own = kind == kernels::CellKind::gru ? Slot::bhn : nth(Slot::hidden, 1);
  const Slot order[] = {
      Slot::x, Slot::Wxh, Slot::bias, Slot::Whh, Slot::hidden, own};
  size_t count = kind == kernels::CellKind::elman ? 5 : 6;
  if (operands.size() != count) {
    return {};
  }
  Slotted<Slot> arrays;
  for (size_t i = 0; i < count; ++i) {
    nb::handle found = operands[i];
    if (nb::isinstance<mx::array>(found)) {
      arrays[order[i]] = *nb::inst_ptr<mx::array>(found);
    } else if (!found.is_none()) {
      return {};
    }
  }
  return arrays;
}

nb::object returned(const Arrays& found) {
  if (found.size() == 1) {
    return nb::cast(found[0]);
  }
  if (found.size() == 2) {
    return nb::make_tuple(found[0], found[1]);
  }
  if (found.size() == 3) {
    return nb::make_tuple(found[0], found[1], found[2]);
  }
  nb::list all;
  for (const mx::array& a : found) {
    all.append(a);
  }
  return nb::tuple(all);
}

// Why the kernels have no such cell; empty where they have.
std::string most_of(const kernels::CellShape& shape) {
  auto beyond = [](int count, int most, const char* what) {
    return count <= most ? std::string()
                         : "has " + std::to_string(count) + " " + what +
            ", where the kernels have at most " + std::to_string(most);
  };
  std::string states = beyond(shape.states, kernels::kMostStates, "states");
  std::string slabs =
      beyond(shape.slabs(), kernels::kMostSlabs, "pre-activations");
  return !states.empty() ? states
      : !slabs.empty()
      ? slabs
      : beyond(shape.parameters, kernels::kMostParameters, "parameters");
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

// Which products of a whole sequence go through a BLAS.
std::vector<std::string> products_by_blas(
    const kernels::Partition& p,
    int64_t N,
    int64_t L,
    int64_t D,
    int64_t H,
    mx::Dtype dtype,
    const kernels::CellShape& shape) {
  std::vector<std::string> found;
  if (!sgemm() || compute_bytes(dtype) != sizeof(float)) {
    return found;
  }
  int64_t rows = (N + p.slices - 1) / p.slices;
  int threads = p.split == kernels::Split::units ? p.threads : 1;
  if (kernels::by_blas(
          kernels::rows_of_chunk(rows, L),
          D,
          shape.input_slabs() * H / threads)) {
    found.push_back("the projection");
  }
  if (kernels::by_blas(rows, H, shape.state_slabs() * H / threads)) {
    found.push_back("each step's");
  }
  return found;
}

} // namespace

void bind_recurrence(nb::module_& m) {
  nb::class_<CellReference>(m, "CellProgram")
      .def_prop_ro(
          "operations",
          [](const CellReference& cell) {
            return cell.program->expression().names();
          })
      .def(
          "is_of",
          [](const CellReference& cell,
             nb::iterable results,
             nb::iterable arguments) {
            Arrays given = arrays_of(arguments);
            Reading reading = read(arrays_of(results), given, kMostOfCell);
            return reading.obstacle.empty() &&
                reading.expression.simplified(given[0].dtype()) ==
                cell.program->expression();
          },
          "results"_a,
          "arguments"_a);

  m.def(
      "trace_cell",
      [](nb::iterable results,
         nb::iterable arguments,
         int state_only,
         int shared,
         int input_only,
         int parameters) -> std::variant<std::string, CellReference> {
        Arrays found = arrays_of(results), given = arrays_of(arguments);
        kernels::CellShape shape{state_only, shared, input_only};
        shape.states = static_cast<int>(found.size());
        shape.saved = shape.slabs();
        shape.parameters = parameters;
        std::string most = most_of(shape);
        if (!most.empty()) {
          return most;
        }
        Reading reading = read(found, given, kMostOfCell);
        if (!reading.obstacle.empty()) {
          return reading.obstacle;
        }
        try {
          return CellReference{std::make_shared<CellProgram>(
              shape, reading.expression, given[0].dtype())};
        } catch (const std::invalid_argument& error) {
          return std::string(error.what());
        }
      },
      "results"_a,
      "arguments"_a,
      nb::kw_only(),
      "state_only"_a,
      "shared"_a,
      "input_only"_a,
      "parameters"_a);

  m.def(
      "recurrence",
      [](nb::handle operands,
         const AnyCell& cell,
         nb::handle options,
         const std::variant<bool, std::string>& return_state,
         mx::StreamOrDevice stream) -> nb::object {
        RecurrenceForm form = form_of(cell);
        Slotted<Slot> arrays = operands_of(operands, form.shape());
        if (!options.is_none()) {
          read_options(options, arrays, form);
        }
        return returned(recurrence(
            arrays, form, returned_of(return_state), stream_of(stream)));
      },
      "operands"_a,
      "cell"_a,
      "options"_a.none(),
      "return_state"_a,
      "stream"_a.none());

  m.def(
      "plain_recurrence",
      [](const nb::tuple& operands,
         const char* cell,
         nb::handle both) -> nb::object {
        bool wants = both.is(Py_True) || both.is(Py_False);
        NamedCell named = cell_named(cell);
        auto arrays =
            wants ? plain_operands(operands, named.kind) : std::nullopt;
        if (!arrays || !is_plain(*arrays, named.kind)) {
          return nb::none();
        }
        return returned(recurrence(
            *arrays,
            {named.kind, named.activation},
            both.is(Py_True) ? Returned::both : Returned::states,
            stream_of({})));
      },
      "operands"_a,
      "cell"_a,
      "return_state"_a.none());

  m.def(
      "pre_activation",
      [](nb::handle operands,
         const std::optional<mx::array>& previous,
         int t,
         mx::StreamOrDevice stream) {
        mx::array a = pre_activation(
            operands_of(operands), previous, t, stream_of(stream));
        return nb::make_tuple(a, a);
      },
      "operands"_a,
      "previous"_a.none(),
      "t"_a,
      "stream"_a.none());

  m.def(
      "partition",
      [](int64_t N,
         int64_t L,
         int64_t D,
         int64_t H,
         mx::Dtype dtype,
         const AnyCell& cell) {
        kernels::CellShape shape = form_of(cell).shape();
        kernels::Partition p = partition_of({0, 1, N, L, D, H, shape}, dtype);
        nb::dict found = described(p);
        found["by_blas"] = products_by_blas(p, N, L, D, H, dtype, shape);
        return found;
      },
      "N"_a,
      "L"_a,
      "D"_a,
      "H"_a,
      "dtype"_a,
      "cell"_a = "tanh");
  m.def(
      "runs_apart",
      [](int64_t N,
         int64_t L,
         int64_t D,
         int64_t H,
         mx::Dtype dtype,
         int64_t sets,
         const AnyCell& cell) {
        kernels::CellShape shape = form_of(cell).shape();
        return partition_of({1, sets, N, L, D, H, shape}, dtype).split ==
            kernels::Split::sets;
      },
      nb::kw_only(),
      "N"_a,
      "L"_a,
      "D"_a,
      "H"_a,
      "dtype"_a,
      "sets"_a,
      "cell"_a = "tanh");
}

} // namespace mlx_recurrent
