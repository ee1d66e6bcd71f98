#include "case.h"

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <vector>

#include "kernels/kernels.h"

namespace kernel_tests {

using mlx_recurrent::kernels::Activation;
using mlx_recurrent::kernels::Drawn;

namespace {

struct Field {
  const char* name;
  int64_t Case::* value;
  std::vector<const char*> words; // of the values from 0 on; none: a number
};

const std::vector<Field>& fields() {
  static const std::vector<Field> all = {
      {"entry",
       &Case::entry,
       {"matmul",
        "outer_sum",
        "forward",
        "backward",
        "linear_scan",
        "pointwise",
        "mask"}},
      {"type", &Case::type, {"float32", "float64", "float16", "bfloat16"}},
      {"N", &Case::N, {}},
      {"L", &Case::L, {}},
      {"D", &Case::D, {}},
      {"H", &Case::H, {}},
      {"kind", &Case::kind, {"elman", "gru", "lstm"}},
      {"as_program", &Case::as_program, {}},
      {"activation",
       &Case::activation,
       {"tanh", "relu", "sigmoid", "identity", "traced"}},
      {"program",
       &Case::program,
       {"swish",
        "gelu",
        "leaky_relu",
        "hard_tanh",
        "softsign",
        "elu",
        "softplus",
        "input",
        "constant"}},
      {"projected", &Case::projected, {}},
      {"bias", &Case::bias, {}},
      {"hidden", &Case::hidden, {}},
      {"hidden0", &Case::hidden0, {}},
      {"leak", &Case::leak, {}},
      {"bhn", &Case::bhn, {}},
      {"cell", &Case::cell, {}},
      {"cell0", &Case::cell0, {}},
      {"lengths", &Case::lengths, {"all", "any", "equal", "none", "beyond"}},
      {"reset", &Case::reset, {"nowhere", "some", "everywhere", "first"}},
      {"mask", &Case::mask, {}},
      {"reverse", &Case::reverse, {}},
      {"truncate_every", &Case::truncate_every, {}},
      {"zoneout", &Case::zoneout, {}},
      {"recurrent_dropout", &Case::recurrent_dropout, {}},
      {"input_dropout", &Case::input_dropout, {}},
      {"zoneout_cell", &Case::zoneout_cell, {}},
      {"sets", &Case::sets, {}},
      {"drawn",
       &Case::drawn,
       {"zoneout", "recurrent_dropout", "input_dropout", "zoneout_cell"}},
      {"alpha", &Case::alpha, {}},
      {"beta", &Case::beta, {}},
      {"gamma", &Case::gamma, {}},
      {"transposed", &Case::transposed, {}},
      {"states", &Case::states, {}},
      {"slabs", &Case::slabs, {}},
      {"checkpoint_every", &Case::checkpoint_every, {}},
      {"latest_checkpoint", &Case::latest_checkpoint, {}},
      {"cells_every", &Case::cells_every, {}},
      {"state", &Case::state, {}},
      {"dstates", &Case::dstates, {}},
      {"last_cell", &Case::last_cell, {}},
      {"dcells", &Case::dcells, {}},
      {"cells", &Case::cells, {}},
      {"saved", &Case::saved, {}},
      {"wanted", &Case::wanted, {}},
      {"contents", &Case::contents, {"ordinary", "large", "small", "zero"}},
      {"layout",
       &Case::layout,
       {"contiguous", "transposed", "gaps", "reversed", "broadcast"}},
      {"split", &Case::split, {"none", "batch", "units"}},
      {"threads", &Case::threads, {}},
      {"slices", &Case::slices, {}},
      {"members", &Case::members, {}},
      {"seed", &Case::seed, {}}};
  return all;
}

bool parse_value(const Field& field, const std::string& text, int64_t& value) {
  for (size_t i = 0; i < field.words.size(); ++i) {
    if (text == field.words[i]) {
      value = static_cast<int64_t>(i);
      return true;
    }
  }
  char* end = nullptr;
  value = std::strtoll(text.c_str(), &end, 10);
  return field.words.empty() && !text.empty() && *end == '\0';
}

} // namespace

// What one kind of cell has and another has not.
void Case::settle_cell() {
  bool lstm = of_kind() == CellKind::lstm;
  // A program rounds no state on the way.
  bool whole = type == static_cast<int64_t>(Type::float32) ||
      type == static_cast<int64_t>(Type::float64);
  if (of_kind() == CellKind::elman || !whole) {
    as_program = 0;
  }
  if (of_kind() != CellKind::elman) {
    activation = projected = leak = 0;
  }
  if (!cell_of(of_kind()).has_bhn) {
    bhn = 0;
  }
  // A program keeps all its states.
  if (!lstm || as_program || checkpoint_every > 0) {
    cells_every = 0;
  }
  if (!lstm) {
    cell = cell0 = 0;
    last_cell = dcells = cells = 1;
    zoneout_cell = which() == Entry::mask ? zoneout_cell : 0;
  }
}

void Case::settle() {
  bool layer = which() == Entry::forward || which() == Entry::backward;
  bool scan = which() == Entry::linear_scan;
  bool pointwise = which() == Entry::pointwise;
  bool of_mask = which() == Entry::mask;
  if (!layer) {
    kind = activation = projected = checkpoint_every = latest_checkpoint = 0;
    leak = mask = 0;
    state = 1;
  }
  settle_cell();
  bool traced = layer && activation == static_cast<int64_t>(Activation::traced);
  if (!of_mask) {
    drawn = 0;
  }
  int64_t* probabilities[] = {
      &zoneout, &recurrent_dropout, &input_dropout, &zoneout_cell};
  for (int64_t i = 0; i < 4; ++i) {
    if (!layer && !(of_mask && drawn == i)) {
      *probabilities[i] = 0;
    } else if (of_mask && *probabilities[i] == 0) {
      *probabilities[i] = 250;
    }
  }
  if (of_mask && drawn != static_cast<int64_t>(Drawn::zoneout) &&
      drawn != static_cast<int64_t>(Drawn::zoneout_of_second)) {
    L = 1; // a dropout is the same at every step
  }
  if (!layer && !scan) {
    hidden = hidden0 = lengths = reset = reverse = truncate_every = 0;
  }
  if (!scan) {
    alpha = beta = gamma = transposed = 0;
    states = slabs = 1;
  }
  if (!pointwise && !traced) {
    program = 0;
  }
  if (pointwise || of_mask) {
    D = 1;
    bias = layout = contents = 0;
  }
  if (scan || projected) {
    D = H;
    bias = input_dropout = 0;
  }
  if (transposed) {
    hidden = hidden0 = 0;
  }
  if (which() == Entry::outer_sum) {
    bias = 0;
  }
  if (which() != Entry::backward) {
    wanted = want_every;
    dstates = dcells = 1;
  }
  if (which() != Entry::forward) {
    cells = 1;
  }
  if (zoneout == 0 && recurrent_dropout == 0 && input_dropout == 0 &&
      zoneout_cell == 0) {
    sets = 1;
  }
  if (checkpoint_every == 0) {
    latest_checkpoint = 0;
  }
  if (latest_checkpoint) {
    // What is left of the states is enough for nothing else.
    truncate_every = checkpoint_every;
    dstates = dcells = which() != Entry::backward;
  }
  if (checkpoint_every > 0 || cells_every > 0 || !(traced || leak || kind)) {
    saved = 1;
  }
  if (split == 0) {
    threads = slices = 1;
  } else if (split == 2) {
    slices = 1;
  }
  if (members > threads) {
    members = threads;
  }
}

std::string Case::text() const {
  Case ordinary;
  ordinary.entry = entry;
  ordinary.settle();
  std::string out;
  for (const Field& field : fields()) {
    int64_t value = this->*field.value;
    bool always = field.value == &Case::entry || field.value == &Case::type ||
        field.value == &Case::N || field.value == &Case::L ||
        field.value == &Case::D || field.value == &Case::H;
    if (!always && value == ordinary.*field.value) {
      continue;
    }
    out += out.empty() ? "" : " ";
    out += field.name;
    out += "=";
    out += field.words.empty() ? std::to_string(value)
                               : field.words[static_cast<size_t>(value)];
  }
  return out;
}

bool Case::parse(const std::string& text, Case& result) {
  result = Case();
  std::istringstream words(text);
  std::string word;
  while (words >> word) {
    size_t equals = word.find('=');
    bool understood = false;
    for (const Field& field : fields()) {
      if (equals != std::string::npos && word.substr(0, equals) == field.name) {
        understood =
            parse_value(field, word.substr(equals + 1), result.*field.value);
      }
    }
    if (!understood) {
      std::fprintf(stderr, "not understood: %s\n", word.c_str());
      return false;
    }
  }
  result.settle();
  return true;
}

} // namespace kernel_tests
