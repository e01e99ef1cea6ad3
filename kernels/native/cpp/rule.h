// How a score follows from a raw product, for whole tables and for tiles of them, and the memory
// that the folds work in.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

#include "vector.h"

namespace rec_jax {

struct Rule {
  float scale = 1;
  const float* bias = nullptr;  // of this shard's rows, or null
  float softcap = 0;            // 0: none
  int64_t offset = 0;           // global id of row 0
  int64_t items = 0;            // rows from here on are no items
  // Whether a bias of -inf takes a row of this shard out.
  bool out(int64_t row) const { return bias && bias[row] == -kInfinity; }
};

// Aligned memory; all of it that is held at once is counted.
class Buffer {
 public:
  explicit Buffer(int64_t bytes) : bytes_(round_up(std::max<int64_t>(bytes, 1), 4096)) {
    data_ = static_cast<char*>(std::aligned_alloc(4096, bytes_));
    if (data_ == nullptr) throw std::bad_alloc();
    const int64_t now = held() += bytes_;
    int64_t before = peak();
    while (before < now && !peak().compare_exchange_weak(before, now)) {
    }
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    held() -= bytes_;
    std::free(data_);
  }
  template <class T = char>
  T* at(int64_t byte = 0) const {
    return reinterpret_cast<T*>(data_ + byte);
  }
  static std::atomic<int64_t>& held() {
    static std::atomic<int64_t> bytes{0};
    return bytes;
  }
  static std::atomic<int64_t>& peak() {
    static std::atomic<int64_t> bytes{0};
    return bytes;
  }

 private:
  int64_t bytes_;
  char* data_;
};

// Raw products [size][32] to scores, in place; a row that is no item scores -inf. Not inlined: a
// score has the same bits wherever it is made.
__attribute__((noinline)) inline void finish_scores(const Rule& rule, int64_t first, int64_t size,
                                                    float* scores) {
  const int64_t valid = std::clamp<int64_t>(rule.items - first, 0, size);
  for (int64_t j = 0; j < valid; ++j) {
    const float bias = rule.bias ? rule.bias[first + j] : 0.0f;
    if (rule.out(first + j)) {
      std::fill_n(scores + j * kGroup, kGroup, -kInfinity);
      continue;
    }
    for (int piece = 0; piece < kPieces; ++piece) {
      float* at = scores + j * kGroup + piece * kLanes;
      Vec s = load(at) * rule.scale + bias;
      if (rule.softcap > 0) s = rule.softcap * tanh(s / rule.softcap);
      store(at, s);
    }
  }
  std::fill(scores + valid * kGroup, scores + size * kGroup, -kInfinity);
}

inline bool plain(const Rule& rule) { return rule.scale == 1 && !rule.bias && rule.softcap <= 0; }

// The rule for a tile of rows [start, start + rows) in room for `size`; the rest are no items.
struct TileRule : Rule {
  int64_t start, size;
  bool as_is;  // raw products are scores
  TileRule(const Rule& rule, int64_t start, int64_t rows, int64_t size)
      : Rule(rule), start(start), size(size) {
    items = std::min(items, start + rows);
    as_is = plain(*this) && start + size <= items;
  }
  void finish(float* scores) const {
    if (!as_is) finish_scores(*this, start, size, scores);
  }
};

// Rows of a tile of which some are taken out: copied to `room`, those 0, for they may hold NaN.
template <class Item>
Rows<Item> without_out(const Rule& rule, int64_t start, int64_t count, Rows<Item> rows, Item* room) {
  bool any = false;
  for (int64_t j = 0; j < count; ++j) any |= rule.out(start + j);
  if (!any) return rows;
  for (int64_t j = 0; j < count; ++j) {
    if (rule.out(start + j)) {
      std::fill_n(room + j * rows.dim, rows.dim, Item{});
    } else {
      std::copy_n(rows.at(j), rows.dim, room + j * rows.dim);
    }
  }
  return {room, rows.dim, rows.dim};
}

}  // namespace rec_jax
