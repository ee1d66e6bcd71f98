#include "primitives/recurrence_slots.h"

#include <cmath>

#include "primitives/launch.h"

namespace mlx_recurrent {

namespace {

using Slot = RecurrenceSlot;
using kernels::BackwardArgs;
using kernels::ForwardArgs;
using kernels::kMostStates;
using kernels::RecurrenceArgs;

constexpr Lead sets = Lead::sets;
constexpr Lead rows = Lead::rows;
constexpr Size L = Size::L;
constexpr Size D = Size::D;
constexpr Size H = Size::H;

// The key and what is of the course have places of their own.
constexpr RecurrenceRow table[] = {
    {.slot = Slot::x,
     .kind = {"x", rows, {L, D}},
     .layer = &RecurrenceArgs::x,
     .cotangent = &BackwardArgs::dx},
    {.slot = Slot::Whh,
     .kind = {"Whh", sets, {Size::state_slabs, H}},
     .layer = &RecurrenceArgs::Whh,
     .cotangent = &BackwardArgs::dWhh},
    {.slot = Slot::Wxh,
     .kind = {"Wxh", sets, {Size::input_slabs, D}},
     .layer = &RecurrenceArgs::Wxh,
     .cotangent = &BackwardArgs::dWxh},
    {.slot = Slot::bias,
     .kind = {"bias", sets, {Size::input_slabs}},
     .layer = &RecurrenceArgs::bias,
     .cotangent = &BackwardArgs::dbias},
    {.slot = Slot::bhn,
     .kind = {"bhn", sets, {Size::state_only}},
     .layer = &RecurrenceArgs::bhn,
     .cotangent = &BackwardArgs::dbhn},
    {.slot = Slot::parameters,
     .kind = {"parameters", sets, {Size::parameters}},
     .layer = &RecurrenceArgs::parameters,
     .cotangent = &BackwardArgs::dparameters},
    {.slot = Slot::key, .kind = {"key", sets, {Size::two}, Holds::words}},
    {.slot = Slot::lengths, .kind = lengths_kind},
    {.slot = Slot::reset, .kind = reset_kind},
    {.slot = Slot::mask, .kind = {"mask", rows, {L}, Holds::flags}},
    {.slot = Slot::hidden,
     .kind = {"hidden", rows, {H}},
     .layer = &RecurrenceArgs::hidden,
     .cotangent = &BackwardArgs::dhidden},
    {.slot = Slot::hidden0,
     .kind = {"hidden0", sets, {H}},
     .layer = &RecurrenceArgs::hidden0,
     .cotangent = &BackwardArgs::dhidden0},
    {.slot = Slot::leak,
     .kind = {"leak", sets, {H}},
     .layer = &RecurrenceArgs::leak,
     .cotangent = &BackwardArgs::dleak},
    {.slot = Slot::states,
     .kind = {"states", rows, {Size::kept, H}},
     .backward = &BackwardArgs::states,
     .output = &ForwardArgs::states},
    {.slot = Slot::state,
     .kind = {"state", rows, {H}},
     .output = &ForwardArgs::state},
    {.slot = Slot::dstates,
     .kind = {"dstates", rows, {L, H}},
     .backward = &BackwardArgs::dstates},
    {.slot = Slot::dstate,
     .kind = {"dstate", rows, {H}},
     .backward = &BackwardArgs::dstate},
    {.slot = Slot::saved,
     .kind = {"saved", rows, {L, Size::saved}, Holds::computed_numbers},
     .backward = &BackwardArgs::saved,
     .output = &ForwardArgs::saved}};

// Of the others there is one for each state.
constexpr int kOnce = static_cast<int>(Slot::hidden) + 1;

constexpr bool is_complete() {
  for (int i = 0; i < static_cast<int>(std::size(table)); ++i) {
    int slot = i < kOnce ? i : kOnce - 1 + (i - kOnce + 1) * kMostStates;
    if (static_cast<int>(table[i].slot) != slot) {
      return false;
    }
  }
  return true;
}
static_assert(is_complete());

Shapes shapes_of_cell(
    const mx::array& x,
    int sets,
    int H,
    const kernels::CellShape& cell) {
  Shapes shapes(x, sets, H);
  shapes.set(Size::input_slabs, cell.input_slabs() * H);
  shapes.set(Size::state_slabs, cell.state_slabs() * H);
  shapes.set(Size::state_only, cell.state_only * H);
  shapes.set(Size::parameters, cell.parameters * H);
  shapes.set(Size::saved, cell.saved * H);
  return shapes;
}

// Which states the kernels are to keep of L.
void set_kept(RecurrenceArgs& args, const RecurrenceForm& form, int64_t L) {
  args.checkpoint_every = form.checkpoint_every;
  if (form.checkpoint_every == checkpoint_square_root) {
    auto root = static_cast<int64_t>(std::sqrt(static_cast<double>(L)));
    args.checkpoint_every =
        root * root < L ? root + 1 : std::max<int64_t>(root, 1);
  }
  args.latest_checkpoint = form.latest_checkpoint;
  args.cells_every = form.cells_every;
}

} // namespace

SlotOfState parts_of(RecurrenceSlot slot) {
  int behind = static_cast<int>(slot) - static_cast<int>(Slot::hidden);
  if (behind < 0) {
    return {slot, 0};
  }
  return {
      nth(Slot::hidden, behind / kMostStates * kMostStates),
      behind % kMostStates};
}

const RecurrenceRow& row_of(RecurrenceSlot slot) {
  int behind = static_cast<int>(slot) - static_cast<int>(Slot::hidden);
  return behind < 0 ? table[static_cast<int>(slot)]
                    : table[kOnce - 1 + behind / kMostStates];
}

const SlotKind& kind_of(RecurrenceSlot slot) {
  static constexpr SlotKind fixed{
      "leak", Lead::sets, {Size::H}, Holds::constants};
  static constexpr SlotKind others{
      "states", Lead::rows, {Size::kept_cells, Size::H}};
  auto [first, state] = parts_of(slot);
  return state > 0 && first == Slot::leak  ? fixed
      : state > 0 && first == Slot::states ? others
                                           : row_of(slot).kind;
}

RecurrenceSizes sizes_of(const RecurrenceForm& form, const Arrays& inputs) {
  const mx::array& x = form.inputs.in(inputs, Slot::x);
  const mx::array& Whh = form.inputs.in(inputs, Slot::Whh);
  int axes = static_cast<int>(Whh.ndim()) - 2;
  return {
      axes,
      size_between(Whh, 0, axes),
      size_between(x, axes, static_cast<int>(x.ndim()) - 2),
      x.shape(-2),
      x.shape(-1),
      Whh.shape(-1),
      form.shape()};
}

Shapes shapes_of(
    const RecurrenceForm& form,
    const Arrays& inputs,
    const char* primitive) {
  const mx::array& x = form.inputs.in(inputs, Slot::x);
  const mx::array& Whh = form.inputs.in(inputs, Slot::Whh);
  expect(
      has_kernels(x.dtype()) && Whh.ndim() >= 2 && x.ndim() >= Whh.ndim() &&
          form.checkpoint_every >= checkpoint_square_root &&
          form.course.fits(x),
      primitive);
  int H = Whh.shape(-1);
  kernels::CellShape cell = form.shape();
  Shapes shapes = shapes_of_cell(x, static_cast<int>(Whh.ndim()) - 2, H, cell);
  int64_t steps = x.shape(-2);
  RecurrenceArgs keeps{};
  set_kept(keeps, form, steps);
  auto kept = [&](int state) {
    return kernels::kept_states(
        steps, keeps.kept_every(state), form.latest_checkpoint);
  };
  shapes.set(Size::kept, kept(0));
  shapes.set(Size::kept_cells, kept(1));
  bool wide = !form.projected() || (cell.slabs() == 1 && x.shape(-1) == H);
  expect(wide && shapes.fit(form.inputs, inputs), primitive);
  return shapes;
}

bool is_plain(const Slotted<Slot>& operands, kernels::CellKind kind) {
  // Up to these, what `judge_count` numbers can be: no array of the call, of
  // its weights or its gates has more than 2^48 elements.
  constexpr double kMostInputs = 0x1p32;
  constexpr double kMostProduct = 0x1p44;
  const auto& x = operands[Slot::x];
  const auto& Wxh = operands[Slot::Wxh];
  const auto& Whh = operands[Slot::Whh];
  if (!x || !Wxh || !Whh || x->ndim() < 2 || x->size() == 0 ||
      Whh->ndim() != 2 || !mx::issubdtype(x->dtype(), mx::floating)) {
    return false;
  }
  int H = Whh->shape(1);
  double size = static_cast<double>(x->size());
  if (H == 0 || size > kMostInputs || size * H * H > kMostProduct) {
    return false;
  }
  Shapes shapes = shapes_of_cell(*x, 0, H, kernels::shape_of(kind));
  Slots<Slot> present = operands.slots();
  for (int i = 0; i < present.size(); ++i) {
    Slot slot = present.at(i);
    if (!shapes.fit(kind_of(slot), operands.get(slot))) {
      return false;
    }
  }
  return true;
}

std::vector<RecurrenceArgs> arguments(
    const RecurrenceForm& form,
    const Arrays& inputs,
    const RecurrenceSizes& sizes,
    Operands& operands) {
  RecurrenceArgs one{};
  one.N = sizes.N;
  one.L = sizes.L;
  one.D = sizes.D;
  one.H = sizes.H;
  one.kind = form.kind;
  one.activation = form.activation;
  one.projected = form.projected();
  set_kept(one, form, sizes.L);
  one.sgemm = sgemm();
  if (form.function) {
    operands.hold(form.function);
    one.function = &form.function->function();
    one.derivative = &form.function->derivative();
  }
  if (form.program) {
    operands.hold(form.program);
    one.programs = &form.program->programs();
  }
  std::vector<RecurrenceArgs> all(sizes.sets, one);
  for (int i = 0; i < form.inputs.size(); ++i) {
    Slot slot = form.inputs.at(i);
    const RecurrenceRow& row = row_of(slot);
    int state = parts_of(slot).state;
    put(all, row.layer, state, row.kind, inputs[i], sizes.N, operands);
  }
  const mx::array& x = form.inputs.in(inputs, Slot::x);
  std::vector<kernels::Course> runs = courses(
      course_of(form.course, form.inputs, inputs),
      x,
      sizes.sets,
      sizes.N,
      operands);
  if (auto mask = form.inputs.find(inputs, Slot::mask)) {
    kernels::Sequence flags = operands.flags(*mask);
    for (int64_t i = 0; i < sizes.sets; ++i) {
      all[i].mask = of_set(flags, i, sizes.N);
    }
  }
  auto key = form.inputs.find(inputs, Slot::key);
  int first = sizes.axes + form.repeated_axes;
  for (int64_t i = 0; i < sizes.sets; ++i) {
    all[i].course = runs[i];
    if (key) {
      kernels::Vector words = Operands::vector(*key, i);
      all[i].draws = {
          static_cast<const uint32_t*>(words.data),
          words.stride,
          size_between(x, first, static_cast<int>(x.ndim()) - 2),
          form.probabilities};
    }
  }
  return all;
}

kernels::Partition partition_of(
    const RecurrenceSizes& sizes,
    mx::Dtype dtype,
    bool projected) {
  return kernels::partition_recurrence(
      sizes.N,
      sizes.L,
      projected ? 0 : sizes.D,
      sizes.H,
      compute_bytes(dtype),
      machine_now(),
      sizes.sets,
      sizes.cell.state_slabs(),
      sizes.cell.input_slabs());
}

} // namespace mlx_recurrent
