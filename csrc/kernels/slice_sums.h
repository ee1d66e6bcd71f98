// Sums that each slice of the batch forms for itself.

#pragma once

#include "team_work.h"

namespace {

// A sum (M, K) that each slice forms for itself, and the result that they are
// added up to in order. The first sums in the result where that has whole
// vectors of what is computed with.
template <class T>
struct SliceSums {
  typedef Compute<T> C;
  static constexpr int lanes = Simd<C>::lanes;
  Element<T>* out = nullptr; // null: not wanted
  C* first = nullptr;        // (M, ld), of the first slice
  C* others = nullptr;       // (M, ld) each, of the others
  int64_t M = 0, K = 0, ld = 0;
  int slices = 0;

  SliceSums() = default;

  SliceSums(Arena& arena, void* result, int64_t rows, int64_t columns, int n)
      : out(static_cast<Element<T>*>(result)), M(rows), K(columns), slices(n) {
    ld = sums_in_result() ? K : leading_dimension<C>(K);
    first = sums_in_result() ? reinterpret_cast<C*>(out)
                             : arena.take<C>(out ? M * ld : 0);
    others = arena.take<C>(out ? (slices - 1) * M * ld : 0);
  }

  bool sums_in_result() const {
    return sizeof(Element<T>) == sizeof(C) && K % lanes == 0;
  }

  C* of(int slice) const {
    return slice == 0 ? first : others + (slice - 1) * M * ld;
  }

  // Columns of panels [first, last) become zero.
  void clear_columns(int slice, Range panels) const {
    Range columns = columns_of<C>(panels, K);
    int64_t last = ceil_div(columns.last, lanes) * lanes;
    for (int64_t i = 0; out && i < M; ++i) {
      clear(of(slice) + i * ld + columns.first, last - columns.first);
    }
  }

  // Adds the slices up; rows [own.first, own.last).
  void write(Range own) const {
    if (!out || (slices == 1 && sums_in_result())) {
      return;
    }
    for (int64_t i = own.first; i < own.last; ++i) {
      for (int64_t j = 0; j < K; j += lanes) {
        Vec<C> total = load_as<Vec<C>>(first + i * ld + j);
        for (int s = 1; s < slices; ++s) {
          total += load_as<Vec<C>>(of(s) + i * ld + j);
        }
        store_some<T>(out + i * K + j, total, K - j);
      }
    }
  }
};

} // namespace
