// Products of f32 on vector registers: the engine of any CPU.
#pragma once

#include "vector.h"

namespace rec_jax {

// What `multiply` multiplies: one number a lane.
struct Singles {
  using Element = float;
  using Lanes = Vec;
  static Vec load(const float* p) { return rec_jax::load(p); }
  static Vec add(Vec sum, float a, Vec b) { return sum + a * b; }
};

constexpr int kRows = kMachine.rows;
constexpr int kPanel = kMachine.columns * kLanes;  // columns of a block of sums
static_assert(kRows % 4 == 0 || kRows == 6, "by_strips leaves no rest");

// Calls run(first, integral_constant of rows) for strips of kRows rows, and of four where these
// leave a rest. rows: a multiple of eight.
template <class Run>
inline void by_strips(int64_t rows, const Run& run) {
  const int64_t rest = rows % kRows, narrow = kRows == 6 ? (6 - rest) % 6 / 2 : rest / 4;
  int64_t row = 0;
  for (; row < rows - 4 * narrow; row += kRows) run(row, std::integral_constant<int, kRows>{});
  for (; row < rows; row += 4) run(row, std::integral_constant<int, 4>{});
}

// Left sides of a product, a(row, k). A strip's elements lie at strip<n>(row) + i * row + k * step<n>.
template <class Element>
struct ByRow {  // [rows][row]
  const Element* data;
  int64_t row;
  template <int kCount>
  const Element* strip(int64_t first) const { return data + first * row; }
  template <int kCount>
  static constexpr int64_t step() { return 1; }
};

template <class Element>
struct ByStrip {  // strips of [depth][rows of the strip], see by_strips; from k = `skipped` on
  const Element* data;
  int64_t depth, skipped;
  static constexpr int64_t row = 1;
  template <int kCount>
  const Element* strip(int64_t first) const { return data + first * depth + skipped * kCount; }
  template <int kCount>
  static constexpr int64_t step() { return kCount; }
};

// The right side: B[step][k][kPanel], k < depth; of a step is `of_step`, of k `of_k` elements.
template <class Element>
struct Right {
  const Element* data;
  int64_t of_k, depth, of_step = 0, steps = 1;  // depth and steps: at least one
};

// C[i][kPanel] (+)= sum over steps and k of a(i, step * depth + k) * B[step][k], for kCount rows.
// Not inlined: the compiler would keep the caller's values in the registers of the sums. Unrolled:
// the sums are to be registers, too, before and after the loop.
template <bool kAdd, class Of, int kCount, class Left>
__attribute__((noinline)) void multiply_strip(float* c, int64_t c_row, const Left& left, int64_t first,
                           const Right<typename Of::Element>& right) {
  constexpr int kColumns = kMachine.columns;
  Vec sums[kCount][kColumns];
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < kColumns; ++v)
      sums[i][v] = kAdd ? load(c + i * c_row + v * kLanes) : Vec{};
  const typename Of::Element* a = left.template strip<kCount>(first);
  const typename Of::Element* of_step = right.data;
  int64_t steps = right.steps;
  do {
    const typename Of::Element* b = of_step;
    int64_t depth = right.depth;
    do {
      typename Of::Lanes lanes[kColumns];
#pragma GCC unroll 16
      for (int v = 0; v < kColumns; ++v) lanes[v] = Of::load(b + v * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < kCount; ++i)
#pragma GCC unroll 16
        for (int v = 0; v < kColumns; ++v) sums[i][v] = Of::add(sums[i][v], a[i * left.row], lanes[v]);
      a += left.template step<kCount>();
      b += right.of_k;
    } while (--depth > 0);
    of_step += right.of_step;
  } while (--steps > 0);
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < kColumns; ++v) store(c + i * c_row + v * kLanes, sums[i][v]);
}

// The same for `rows` rows, a multiple of eight, and `panels` panels of columns, whose right sides
// lie `of_panel` elements apart.
template <bool kAdd, class Of = Singles, class Left>
inline void multiply(float* c, int64_t c_row, const Left& left, int64_t rows,
                     Right<typename Of::Element> right, int64_t panels, int64_t of_panel) {
  if (right.depth == 0 || right.steps == 0) return;  // of keys that nobody sees: adds nothing
  for (int64_t panel = 0; panel < panels; ++panel, c += kPanel, right.data += of_panel)
    by_strips(rows, [&](int64_t row, auto count) {
      multiply_strip<kAdd, Of, count.value>(c + row * c_row, c_row, left, row, right);
    });
}

// Rows of 32 queries as [steps * kLanes][32] lanes; lanes(q, step): a register of query q, q < count.
template <class Lanes>
inline void pack_by_lane(int64_t count, int64_t steps, int32_t* out, const Lanes& lanes) {
  for (int64_t step = 0; step < steps; ++step) {
    for (int piece = 0; piece < kPieces; ++piece) {
      Ints block[kLanes];
      for (int i = 0; i < kLanes; ++i)
        block[i] = piece * kLanes + i < count ? lanes(piece * kLanes + i, step) : Ints{};
      transpose(block);
      for (int i = 0; i < kLanes; ++i)
        store_int(out + (step * kLanes + i) * kGroup + piece * kLanes, block[i]);
    }
  }
}

// weight(item, piece, scores) of a span of scores [size][32], to out, `stride` floats an item.
template <class Weight>
inline void weigh(const float* scores, Span span, float* out, int64_t stride,
                  const Weight& weight) {
#pragma GCC unroll 8
  for (int piece = 0; piece < kPieces; ++piece)
    for (int64_t j = span.begin; j < span.end; ++j)
      store(out + j * stride + piece * kLanes,
            weight(j, piece, load(scores + j * kGroup + piece * kLanes)));
}

// See `fold.h` for what an engine has to offer.
template <class Query, class Item>
struct VectorEngine {
  static constexpr int64_t kUnit = kPanel;
  static constexpr int64_t kPanels = kGroup / kPanel;  // of a group of queries

  static void enter() {}
  static void leave() {}

  static int64_t query_bytes(int64_t width) { return width * kGroup * 4; }

  // [width][32 queries]
  static void pack_queries(Rows<Query> rows, int64_t count, int64_t width, void* packed) {
    pack_by_lane(count, width / kLanes, static_cast<int32_t*>(packed), [&](int q, int64_t step) {
      return (Ints)load_row(rows.at(q), step * kLanes, rows.dim);
    });
  }

  static int64_t side_bytes(int64_t width) { return width * kGroup * 4; }

  // [width / kPanel][32 queries][kPanel]
  static void pack_side(Rows<Query> rows, int64_t count, int64_t width, void* packed) {
    float* out = static_cast<float*>(packed);
    for (int64_t q = 0; q < kGroup; ++q)
      for (int64_t k = 0; k < width; k += kLanes)
        store(out + (k / kPanel * kGroup + q) * kPanel + k % kPanel,
              q < count ? load_row(rows.at(q), k, rows.dim) : Vec{});
  }

  static int64_t tile_bytes(int64_t size, int64_t width) { return size * width * 4; }

  // [size][width]
  static void pack_tile(Rows<Item> rows, int64_t count, int64_t size, int64_t width,
                        void* packed) {
    float* out = static_cast<float*>(packed);
    for (int64_t j = 0; j < size; ++j)
      for (int64_t k = 0; k < width; k += kLanes)
        store(out + j * width + k, j < count ? load_row(rows.at(j), k, rows.dim) : Vec{});
  }

  static int64_t values_bytes(int64_t size, int64_t width) { return size * width * 4; }

  // Strips of [size][columns of the strip]
  static void pack_values(Rows<Item> rows, int64_t count, int64_t size, int64_t width,
                          void* packed) {
    float* out = static_cast<float*>(packed);
    by_strips(width, [&](int64_t first, auto columns) {
      float* at = out + first * size;
      for (int64_t j = 0; j < size; ++j, at += columns.value)
        copy_columns<columns.value>(rows.at(j), first, j < count ? rows.dim : 0, at);
    });
  }

  static void score(const void* queries, const void* tile, int64_t size, int64_t width, Span span,
                    float* scores) {
    (void)size;
    multiply<false>(scores + span.begin * kGroup, kGroup,
                    ByRow<float>{static_cast<const float*>(tile) + span.begin * width, width},
                    span.end - span.begin,
                    {static_cast<const float*>(queries), kGroup, width}, kPanels, kPanel);
  }

  static int64_t weights_bytes(int64_t size, int64_t steps) { return size * steps * kGroup * 4; }

  template <class Weight>
  static void fold_items(const void* values, int64_t size, int64_t width, Span span,
                         const float* scores, void* weights, float* expected,
                         const Weight& weight) {
    float* p = static_cast<float*>(weights);
    weigh(scores, span, p, kGroup, weight);
    multiply<true>(expected, kGroup,
                   ByStrip<float>{static_cast<const float*>(values), size, span.begin}, width,
                   {p + span.begin * kGroup, kGroup, span.end - span.begin}, kPanels, kPanel);
  }

  template <class Weight>
  static void pack_weights(const float* scores, int64_t size, Span span, int64_t step, int64_t room,
                           void* weights, const Weight& weight) {
    (void)size;
    weigh(scores, span, static_cast<float*>(weights) + step * kGroup, room * kGroup, weight);
  }

  static void fold_queries(const void* weights, const void* side, int64_t size, Span span,
                           int64_t steps, int64_t room, int64_t width, float* grad) {
    (void)size;
    const int64_t row = room * kGroup;
    multiply<true>(grad + span.begin * width, width,
                   ByRow<float>{static_cast<const float*>(weights) + span.begin * row, row},
                   span.end - span.begin,
                   {static_cast<const float*>(side), kPanel, kGroup, width * kGroup, steps},
                   width / kPanel, kGroup * kPanel);
  }

 private:
  // kCount elements of a row from `first` on, 0 from `dim` on.
  template <int kCount, class T>
  static void copy_columns(const T* row, int64_t first, int64_t dim, float* out) {
    if (first + kCount <= dim) {
      for (int i = 0; i < kCount; ++i) out[i] = to_float(row[first + i]);
    } else {
      for (int i = 0; i < kCount; ++i) out[i] = first + i < dim ? to_float(row[first + i]) : 0;
    }
  }
};

}  // namespace rec_jax
