#include "cell_programs.h"

#include <vector>

namespace kernel_tests {

namespace {

using mlx_recurrent::kernels::Instruction;
using mlx_recurrent::kernels::Op;
using mlx_recurrent::kernels::Program;

// A program while it is written: numbers are operands. Its only constant is
// one.
class Assembly {
 public:
  explicit Assembly(int inputs) : inputs_(inputs) {
  }

  int one() const {
    return inputs_;
  }
  int run(Op op, int a, int b = 0) {
    int to = inputs_ + 1 + slots_++;
    auto narrow = [](int number) { return static_cast<int16_t>(number); };
    code_.push_back({op, narrow(to), narrow(a), narrow(b), 0});
    return to;
  }
  int times(int a, int b) {
    return run(Op::multiply, a, b);
  }
  int less(int a, int b) {
    return run(Op::subtract, a, b);
  }
  int plus(int a, int b) {
    return run(Op::add, a, b);
  }
  // a (1 - a)
  int slope(int a) {
    return times(a, less(one(), a));
  }
  // 1 - a^2
  int rest(int a) {
    return less(one(), times(a, a));
  }
  void give(std::vector<int32_t> results) {
    results_ = std::move(results);
  }
  // Points to this.
  Program program() const {
    return {
        code_.data(),
        static_cast<int32_t>(code_.size()),
        &kOne,
        1,
        inputs_,
        slots_,
        results_.data(),
        static_cast<int32_t>(results_.size())};
  }

 private:
  static constexpr double kOne = 1;

  int inputs_, slots_ = 0;
  std::vector<Instruction> code_;
  std::vector<int32_t> results_;
};

struct Lstm {
  int i, f, g, o, c, t;

  // Of slabs 0 to 3 and states 4 and 5.
  explicit Lstm(Assembly& a)
      : i(a.run(Op::sigmoid, 0)),
        f(a.run(Op::sigmoid, 1)),
        g(a.run(Op::tanh, 2)),
        o(a.run(Op::sigmoid, 3)),
        c(a.plus(a.times(f, 5), a.times(i, g))),
        t(a.run(Op::tanh, c)) {
  }
};

Assembly lstm_step() {
  Assembly a(6);
  Lstm of(a);
  a.give({a.times(of.o, of.t), of.c});
  return a;
}

Assembly lstm_pullback() {
  Assembly a(8);
  Lstm of(a);
  int dh = 6;
  int dc = a.plus(7, a.times(a.times(dh, of.o), a.rest(of.t)));
  a.give(
      {a.times(a.times(dc, of.g), a.slope(of.i)),
       a.times(a.times(dc, 5), a.slope(of.f)),
       a.times(a.times(dc, of.i), a.rest(of.g)),
       a.times(a.times(dh, of.t), a.slope(of.o)),
       a.less(a.one(), a.one()),
       a.times(dc, of.f)});
  return a;
}

struct Gru {
  int r, z, n;

  // Of slabs u, r, z and n.
  explicit Gru(Assembly& a)
      : r(a.run(Op::sigmoid, 1)),
        z(a.run(Op::sigmoid, 2)),
        n(a.run(Op::tanh, a.plus(3, a.times(r, 0)))) {
  }
};

Assembly gru_step() {
  Assembly a(5);
  Gru of(a);
  int fresh = a.times(a.less(a.one(), of.z), of.n);
  a.give({a.plus(fresh, a.times(of.z, 4))});
  return a;
}

Assembly gru_pullback() {
  Assembly a(6);
  Gru of(a);
  int d = 5;
  int dn = a.times(a.times(d, a.less(a.one(), of.z)), a.rest(of.n));
  a.give(
      {a.times(dn, of.r),
       a.times(a.times(dn, 0), a.slope(of.r)),
       a.times(a.times(d, a.less(4, of.n)), a.slope(of.z)),
       dn,
       a.times(d, of.z)});
  return a;
}

} // namespace

const CellPrograms& cell_programs(CellKind kind) {
  static const Assembly step = lstm_step(), pullback = lstm_pullback();
  static const Assembly gru = gru_step(), gru_back = gru_pullback();
  static const CellPrograms of_lstm = {
      {0, 4, 0, 2, 4}, step.program(), pullback.program()};
  static const CellPrograms of_gru = {
      {1, 2, 1, 1, 4}, gru.program(), gru_back.program()};
  return kind == CellKind::lstm ? of_lstm : of_gru;
}

} // namespace kernel_tests
