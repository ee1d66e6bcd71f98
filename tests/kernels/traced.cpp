#include "traced.h"

#include <cmath>

namespace kernel_tests {

namespace {

using mlx_recurrent::kernels::Op;

double logistic(double a) {
  return 1 / (1 + std::exp(-a));
}

// The density of the normal distribution, and its integral.
double density(double a) {
  return std::exp(-0.5 * a * a) * 0.3989422804014326779;
}
double distribution(double a) {
  return 0.5 * std::erfc(-a * 0.7071067811865475244);
}

std::vector<Traced> all_traced() {
  return {
      // swish
      {{{{Op::sigmoid, 1, 0, 0, 0}, {Op::multiply, 1, 0, 1, 0}}, {}, 1, 1, 1},
       {{{Op::sigmoid, 3, 0, 0, 0},
         {Op::subtract, 4, 2, 3, 0},
         {Op::multiply, 4, 0, 4, 0},
         {Op::add, 4, 2, 4, 0},
         {Op::multiply, 3, 3, 4, 0},
         {Op::multiply, 3, 3, 1, 0}},
        {1},
        2,
        2,
        3},
       [](double a) { return a * logistic(a); },
       [](double a) { return logistic(a) * (1 + a * (1 - logistic(a))); },
       0.5,
       0,
       {}},
      // gelu
      {{{{Op::multiply, 4, 0, 1, 0},
         {Op::erf, 4, 4, 0, 0},
         {Op::add, 4, 4, 2, 0},
         {Op::multiply, 4, 4, 0, 0},
         {Op::multiply, 4, 4, 3, 0}},
        {0.7071067811865475244, 1, 0.5},
        1,
        1,
        4},
       {{{Op::multiply, 6, 0, 2, 0},
         {Op::erf, 7, 6, 0, 0},
         {Op::add, 7, 7, 3, 0},
         {Op::multiply, 7, 7, 4, 0},
         {Op::square, 6, 6, 0, 0},
         {Op::negative, 6, 6, 0, 0},
         {Op::exp, 6, 6, 0, 0},
         {Op::multiply, 6, 6, 5, 0},
         {Op::multiply, 6, 6, 0, 0},
         {Op::add, 8, 6, 7, 0},
         {Op::multiply, 7, 8, 1, 0}},
        {0.7071067811865475244, 1, 0.5, 0.3989422804014326779},
        2,
        3,
        7},
       [](double a) { return a * distribution(a); },
       [](double a) { return distribution(a) + a * density(a); },
       0.8,
       0,
       {}},
      // leaky relu
      {{{{Op::multiply, 2, 0, 1, 0}, {Op::maximum, 2, 2, 0, 0}},
        {0.0625},
        1,
        1,
        2},
       {{{Op::greater, 4, 0, 3, 0},
         {Op::multiply, 5, 2, 1, 0},
         {Op::select, 4, 4, 1, 5}},
        {0.0625, 0},
        2,
        2,
        4},
       [](double a) { return a > 0 ? a : 0.0625 * a; },
       [](double a) { return a > 0 ? 1 : 0.0625; },
       0,
       1,
       {0}},
      // hard tanh
      {{{{Op::minimum, 3, 0, 1, 0}, {Op::maximum, 3, 3, 2, 0}},
        {1, -1},
        1,
        1,
        3},
       {{{Op::less_equal, 5, 0, 2, 0},
         {Op::greater_equal, 6, 0, 3, 0},
         {Op::logical_and, 5, 5, 6, 0},
         {Op::select, 5, 5, 1, 4}},
        {1, -1, 0},
        2,
        2,
        5},
       [](double a) { return a > 1 ? 1
                          : a < -1 ? -1
                                   : a; },
       [](double a) { return a <= 1 && a >= -1 ? 1.0 : 0.0; },
       0,
       1,
       {-1, 1}},
      // softsign
      {{{{Op::abs, 2, 0, 0, 0},
         {Op::add, 2, 2, 1, 0},
         {Op::divide, 2, 0, 2, 0}},
        {1},
        1,
        1,
        2},
       {{{Op::abs, 3, 0, 0, 0},
         {Op::add, 3, 3, 2, 0},
         {Op::square, 3, 3, 0, 0},
         {Op::divide, 3, 1, 3, 0}},
        {1},
        2,
        1,
        3},
       [](double a) { return a / (1 + std::fabs(a)); },
       [](double a) { return 1 / ((1 + std::fabs(a)) * (1 + std::fabs(a))); },
       2,
       0,
       {}},
      // elu
      {{{{Op::greater, 2, 0, 1, 0},
         {Op::expm1, 3, 0, 0, 0},
         {Op::select, 2, 2, 0, 3}},
        {0},
        1,
        2,
        2},
       {{{Op::greater, 3, 0, 2, 0},
         {Op::exp, 4, 0, 0, 0},
         {Op::multiply, 4, 4, 1, 0},
         {Op::select, 3, 3, 1, 4}},
        {0},
        2,
        2,
        3},
       [](double a) { return a > 0 ? a : std::expm1(a); },
       [](double a) { return a > 0 ? 1 : std::exp(a); },
       1,
       0,
       {}},
      // softplus
      {{{{Op::logaddexp, 2, 0, 1, 0}}, {0}, 1, 1, 2},
       {{{Op::sigmoid, 2, 0, 0, 0}, {Op::multiply, 2, 1, 2, 0}}, {}, 2, 1, 2},
       [](double a) {
         return std::fmax(a, 0) + std::log1p(std::exp(-std::fabs(a)));
       },
       logistic,
       0.25,
       0,
       {}},
      // the input itself
      {{{}, {}, 1, 0, 0},
       {{}, {}, 2, 0, 1},
       [](double a) { return a; },
       [](double) { return 1.0; },
       0,
       0,
       {}},
      // a constant
      {{{}, {0.75}, 1, 0, 1},
       {{}, {0}, 2, 0, 2},
       [](double) { return 0.75; },
       [](double) { return 0.0; },
       0,
       0,
       {}}};
}

} // namespace

const Traced& traced(int64_t which) {
  static const std::vector<Traced> all = all_traced();
  return all[static_cast<size_t>(which)];
}

} // namespace kernel_tests
