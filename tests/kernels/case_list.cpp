// Which calls are tried: every size around the vector widths on every axis, and
// every choice, each with the others drawn anew.

#include <initializer_list>
#include <utility>

#include "checks.h"
#include "operand.h"
#include "traced.h"

namespace kernel_tests {

namespace {

constexpr int64_t kSizes[] = {1, 7, 8, 15, 16, 17, 31, 33, 64, 100, 257};
constexpr int64_t kSizeCount = sizeof kSizes / sizeof *kSizes;
constexpr int64_t kTypes = 4, kActivations = 5, kSplits = 3, kKinds = 3;
constexpr int64_t kMostMembers = 5;
// Products of the reference, which is slow.
constexpr int64_t kMostProducts = 400'000;

int64_t products(const Case& c) {
  int64_t slabs =
      c.which() == Entry::linear_scan ? c.slabs : cell_of(c.of_kind()).slabs;
  return c.N * c.L * c.H * (c.D + c.H) * slabs;
}

// Makes the larger axes smaller, but the one named, until the reference is
// quick.
void fit(Case& c, int64_t Case::* keep = nullptr) {
  while (products(c) > kMostProducts) {
    int64_t Case::* largest = nullptr;
    for (auto axis : {&Case::N, &Case::L, &Case::D, &Case::H}) {
      if (axis != keep && (!largest || c.*axis > c.*largest)) {
        largest = axis;
      }
    }
    c.*largest = c.*largest / 2;
  }
}

// What every recurrence may do without, and the largest value of each.
struct Option {
  int64_t Case::* field;
  int64_t most;
};
constexpr Option kOptions[] = {
    {&Case::lengths, kLengths - 1},
    {&Case::reset, kResets - 1},
    {&Case::reverse, 1},
    {&Case::mask, 1},
    {&Case::hidden0, 1},
    {&Case::leak, 1},
    {&Case::zoneout, 500},
    {&Case::recurrent_dropout, 500},
    {&Case::input_dropout, 500},
    {&Case::truncate_every, 9},
    {&Case::alpha, 1},
    {&Case::transposed, 1},
    {&Case::states, 3},
    {&Case::slabs, 5}};
// The same of gated cells.
constexpr Option kGatedOptions[] = {
    {&Case::lengths, kLengths - 1},
    {&Case::reset, kResets - 1},
    {&Case::reverse, 1},
    {&Case::mask, 1},
    {&Case::hidden0, 1},
    {&Case::cell0, 1},
    {&Case::bhn, 1},
    {&Case::zoneout, 500},
    {&Case::zoneout_cell, 500},
    {&Case::recurrent_dropout, 500},
    {&Case::input_dropout, 500},
    {&Case::truncate_every, 9}};

template <class Choices>
int64_t drawn_probability(Choices& random) {
  const int64_t some[] = {1, 100, 300, 500};
  return random.whole(0, 2) == 0 ? some[random.whole(0, 3)] : 0;
}

// Some of the optional terms of a recurrence, or all.
template <class Choices>
void draw_options(Case& c, Choices& random) {
  auto sometimes = [&] { return random.whole(0, 2) == 0; };
  c.hidden0 = sometimes();
  c.leak = sometimes();
  c.lengths = sometimes() ? random.whole(1, kLengths - 1) : 0;
  c.reset = sometimes() ? random.whole(1, kResets - 1) : 0;
  c.reverse = sometimes();
  c.truncate_every = sometimes() ? random.whole(1, 12) : 0;
  c.zoneout = drawn_probability(random);
  c.recurrent_dropout = drawn_probability(random);
  c.input_dropout = drawn_probability(random);
  c.sets = sometimes() ? random.whole(2, 3) : 1;
  c.drawn = random.whole(0, 2);
  c.latest_checkpoint = sometimes();
}

template <class Choices>
Case drawn(Choices& random) {
  Case c;
  c.entry = random.whole(0, kEntries - 1);
  c.type = random.whole(0, kTypes - 1);
  for (auto axis : {&Case::N, &Case::L, &Case::D, &Case::H}) {
    c.*axis = random.whole(0, 1) ? kSizes[random.whole(0, kSizeCount - 1)]
                                 : random.whole(1, 40);
  }
  c.activation = random.whole(0, kActivations - 1);
  c.program = random.whole(0, kTraced - 1);
  c.projected = random.whole(0, 3) == 0;
  c.bias = random.whole(0, 1);
  c.hidden = random.whole(0, 1);
  c.beta = random.whole(0, 1);
  c.gamma = random.whole(0, 1);
  c.alpha = random.whole(0, 1);
  c.transposed = random.whole(0, 1);
  c.states = random.whole(0, 1) ? random.whole(1, 3) : 1;
  c.slabs = random.whole(0, 1) ? random.whole(1, 5) : 1;
  c.checkpoint_every = random.whole(0, 1) ? 0 : random.whole(1, 12);
  c.cells_every = random.whole(0, 1) ? 0 : random.whole(1, 12);
  c.state = random.whole(0, 1);
  c.dstates = random.whole(0, 3) > 0;
  c.saved = random.whole(0, 1);
  c.wanted = random.whole(0, 1) ? want_every : random.whole(1, want_all);
  c.contents = random.whole(0, 2) ? 0 : random.whole(1, kContents - 1);
  c.layout = random.whole(0, kLayouts - 1);
  c.split = random.whole(0, kSplits - 1);
  c.threads = random.whole(1, kMostMembers);
  c.slices = random.whole(0, 1) ? c.threads : random.whole(1, kMostMembers);
  c.members = random.whole(0, 1) ? c.threads : random.whole(1, c.threads);
  c.seed = random.whole(0, 1'000'000'000);
  if (random.whole(0, 1)) {
    draw_options(c, random);
  }
  return c;
}

// Makes it a gated cell, with what no other has.
template <class Choices>
void draw_cell(Case& c, int64_t kind, Choices& random) {
  c.kind = kind;
  if (kind == 0) {
    return;
  }
  c.bhn = random.whole(0, 1);
  c.cell = random.whole(0, 1);
  c.cell0 = random.whole(0, 1);
  c.zoneout_cell = drawn_probability(random);
  c.last_cell = random.whole(0, 1);
  c.dcells = random.whole(0, 1);
  c.cells = random.whole(0, 3) > 0;
  c.as_program = (c.last_cell + c.dcells + c.bhn) % 2;
  if (c.wanted != want_every) {
    c.wanted |= want_dbhn * random.whole(0, 7);
  }
}

// Choices that a fuzzer makes: each takes the next bytes, and the first of the
// possible ones where there are no more.
class Bytes {
 public:
  Bytes(const unsigned char* data, size_t size)
      : data_(data), end_(data + size) {
  }
  int64_t whole(int64_t first, int64_t last) {
    uint64_t value = 0;
    for (uint64_t rest = static_cast<uint64_t>(last - first); rest > 0;
         rest >>= 8) {
      value = value << 8 | (data_ < end_ ? *data_++ : 0u);
    }
    return first +
        static_cast<int64_t>(value % static_cast<uint64_t>(last - first + 1));
  }

 private:
  const unsigned char* data_;
  const unsigned char* end_;
};

template <class Choices>
Case any_case(Choices& random) {
  Case c = drawn(random);
  for (auto axis : {&Case::N, &Case::L, &Case::D, &Case::H}) {
    if (random.whole(0, 99) == 0) {
      c.*axis = 0;
    }
  }
  draw_cell(c, random.whole(0, kKinds - 1), random);
  c.mask = random.whole(0, 3) == 1;
  if (c.which() == Entry::mask && random.whole(0, 3) == 1) {
    c.drawn = static_cast<int64_t>(Drawn::zoneout_of_second);
  }
  fit(c);
  c.settle();
  return c;
}

} // namespace

Case random_case(uint64_t seed) {
  Random random(seed);
  return any_case(random);
}

Case case_of_bytes(const unsigned char* data, size_t size) {
  Bytes bytes(data, size);
  return any_case(bytes);
}

std::vector<Case> listed_cases() {
  std::vector<Case> cases;
  Random random(0);
  auto draw = [&](int64_t entry, int64_t type, int64_t kind = 0) {
    Case c = drawn(random);
    c.entry = entry;
    c.type = type;
    draw_cell(c, kind, random);
    if (c.which() == Entry::mask && c.seed % 4 == 0) {
      c.drawn = static_cast<int64_t>(Drawn::zoneout_of_second);
    }
    c.mask = c.seed % 6 == 0;
    return c;
  };
  auto add = [&](Case c, int64_t Case::* keep = nullptr) {
    c.settle();
    fit(c, keep);
    c.settle();
    cases.push_back(c);
  };

  auto add_shapes = [&](int64_t entry, int64_t kind) {
    for (int64_t type = 0; type < kTypes; ++type) {
      for (auto axis : {&Case::N, &Case::L, &Case::D, &Case::H}) {
        for (int64_t size : kSizes) {
          Case c = draw(entry, type, kind);
          c.*axis = size;
          add(c, axis);
        }
        for (int64_t split = 0; split < kSplits; ++split) {
          Case c = draw(entry, type, kind);
          c.*axis = 0;
          c.split = split;
          add(c);
        }
      }
      for (int64_t split = 1; split < kSplits; ++split) {
        for (int64_t threads = 1; threads <= kMostMembers; ++threads) {
          for (int64_t members : {threads, (threads + 1) / 2}) {
            Case c = draw(entry, type, kind);
            c.split = split;
            c.threads = threads;
            c.members = members;
            add(c);
          }
        }
      }
      for (int64_t layout = 0; layout < kLayouts; ++layout) {
        for (int repeat = 0; repeat < 3; ++repeat) {
          Case c = draw(entry, type, kind);
          c.layout = layout;
          add(c);
        }
      }
      // More steps, or rows, than are worked on at a time.
      for (auto [N, L] :
           {std::pair<int64_t, int64_t>{1, 1000},
            {2, 600},
            {5, 300},
            {100, 40},
            {700, 3}}) {
        Case c = draw(entry, type, kind);
        c.N = N;
        c.L = L;
        c.D = random.whole(1, 17);
        c.H = random.whole(1, 9);
        add(c);
      }
      // Every vector of a panel, and several panels, with few rows.
      for (int64_t size = 1; size <= 145; size += 16) {
        Case c = draw(entry, type, kind);
        c.N = random.whole(1, 3);
        c.L = random.whole(2, 4);
        c.D = random.whole(1, 30);
        c.H = size + random.whole(0, 15);
        add(c);
      }
    }
  };
  for (int64_t entry = 0; entry < kEntries; ++entry) {
    add_shapes(entry, 0);
  }
  for (Entry entry : {Entry::forward, Entry::backward}) {
    for (int64_t kind = 1; kind < kKinds; ++kind) {
      add_shapes(static_cast<int64_t>(entry), kind);
    }
  }
  for (Entry entry : {Entry::forward, Entry::backward}) {
    for (int64_t type = 0; type < kTypes; ++type) {
      for (int64_t activation = 0; activation < kActivations; ++activation) {
        for (int64_t terms = 0; terms < 6; ++terms) {
          for (int64_t every : {0, 1, 3, 100}) {
            Case c = draw(static_cast<int64_t>(entry), type);
            c.activation = activation;
            c.projected = terms >= 4;
            c.bias = terms & 1;
            c.hidden = c.projected ? terms & 1 : terms >> 1;
            c.checkpoint_every = every;
            c.L = random.whole(1, 20);
            add(c);
          }
        }
      }
    }
  }
  for (Entry entry : {Entry::forward, Entry::backward, Entry::pointwise}) {
    for (int64_t type = 0; type < kTypes; ++type) {
      for (int64_t program = 0; program < kTraced; ++program) {
        // Each way to share the work, with states kept and recomputed, for one
        // row, which has a product of its own, and for several.
        for (int64_t choice = 0; choice < 12; ++choice) {
          Case c = draw(static_cast<int64_t>(entry), type);
          c.activation = static_cast<int64_t>(Activation::traced);
          c.program = program;
          c.split = choice % 3;
          c.checkpoint_every = choice < 6 ? 0 : random.whole(1, 7);
          c.N = choice / 3 % 2 == 0 ? 1 : random.whole(2, 9);
          add(c, &Case::N);
        }
      }
    }
  }
  for (int64_t wanted = 1; wanted <= want_all; ++wanted) {
    for (int64_t projected : {0, 1}) {
      Case c = draw(
          static_cast<int64_t>(Entry::backward), random.whole(0, kTypes - 1));
      c.wanted = wanted;
      c.projected = projected;
      c.bias = c.hidden = c.hidden0 = c.leak = 1;
      c.split = wanted % kSplits;
      add(c);
    }
  }
  // Gated cells: with each first state, and states kept and recomputed.
  for (Entry entry : {Entry::forward, Entry::backward}) {
    for (int64_t kind = 1; kind < kKinds; ++kind) {
      for (int64_t choice = 0; choice < 32; ++choice) {
        Case c = draw(
            static_cast<int64_t>(entry), random.whole(0, kTypes - 1), kind);
        c.hidden = choice & 1;
        c.cell = choice >> 1 & 1;
        c.bias = choice >> 2 & 1;
        c.checkpoint_every = choice & 8 ? random.whole(1, 7) : 0;
        c.cells_every = choice & 16 ? random.whole(1, 7) : 0;
        c.L = random.whole(1, 20);
        add(c);
      }
    }
  }
  for (int64_t kind = 1; kind < kKinds; ++kind) {
    for (int64_t repeat = 0; repeat < 60; ++repeat) {
      Case c = draw(
          static_cast<int64_t>(Entry::backward),
          random.whole(0, kTypes - 1),
          kind);
      c.wanted = random.whole(1, want_every);
      c.bias = c.bhn = c.hidden = c.cell = c.hidden0 = c.cell0 = 1;
      c.split = repeat % kSplits;
      add(c);
    }
  }
  // Each option alone, and with one other, at few steps and at many.
  const Case none;
  auto add_options = [&](Entry entry,
                         int64_t kind,
                         const auto& options,
                         const Option& option,
                         const Option& other) {
    Case c =
        draw(static_cast<int64_t>(entry), random.whole(0, kTypes - 1), kind);
    for (const Option& any : options) {
      c.*any.field = none.*any.field;
    }
    c.latest_checkpoint = 0;
    c.*option.field = random.whole(1, option.most);
    c.*other.field = random.whole(1, other.most);
    c.split = random.whole(0, kSplits - 1);
    c.L = random.whole(0, 1) ? random.whole(1, 9) : random.whole(10, 60);
    add(c);
  };
  for (Entry entry : {Entry::forward, Entry::backward, Entry::linear_scan}) {
    for (const Option& option : kOptions) {
      for (const Option& other : kOptions) {
        add_options(entry, 0, kOptions, option, other);
      }
    }
  }
  for (Entry entry : {Entry::forward, Entry::backward}) {
    for (int64_t kind = 1; kind < kKinds; ++kind) {
      for (const Option& option : kGatedOptions) {
        for (const Option& other : kGatedOptions) {
          if (&other >= &option) {
            add_options(entry, kind, kGatedOptions, option, other);
          }
        }
      }
    }
  }
  // Places in time, and in the batch, that take more than 16 bits.
  for (Entry entry : {Entry::forward, Entry::backward, Entry::mask}) {
    for (auto axis : {&Case::N, &Case::L}) {
      Case c = draw(static_cast<int64_t>(entry), random.whole(0, kTypes - 1));
      c.N = c.L = c.D = c.H = 1;
      c.*axis = 70'000;
      c.zoneout = 300;
      c.drawn = static_cast<int64_t>(Drawn::zoneout);
      add(c, axis);
    }
  }
  return cases;
}

} // namespace kernel_tests
