#include "streaming_bindings.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>

#include <atomic>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>

#include "cell_names.h"
#include "mlx_faults/interpreter.h"
#include "mlx_faults/stream_threads.h"
#include "primitives/operand.h"
#include "primitives/traced.h"
#include "streaming.h"

namespace mlx_recurrent {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

// Multiply-adds, a tenth of a millisecond or so, from which on others may run
// meanwhile. Below, who gives way could wait for milliseconds to come back.
constexpr double kLongChunk = 1 << 22;

// The memory of a contiguous NumPy array; empty where `object` is none.
class Memory {
 public:
  Memory(nb::handle object, nb::handle array_type, bool writable) {
    if (!PyObject_TypeCheck(
            object.ptr(), reinterpret_cast<PyTypeObject*>(array_type.ptr()))) {
      return;
    }
    int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT;
    filled_ = PyObject_GetBuffer(
                  object.ptr(),
                  &buffer_,
                  writable ? flags | PyBUF_WRITABLE : flags) == 0;
    if (!filled_) {
      PyErr_Clear();
    }
  }
  ~Memory() {
    if (filled_) {
      PyBuffer_Release(&buffer_);
    }
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  // Whether these are elements of the format's one letter, where the processor
  // wants them.
  bool has(char format) const {
    return filled_ && buffer_.format[0] == format && buffer_.format[1] == 0 &&
        reinterpret_cast<uintptr_t>(buffer_.buf) % buffer_.itemsize == 0;
  }
  bool is_there() const {
    return filled_;
  }
  int axes() const {
    return buffer_.ndim;
  }
  int64_t size(int axis) const {
    return buffer_.shape[axis];
  }
  char* first() const {
    return static_cast<char*>(buffer_.buf);
  }
  char* end() const {
    return first() + buffer_.len;
  }

 private:
  Py_buffer buffer_;
  bool filled_ = false;
};

// A stream whose rows have leading axes, and NumPy's part in it.
class NumPyStream {
 public:
  // Weights are evaluated arrays of one floating dtype. `dtype` is the NumPy
  // array's, of one letter `format`; of each state there are a leak and a
  // start, None or such an array (H,).
  NumPyStream(
      const mx::array& Wxh,
      const std::optional<mx::array>& bias,
      const mx::array& Whh,
      const std::optional<mx::array>& bhn,
      const std::optional<mx::array>& parameters,
      nb::handle leaks,
      nb::handle starts,
      const AnyCell& cell,
      nb::iterable lead,
      nb::object dtype)
      : lead_(integers(lead)),
        array_type_(nb::module_::import_("numpy").attr("ndarray")),
        stream_(
            kernel_type(Whh.dtype()),
            layer(Wxh, bias, Whh, bhn, parameters, cell, lead_),
            vectors(leaks, starts, Whh.shape(1)),
            owner(cell)),
        dtype_(std::move(dtype)),
        format_(nb::cast<std::string>(dtype_.attr("char"))[0]),
        empty_(nb::module_::import_("numpy").attr("empty")),
        step_shape_(shape_of(nullptr)) {
  }

  // x a step (lead..., D) or a chunk (lead..., L, D), `out` None or room for
  // the result, `reset` None or booleans (lead...) or (lead..., L).
  // NotImplemented where they have to be converted first, or are wrong.
  nb::object run(nb::handle x, nb::handle out, nb::handle reset) {
    Memory from(x, array_type_, false);
    int64_t L = 1;
    bool chunk = false;
    if (!from.has(format_) || !fits(from, stream_.layer().D, L, chunk)) {
      return not_implemented();
    }
    nb::object result;
    if (out.is_none()) {
      result = empty_(chunk ? shape_of(&L) : step_shape_, dtype_);
    } else {
      result = nb::borrow<nb::object>(out);
    }
    Memory to(result, array_type_, true);
    int64_t out_L = 1;
    bool out_chunk = false;
    if (!to.has(format_) || !fits(to, stream_.layer().H, out_L, out_chunk) ||
        out_L != L || out_chunk != chunk || mixes(from, to)) {
      return not_implemented();
    }
    Memory starts(reset, array_type_, false);
    if (!reset.is_none() &&
        (!starts.has('?') || starts.axes() != from.axes() - 1 ||
         !begins_with_lead(starts) ||
         (chunk && starts.size(starts.axes() - 1) != L) || mixes(starts, to))) {
      return not_implemented();
    }
    const bool* resets =
        reset.is_none() ? nullptr : reinterpret_cast<bool*>(starts.first());
    auto held = hold();
    const kernels::RecurrenceArgs& layer = stream_.layer();
    double work = static_cast<double>(layer.D + layer.H) * layer.H *
        kernels::shape_of(layer).slabs() * layer.N * L;
    if (work > kLongChunk) {
      Released released;
      stream_.run(from.first(), L, resets, to.first());
      held.unlock(); // a thread may never come back with the interpreter
    } else {
      stream_.run(from.first(), L, resets, to.first());
    }
    return result;
  }

  // An array, or as many as there are states.
  nb::object state() {
    auto held = hold();
    nb::list all;
    for (int s = 0; s < stream_.states(); ++s) {
      all.append(copy_of_state(s));
    }
    return stream_.states() == 1 ? nb::object(all[0])
                                 : nb::object(nb::tuple(all));
  }

  // As many as there are, each None or a contiguous array (lead..., H) of the
  // dtype.
  void reset(nb::args states) {
    if (static_cast<int>(states.size()) != stream_.states()) {
      throw std::invalid_argument("[mlx_recurrent] not the states of a stream");
    }
    const void* from[kernels::kMostStates];
    for (int s = 0; s < stream_.states(); ++s) {
      nb::object state = states[s];
      from[s] = state_in(state, Memory(state, array_type_, false));
    }
    auto held = hold();
    for (int s = 0; s < stream_.states(); ++s) {
      stream_.set_state(s, from[s]);
    }
  }

  void keep() {
    auto held = hold();
    stream_.keep_state();
  }

  void restore() {
    auto held = hold();
    stream_.restore_state();
  }

 private:
  nb::object copy_of_state(int which) {
    nb::object result = empty_(step_shape_, dtype_);
    Memory to(result, array_type_, true);
    stream_.copy_state(which, to.first());
    return result;
  }

  // Null for None.
  const void* state_in(nb::handle object, const Memory& memory) const {
    if (object.is_none()) {
      return nullptr;
    }
    int64_t L;
    bool chunk;
    if (!memory.has(format_) || !fits(memory, stream_.layer().H, L, chunk) ||
        chunk) {
      throw std::invalid_argument("[mlx_recurrent] not a state of this stream");
    }
    return memory.first();
  }

  // Not a vector among the arguments: nanobind could not say that there is no
  // memory for it.
  static std::vector<int64_t> integers(nb::iterable values) {
    std::vector<int64_t> found;
    for (nb::handle value : values) {
      found.push_back(nb::cast<int64_t>(value));
    }
    return found;
  }

  static kernels::RecurrenceArgs layer(
      const mx::array& Wxh,
      const std::optional<mx::array>& bias,
      const mx::array& Whh,
      const std::optional<mx::array>& bhn,
      const std::optional<mx::array>& parameters,
      const AnyCell& cell,
      const std::vector<int64_t>& lead) {
    kernels::RecurrenceArgs layer{};
    layer.N = 1;
    for (int64_t size : lead) {
      layer.N *= size;
    }
    layer.D = Wxh.shape(1);
    layer.H = Whh.shape(1);
    layer.Wxh = Operands::matrix(Wxh, 0);
    if (bias) {
      layer.bias = Operands::vector(*bias, 0);
    }
    layer.Whh = Operands::matrix(Whh, 0);
    if (bhn) {
      layer.bhn = Operands::vector(*bhn, 0);
    }
    if (parameters) {
      layer.parameters = Operands::vector(*parameters, 0);
    }
    RecurrenceForm form = form_of(cell);
    layer.kind = form.kind;
    layer.activation = form.activation;
    if (form.function) {
      layer.function = &form.function->function();
    }
    if (form.program) {
      layer.programs = &form.program->programs();
    }
    return layer;
  }

  // The arrays of tuples, which the caller holds.
  StreamVectors vectors(nb::handle leaks, nb::handle starts, int64_t H) const {
    StreamVectors all{};
    auto take = [&](nb::handle from, const void** to) {
      int s = 0;
      for (nb::handle vector : nb::cast<nb::iterable>(from)) {
        to[s++] = elements(vector, Memory(vector, array_type_, false), H);
      }
    };
    take(leaks, all.leaks);
    take(starts, all.starts);
    return all;
  }

  // Null for None.
  static const void* elements(
      nb::handle vector,
      const Memory& memory,
      int64_t H) {
    if (vector.is_none()) {
      return nullptr;
    }
    if (!memory.is_there() || memory.axes() != 1 || memory.size(0) != H) {
      throw std::invalid_argument("[mlx_recurrent] not a vector of a stream");
    }
    return memory.first();
  }

  // Of what the layer points to when it runs: all arrays are copies.
  static std::shared_ptr<const void> owner(const AnyCell& cell) {
    RecurrenceForm form = form_of(cell);
    return form.program ? std::shared_ptr<const void>(form.program)
                        : std::shared_ptr<const void>(form.function);
  }

  static nb::object not_implemented() {
    return nb::borrow<nb::object>(Py_NotImplemented);
  }

  // Whether memory is (lead..., features) or (lead..., L, features).
  bool fits(const Memory& memory, int64_t features, int64_t& L, bool& chunk)
      const {
    int axes = static_cast<int>(lead_.size());
    chunk = memory.axes() == axes + 2;
    if ((!chunk && memory.axes() != axes + 1) || !begins_with_lead(memory)) {
      return false;
    }
    if (chunk) {
      L = memory.size(axes);
    }
    return memory.size(memory.axes() - 1) == features;
  }

  // Of memory that has as many axes at least.
  bool begins_with_lead(const Memory& memory) const {
    for (size_t i = 0; i < lead_.size(); ++i) {
      if (memory.size(static_cast<int>(i)) != lead_[i]) {
        return false;
      }
    }
    return true;
  }

  // Whether a result would fall on the input of a later step.
  bool mixes(const Memory& from, const Memory& to) const {
    bool same = from.first() == to.first() && from.end() == to.end();
    return !same && from.first() < to.end() && to.first() < from.end();
  }

  // (lead..., H), or (lead..., L, H).
  nb::object shape_of(const int64_t* L) const {
    nb::list sizes;
    for (int64_t size : lead_) {
      sizes.append(size);
    }
    if (L) {
      sizes.append(*L);
    }
    sizes.append(stream_.layer().H);
    return nb::tuple(sizes);
  }

  // The one who has the stream may need the interpreter to give it back, and
  // who waits for the interpreter may wait for ever.
  std::unique_lock<std::mutex> hold() {
    std::unique_lock lock(stream_.mutex, std::try_to_lock);
    while (!lock) {
      if (held_after_ != forks()) {
        throw std::runtime_error(
            "[mlx_recurrent] another thread was running this stream when the "
            "process was forked, and is not there in the child: make a new "
            "stream there.");
      }
      {
        Released released;
        std::lock_guard until_free(stream_.mutex);
      }
      lock.try_lock();
    }
    held_after_ = forks();
    return lock;
  }

  std::vector<int64_t> lead_;
  nb::object array_type_;
  Stream stream_;
  nb::object dtype_;
  char format_;
  nb::object empty_, step_shape_;
  std::atomic<int> held_after_ = 0; // so many forks
};

} // namespace

void bind_streaming(nb::module_& m) {
  nb::class_<NumPyStream>(m, "Stream")
      .def(
          nb::init<
              const mx::array&,
              const std::optional<mx::array>&,
              const mx::array&,
              const std::optional<mx::array>&,
              const std::optional<mx::array>&,
              nb::handle,
              nb::handle,
              const AnyCell&,
              nb::iterable,
              nb::object>(),
          nb::kw_only(),
          "Wxh"_a,
          "bias"_a.none(),
          "Whh"_a,
          "bhn"_a.none(),
          "parameters"_a.none(),
          "leaks"_a,
          "starts"_a,
          "cell"_a,
          "lead"_a,
          "dtype"_a)
      .def(
          "run",
          &NumPyStream::run,
          "x"_a.none(),
          "out"_a.none(),
          "reset"_a.none())
      .def("state", &NumPyStream::state)
      .def("reset", &NumPyStream::reset)
      .def("keep", &NumPyStream::keep)
      .def("restore", &NumPyStream::restore);
}

} // namespace mlx_recurrent
