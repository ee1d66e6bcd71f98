// How the slabs of a cell lie in scratch memory, and its weights in panels.

#pragma once

#include "cell.h"
#include "team_work.h"

namespace {

template <class C>
struct Slabs {
  CellShape shape;
  int64_t H;
  int64_t width; // from a slab to the next
  int64_t ld;    // from a row to the next

  Slabs(const CellShape& shape, int64_t H) : shape(shape), H(H) {
    constexpr int64_t line = kLine / sizeof(C);
    bool one = shape.slabs() == 1;
    width = one ? leading_dimension<C>(H)
                : ceil_div(H, Simd<C>::lanes) * Simd<C>::lanes;
    ld = one ? width : (ceil_div(shape.slabs() * width, line) | 1) * line;
  }

  explicit Slabs(const RecurrenceArgs& g) : Slabs(shape_of(g), g.H) {
  }

  int64_t input_column() const {
    return shape.state_only * width;
  }
  // Terms of the products that go back through the weights: with several slabs
  // zeros stand between them.
  int64_t depth(int slabs) const {
    return shape.slabs() == 1 ? slabs * H : slabs * width;
  }

  // Copies some columns of a slab of one row.
  INLINE_MEMBER void copy_columns(const C* from, C* to, int slab, Range columns)
      const {
    int64_t at = slab * width;
    for (int64_t j = columns.first; j < columns.last; j += Simd<C>::lanes) {
      store_as(to + at + j, load_as<Vec<C>>(from + at + j));
    }
  }

  // Panels [first, last) of each slab of Whh^T (H, slabs * H).
  template <class T>
  void pack_state(const Panels<T>& to, const Matrix& Whh, Range own) const {
    for (int k = 0; k < shape.state_slabs(); ++k) {
      pack<T>(
          to,
          PanelPlace{shape.state_slabs(), k, H, 0, 0},
          rows_of<T>(Whh, shape.state_block(k)),
          Whh.column_stride,
          Whh.row_stride,
          H,
          H,
          own.first,
          own.last);
    }
  }

  // The same of Wxh^T (D, slabs * H).
  template <class T>
  void pack_input(const Panels<T>& to, const Matrix& Wxh, int64_t D, Range own)
      const {
    for (int k = 0; k < shape.input_slabs(); ++k) {
      pack<T>(
          to,
          PanelPlace{shape.input_slabs(), k, D, 0, 0},
          rows_of<T>(Wxh, k),
          Wxh.column_stride,
          Wxh.row_stride,
          D,
          H,
          own.first,
          own.last);
    }
  }

  // Panels of a weight's columns, Whh (slabs * H, H) or Wxh (slabs * H, D).
  template <class T>
  void pack_back(
      const Panels<T>& to,
      const Matrix& weights,
      bool of_state,
      int64_t columns,
      Range own) const {
    int slabs = of_state ? shape.state_slabs() : shape.input_slabs();
    int64_t total = depth(slabs);
    for (int k = 0; k < slabs; ++k) {
      pack<T>(
          to,
          PanelPlace{1, 0, total, k * width, total > H ? width - H : 0},
          rows_of<T>(weights, of_state ? shape.state_block(k) : k),
          weights.row_stride,
          weights.column_stride,
          H,
          columns,
          own.first,
          own.last);
    }
  }

 private:
  template <class T>
  const Element<T>* rows_of(const Matrix& weights, int block) const {
    return static_cast<const Element<T>*>(weights.data) +
        block * H * weights.row_stride;
  }
};

} // namespace
