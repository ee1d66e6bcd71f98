// The rows of a call in the order in which they run: those with most steps
// first, so that the rows that still run are the first of each slice.

#pragma once

#include "row_run.h"
#include "team.h"
#include "team_work.h"

namespace {

struct Running {
  const Course& course;
  int64_t N, L;
  // By position in that order; null: each row has its own number, and L steps.
  int64_t* rows = nullptr;
  int64_t* lengths = nullptr;
  int64_t* sorted = nullptr;

  Running(Arena& arena, const Course& c, int64_t N, int64_t L)
      : course(c), N(N), L(L) {
    if (course.lengths.data) {
      rows = arena.take<int64_t>(N);
      lengths = arena.take<int64_t>(N);
      sorted = arena.take<int64_t>(N);
    }
  }

  INLINE_MEMBER int64_t row(int64_t position) const {
    return rows ? rows[position] : position;
  }

  INLINE_MEMBER int64_t length(int64_t position) const {
    return lengths ? lengths[position] : L;
  }

  // Where step i of the run is in time.
  INLINE_MEMBER int64_t place(int64_t position, int64_t i) const {
    return run(position).place(i);
  }

  // Whether an episode starts with step i of the run.
  INLINE_MEMBER bool starts(int64_t position, int64_t i) const {
    return run(position).starts(i);
  }

  // Whether a derivative is cut before step i of the run.
  INLINE_MEMBER bool truncates(int64_t i) const {
    return RowRun{course, 0, L}.truncates(i);
  }

  // Of these positions, which belong to one slice, those that have step i.
  INLINE_MEMBER Range at_step(Range positions, int64_t i) const {
    if (!lengths) {
      return i < L ? positions : Range{positions.first, positions.first};
    }
    int64_t low = positions.first, high = positions.last;
    while (low < high) {
      int64_t middle = (low + high) / 2;
      if (lengths[middle] > i) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return Range{positions.first, low};
  }

  // Steps of the longest of these rows.
  INLINE_MEMBER int64_t most_steps(Range positions) const {
    return positions.first == positions.last ? 0 : length(positions.first);
  }

  // Fills the order; once, by one member. The others wait for it.
  void prepare(const Partition& partition) const {
    if (!lengths) {
      return;
    }
    // Length and row in one number, whose order is that of both: lengths are
    // below 2^31, and there are at most 2^32 rows.
    constexpr int64_t kRow = int64_t{1} << 32;
    for (int64_t n = 0; n < N; ++n) {
      int64_t length = length_of(course, n, L);
      sorted[n] = length * kRow + (kRow - 1 - n);
    }
    sort_descending(sorted, N);
    // Dealt out to the slices in turn, which gives them even work.
    Shares shares{partition, kNobody, N};
    int64_t next[kMostSlices];
    for (int s = 0; s < partition.slices; ++s) {
      next[s] = shares.rows(s).first;
    }
    for (int64_t k = 0, s = 0; k < N; ++k, s = (s + 1) % partition.slices) {
      while (next[s] == shares.rows(static_cast<int>(s)).last) {
        s = (s + 1) % partition.slices;
      }
      int64_t position = next[s]++;
      rows[position] = kRow - 1 - sorted[k] % kRow;
      lengths[position] = sorted[k] / kRow;
    }
  }

 private:
  static constexpr int kMostSlices = kMostThreads;

  INLINE_MEMBER RowRun run(int64_t position) const {
    return RowRun{course, row(position), length(position)};
  }

  // A heap: in place, and never slow.
  static void sort_descending(int64_t* a, int64_t count) {
    auto sink = [a](int64_t i, int64_t end) {
      for (int64_t child; (child = 2 * i + 1) < end; i = child) {
        if (child + 1 < end && a[child + 1] < a[child]) {
          ++child;
        }
        if (a[i] <= a[child]) {
          return;
        }
        int64_t moved = a[i];
        a[i] = a[child];
        a[child] = moved;
      }
    };
    for (int64_t i = count / 2 - 1; i >= 0; --i) {
      sink(i, count);
    }
    for (int64_t end = count - 1; end > 0; --end) {
      int64_t least = a[0];
      a[0] = a[end];
      a[end] = least;
      sink(0, end);
    }
  }
};

} // namespace
