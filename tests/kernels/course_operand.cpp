#include "course_operand.h"

namespace kernel_tests {

namespace {

bool has_gaps(const Case& c) {
  return static_cast<Layout>(c.layout) >= Layout::gaps;
}

int64_t drawn_length(const Case& c, int64_t equal, Random& random) {
  switch (static_cast<Lengths>(c.lengths)) {
    case Lengths::all:
      return c.L;
    case Lengths::none:
      return 0;
    case Lengths::equal:
      return equal;
    case Lengths::any:
    case Lengths::beyond:
      break;
  }
  const int64_t any[] = {0, c.L, random.whole(0, c.L), random.whole(0, c.L)};
  return any[random.whole(0, 3)];
}

} // namespace

Runs drawn_runs(const Case& c, Random& random) {
  Runs runs(c.N, c.L);
  runs.reverse = c.reverse != 0;
  runs.truncate_every = c.truncate_every;
  int64_t equal = random.whole(0, c.L);
  for (int64_t& length : runs.lengths) {
    length = drawn_length(c, equal, random);
  }
  int64_t rare = random.whole(1, 6);
  for (size_t i = 0; i < runs.reset.size(); ++i) {
    switch (static_cast<Resets>(c.reset)) {
      case Resets::nowhere:
        break;
      case Resets::some:
        runs.reset[i] = random.whole(0, rare) == 0;
        break;
      case Resets::everywhere:
        runs.reset[i] = 1;
        break;
      case Resets::first:
        runs.reset[i] = static_cast<int64_t>(i) % c.L == 0;
        break;
    }
  }
  for (char& skip : runs.skip) {
    skip = c.mask && random.whole(0, 2) == 0;
  }
  return runs;
}

CourseOperand::CourseOperand(const Case& c, const Runs& runs, Random& random)
    : c_(c),
      lengths_(c.N, 1, has_gaps(c), random),
      reset_(c.N, c.L, has_gaps(c), random),
      mask_(c.mask ? c.N : 0, c.L, c.mask && has_gaps(c), random) {
  bool beyond = static_cast<Lengths>(c.lengths) == Lengths::beyond;
  for (int64_t n = 0; n < c.N; ++n) {
    int64_t length = runs.length(n);
    if (beyond && length == 0) {
      length = -random.whole(0, 1'000'000'000);
    } else if (beyond && length == c.L) {
      length += random.whole(0, 1'000'000'000);
    }
    lengths_.at(n, 0) = static_cast<int32_t>(length);
    for (int64_t t = 0; t < c.L; ++t) {
      size_t at = static_cast<size_t>(n * c.L + t);
      reset_.at(n, t) = runs.reset[at] != 0;
      if (c.mask) {
        mask_.at(n, t) = runs.skip[at] == 0;
      }
    }
  }
}

Course CourseOperand::course() const {
  constexpr Sequence kNone = {nullptr, nullptr, 0, 0};
  return {
      c_.reverse != 0,
      c_.lengths ? lengths_.sequence() : kNone,
      c_.reset ? reset_.sequence() : kNone,
      c_.truncate_every};
}

Sequence CourseOperand::mask() const {
  constexpr Sequence kNone = {nullptr, nullptr, 0, 0};
  return c_.mask ? mask_.sequence() : kNone;
}

DrawsOperand::DrawsOperand(const Case& c, Random& random)
    : key_(1, 2, has_gaps(c), random) {
  for (int64_t word : {0, 1}) {
    chances_.key[word] = static_cast<uint32_t>(random.whole(0, 0xffffffff));
    key_.at(0, word) = chances_.key[word];
  }
  int64_t rows = (c.N + c.sets - 1) / c.sets;
  chances_.rows = rows > 0 ? rows : 1;
  chances_.zoneout = static_cast<double>(c.zoneout) / 1000;
  chances_.recurrent_dropout = static_cast<double>(c.recurrent_dropout) / 1000;
  chances_.input_dropout = static_cast<double>(c.input_dropout) / 1000;
  chances_.zoneout_cell = static_cast<double>(c.zoneout_cell) / 1000;
}

Draws DrawsOperand::draws() const {
  return {
      chances_.any() ? key_.data() : nullptr,
      key_.stride(),
      chances_.rows,
      {{chances_.zoneout,
        chances_.recurrent_dropout,
        chances_.input_dropout,
        chances_.zoneout_cell}}};
}

} // namespace kernel_tests
