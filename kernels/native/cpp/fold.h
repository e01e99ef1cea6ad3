// The two folds of the softmax over tiles of items; `primitives.py` says what they compute.
//
// An engine is a struct of static functions that packs operands as its products want them:
//   enter, leave            before and after a thread's work
//   pack_queries, score     scores [size][32] of a tile of items and a group of 32 queries
//   pack_tile, pack_values  a tile of items for `score`, and for `fold_items`
//   fold_items              expected [width][32] += items^T * weight(scores)
//   pack_weights, pack_side, fold_queries
//                           grad [size][width] += weight(scores) * queries, over several groups
//   kUnit                   what widths are padded to a multiple of
// Only the items of a span take part. Sizes are padded to multiples of 32; what pads a row or a
// group is 0.
// How the work is cut depends on the problem alone, so that the result does not depend on threads.
#pragma once

#include <algorithm>

#include "parallel.h"
#include "rule.h"
#include "vector.h"

namespace rec_jax {

constexpr int64_t kForwardTile = 128;  // items of a tile
constexpr int64_t kGradTile = 64;
constexpr int64_t kGradGroups = 8;   // groups between additions to a tile's gradient

// Units of work of a pass: blocks of groups of queries, and where those are few also cuts of the
// items, so that many cores have work.
struct Cuts {
  int64_t groups, block, blocks, cuts, num_rows, rows;
  Cuts(int64_t groups, int64_t block, int64_t num_rows, int64_t least_rows)
      : groups(groups), block(block), blocks(ceil_div(groups, block)), num_rows(num_rows) {
    cuts = std::clamp<int64_t>(std::min(ceil_div(64, blocks), num_rows / least_rows), 1, 64);
    rows = round_up(ceil_div(num_rows, cuts), kForwardTile);
  }
  int64_t units() const { return blocks * cuts; }
  int64_t cut(int64_t unit) const { return unit / blocks; }
  int64_t first_group(int64_t unit) const { return unit % blocks * block; }
  int64_t groups_of(int64_t unit) const { return std::min(block, groups - first_group(unit)); }
  int64_t begin(int64_t unit) const { return std::min(cut(unit) * rows, num_rows); }
  int64_t end(int64_t unit) const { return std::min((cut(unit) + 1) * rows, num_rows); }
};

inline Vec slope_of(const Rule& rule, Vec s) {
  Vec bent = s / rule.softcap;
  return 1.0f - bent * bent;
}

// The labels of a group that lie in a tile score -inf.
inline void mask_labels(const int32_t* targets, int64_t first_id, int64_t size, float* scores) {
  for (int q = 0; q < kGroup; ++q) {
    const int64_t row = int64_t(targets[q]) - first_id;
    if (row >= 0 && row < size) scores[row * kGroup + q] = -kInfinity;
  }
}

// Arguments of a fold. rows, queries: `[V, dim]`, `[N, dim]`; targets: `[N]`, global ids, or null.
template <class Query, class Item>
struct Arguments {
  const Query* queries;
  const Item* items;
  const int32_t* targets;
  int64_t num_queries, num_rows, dim;
  Rule rule;
  template <class Engine>
  int64_t width() const { return round_up(dim, Engine::kUnit); }
  int64_t groups() const { return ceil_div(num_queries, kGroup); }
  int64_t in_group(int64_t group) const { return std::min(kGroup, num_queries - group * kGroup); }
};

// The queries of a problem, packed by groups, and their targets, -1 where there is none.
template <class Engine, class Query, class Item>
class Packed {
 public:
  Packed(Threads& pool, const Arguments<Query, Item>& a, bool with_side)
      : of_query_(Engine::query_bytes(a.template width<Engine>())),
        of_side_(with_side ? Engine::side_bytes(a.template width<Engine>()) : 0),
        queries_(a.groups() * of_query_),
        side_(a.groups() * of_side_),
        targets_(a.groups() * kGroup * 4) {
    std::fill_n(targets_.template at<int32_t>(), a.groups() * kGroup, -1);
    if (a.targets) std::copy_n(a.targets, a.num_queries, targets_.template at<int32_t>());
    parallel_for(pool, ceil_div(a.groups(), 8), [&](int64_t unit) {
      for (int64_t g = unit * 8; g < std::min(a.groups(), unit * 8 + 8); ++g) {
        const Rows<Query> rows = {a.queries + g * kGroup * a.dim, a.dim, a.dim};
        Engine::pack_queries(rows, a.in_group(g), a.template width<Engine>(), queries_.at(g * of_query_));
        if (with_side) Engine::pack_side(rows, a.in_group(g), a.template width<Engine>(), side_.at(g * of_side_));
      }
    });
  }
  const void* queries(int64_t group) const { return queries_.at(group * of_query_); }
  const void* side(int64_t group) const { return side_.at(group * of_side_); }
  const int32_t* targets(int64_t group) const {
    return targets_.template at<int32_t>() + group * kGroup;
  }

 private:
  int64_t of_query_, of_side_;
  Buffer queries_, side_, targets_;
};

// m, sum: `[N]`; expected: `[N, dim]` or null. moment, of_moment: null, or as sum and expected with
// the factor s - m on every term. Written by `forward`.
struct Sums {
  float *m, *sum, *expected, *moment = nullptr, *of_moment = nullptr;
};

// s - m for a moment: finite, since 0 times it is to be 0.
inline Vec from_reference(Vec s, Vec m) { return max(splat(-120.0f), s - m); }

// sums = (sums + by * others) * shrink, of [width][32]; without others they only shrink.
inline void move_reference(float* sums, const float* others, int64_t width, const Vec (&by)[kPieces],
                           const Vec (&shrink)[kPieces]) {
  for (int64_t at = 0; at < width * kGroup; at += kGroup)
    for (int piece = 0; piece < kPieces; ++piece) {
      float* x = sums + at + piece * kLanes;
      const Vec moved = others ? load(x) + by[piece] * load(others + at + piece * kLanes) : load(x);
      store(x, moved * shrink[piece]);
    }
}

// Flash attention's running maximum and sums of one block of groups over items [begin, end).
// m, sum, moment `[groups * 32]`, expected, of_moment `[groups][width][32]`; or null, see `Sums`.
template <class Engine, class Query, class Item>
void forward_unit(const Arguments<Query, Item>& a, const Packed<Engine, Query, Item>& packed,
                  int64_t first_group, int64_t groups, int64_t begin, int64_t end, Sums out) {
  constexpr int64_t size = kForwardTile;
  const int64_t width = a.template width<Engine>();
  const bool expected = out.expected != nullptr, capped = a.rule.softcap > 0;
  const bool moment = out.moment != nullptr;
  const Span all = {0, size};
  Buffer tile(Engine::tile_bytes(size, width));
  Buffer values(expected ? Engine::values_bytes(size, width) : 0);
  Buffer scores_buffer(size * kGroup * 4), weights(Engine::weights_bytes(size, 1));
  Buffer room(a.rule.bias ? size * a.dim * sizeof(Item) : 0);
  float* scores = scores_buffer.at<float>();
  std::fill_n(out.m, groups * kGroup, kLowest);
  std::fill_n(out.sum, groups * kGroup, 0.0f);
  if (expected) std::fill_n(out.expected, groups * kGroup * width, 0.0f);
  if (moment) std::fill_n(out.moment, groups * kGroup, 0.0f);
  if (moment && expected) std::fill_n(out.of_moment, groups * kGroup * width, 0.0f);
  Engine::enter();
  for (int64_t start = begin; start < end; start += size) {
    const int64_t rows = std::min(size, end - start);
    // What is no item may hold NaN, and 0 * NaN is NaN.
    const int64_t valid = std::clamp<int64_t>(a.rule.items - start, 0, rows);
    const Rows<Item> items = without_out<Item>(
        a.rule, start, valid, {a.items + start * a.dim, a.dim, a.dim}, room.at<Item>());
    Engine::pack_tile(items, valid, size, width, tile.at());
    if (expected) Engine::pack_values(items, valid, size, width, values.at());
    const TileRule rule(a.rule, start, rows, size);
    for (int64_t g = 0; g < groups; ++g) {
      Engine::score(packed.queries(first_group + g), tile.at(), size, width, all, scores);
      rule.finish(scores);
      mask_labels(packed.targets(first_group + g), rule.offset + start, size, scores);
      Vec m[kPieces], sum[kPieces], shrink[kPieces], by[kPieces], mean[kPieces];
      for (int piece = 0; piece < kPieces; ++piece) {
        float* at = out.m + g * kGroup + piece * kLanes;
        const Vec before = load(at);
        Vec top[4] = {before, before, before, before};
        for (int64_t j = 0; j < size; j += 4)
          for (int i = 0; i < 4; ++i)
            top[i] = max(load(scores + (j + i) * kGroup + piece * kLanes), top[i]);
        m[piece] = max(max(top[0], top[1]), max(top[2], top[3]));
        store(at, m[piece]);
        shrink[piece] = exp(before - m[piece]);
        const Vec before_sum = load(out.sum + g * kGroup + piece * kLanes);
        sum[piece] = before_sum * shrink[piece];
        if (!moment) continue;
        by[piece] = from_reference(before, m[piece]);
        mean[piece] = (load(out.moment + g * kGroup + piece * kLanes) + by[piece] * before_sum) *
                      shrink[piece];
      }
      float* o = expected ? out.expected + g * kGroup * width : nullptr;
      if (moment && expected) {
        float* of_moment = out.of_moment + g * kGroup * width;
        move_reference(of_moment, o, width, by, shrink);
        move_reference(o, nullptr, width, by, shrink);
        Engine::fold_items(values.at(), size, width, all, scores, weights.at(), o,
                           [&](int64_t j, int piece, Vec s) {
                             const Vec x = from_reference(s, m[piece]), p = exp(x);
                             const Vec bent =
                                 capped ? p * slope_of(rule, max(s, splat(-rule.softcap))) : p;
                             sum[piece] += p;
                             mean[piece] += p * x;
                             store(scores + j * kGroup + piece * kLanes, bent * x);
                             return bent;
                           });
        Engine::fold_items(values.at(), size, width, all, scores, weights.at(), of_moment,
                           [](int64_t, int, Vec weight) { return weight; });
      } else if (moment) {
        for (int64_t j = 0; j < size; ++j)
          for (int piece = 0; piece < kPieces; ++piece) {
            const Vec x = from_reference(load(scores + j * kGroup + piece * kLanes), m[piece]);
            const Vec p = exp(x);
            sum[piece] += p;
            mean[piece] += p * x;
          }
      } else if (expected) {
        move_reference(o, nullptr, width, by, shrink);
        Engine::fold_items(values.at(), size, width, all, scores, weights.at(), o,
                           [&](int64_t, int piece, Vec s) {
                             const Vec p = exp(s - m[piece]);
                             sum[piece] += p;
                             return capped ? p * slope_of(rule, max(s, splat(-rule.softcap))) : p;
                           });
      } else {
        for (int64_t j = 0; j < size; ++j)
          for (int piece = 0; piece < kPieces; ++piece)
            sum[piece] += exp(load(scores + j * kGroup + piece * kLanes) - m[piece]);
      }
      for (int piece = 0; piece < kPieces; ++piece) {
        store(out.sum + g * kGroup + piece * kLanes, sum[piece]);
        if (moment) store(out.moment + g * kGroup + piece * kLanes, mean[piece]);
      }
    }
  }
  Engine::leave();
}

// See `primitives.Forward`.
template <class Engine, class Query, class Item>
void forward(Threads& pool, const Arguments<Query, Item>& a, Sums out) {
  const int64_t width = a.template width<Engine>(), groups = a.groups();
  const Packed<Engine, Query, Item> packed(pool, a, false);
  // A block of queries is large enough to hide the packing of tiles, where there is work for all.
  constexpr int64_t least_rows = 4096, least_units = 8;
  int64_t block = a.num_queries > 4096 ? 16 : 8;
  while (block > 1 && Cuts(groups, block, a.num_rows, least_rows).units() < least_units) block /= 2;
  const Cuts work(groups, block, a.num_rows, least_rows);
  const int64_t cuts = work.cuts, padded = groups * kGroup;
  Buffer m(cuts * padded * 4), sum(cuts * padded * 4);
  Buffer expected(out.expected ? cuts * padded * width * 4 : 0);
  Buffer moment(out.moment ? cuts * padded * 4 : 0);
  Buffer of_moment(out.of_moment ? cuts * padded * width * 4 : 0);
  parallel_for(pool, work.units(), [&](int64_t unit) {
    const int64_t first = work.first_group(unit), at = work.cut(unit) * padded + first * kGroup;
    forward_unit<Engine>(
        a, packed, first, work.groups_of(unit), work.begin(unit), work.end(unit),
        Sums{m.at<float>() + at, sum.at<float>() + at,
             out.expected ? expected.at<float>() + at * width : nullptr,
             out.moment ? moment.at<float>() + at : nullptr,
             out.of_moment ? of_moment.at<float>() + at * width : nullptr});
  });
  parallel_for(pool, groups, [&](int64_t g) {
    Vec top[kPieces], total[kPieces], mean[kPieces];
    Buffer merged(2 * width * kGroup * 4);
    float *o = merged.at<float>(), *of_mean = o + width * kGroup;
    std::fill_n(o, 2 * width * kGroup, 0.0f);
    for (int piece = 0; piece < kPieces; ++piece) {
      const int64_t lane = g * kGroup + piece * kLanes;
      top[piece] = splat(kLowest);
      total[piece] = mean[piece] = Vec{};
      for (int64_t cut = 0; cut < cuts; ++cut)
        top[piece] = max(load(m.at<float>() + cut * padded + lane), top[piece]);
      for (int64_t cut = 0; cut < cuts; ++cut) {
        const int64_t at = (cut * padded + g * kGroup) * width + piece * kLanes;
        const Vec by = from_reference(load(m.at<float>() + cut * padded + lane), top[piece]);
        const Vec factor = exp(by), own = load(sum.at<float>() + cut * padded + lane);
        total[piece] += factor * own;
        if (out.moment)
          mean[piece] += factor * (load(moment.at<float>() + cut * padded + lane) + by * own);
        if (!out.expected) continue;
        const float* from = expected.at<float>() + at;
        for (int64_t k = 0; k < a.dim * kGroup; k += kGroup) {
          float *one = o + k + piece * kLanes, *other = of_mean + k + piece * kLanes;
          store(one, load(one) + factor * load(from + k));
          if (out.of_moment)
            store(other, load(other) + factor * (load(of_moment.at<float>() + at + k) +
                                                 by * load(from + k)));
        }
      }
    }
    for (int64_t q = 0; q < a.in_group(g); ++q) {
      const int64_t i = g * kGroup + q;
      out.m[i] = top[q / kLanes][q % kLanes];
      out.sum[i] = total[q / kLanes][q % kLanes];
      if (out.moment) out.moment[i] = mean[q / kLanes][q % kLanes];
      if (!out.expected) continue;
      for (int64_t k = 0; k < a.dim; ++k) {
        out.expected[i * a.dim + k] = o[k * kGroup + q];
        if (out.of_moment) out.of_moment[i * a.dim + k] = of_mean[k * kGroup + q];
      }
    }
  });
}

// lse, weight, label_weight: `[N]`; log_weight: `[N]`, or null without an entropy.
struct Side {
  const float *lse, *weight, *label_weight, *log_weight = nullptr;
};

// See `primitives.ItemGrad` and `EntropyGrad`. grad: `[V, dim]`; grad_bias: `[V]` or null.
template <class Engine, class Query, class Item>
void item_grad(Threads& pool, const Arguments<Query, Item>& a, Side side, float* grad,
               float* grad_bias) {
  constexpr int64_t size = kGradTile, room = kGradGroups;
  const int64_t width = a.template width<Engine>(), groups = a.groups(), padded = groups * kGroup;
  const Packed<Engine, Query, Item> packed(pool, a, true);
  Buffer per_query(3 * padded * 4);
  float *lse = per_query.at<float>(), *weight = lse + padded, *log_weight = weight + padded;
  std::fill_n(lse, padded, -kLowest);  // exp(s - lse) is 0 for a query that pads
  std::fill_n(weight, 2 * padded, 0.0f);
  if (side.log_weight) std::copy_n(side.log_weight, a.num_queries, log_weight);
  std::copy_n(side.lse, a.num_queries, lse);
  std::copy_n(side.weight, a.num_queries, weight);
  // Tiles of a unit.
  const int64_t together = std::clamp<int64_t>(a.num_rows / (size * 64), 1, 8);
  parallel_for(pool, ceil_div(a.num_rows, size * together), [&](int64_t unit) {
    const Span all = {0, size};
    Buffer tile(Engine::tile_bytes(size, width));
    Buffer scores_buffer(size * kGroup * 4), weights(Engine::weights_bytes(size, room));
    Buffer sums(size * width * 4), bias_sums(size * kLanes * 4);
    float *scores = scores_buffer.at<float>(), *total = sums.at<float>();
    const int64_t end = std::min(a.num_rows, (unit + 1) * size * together);
    Engine::enter();
    for (int64_t start = unit * size * together; start < end; start += size) {
      const int64_t rows = std::min(size, end - start);
      const int64_t valid = std::clamp<int64_t>(a.rule.items - start, 0, rows);
      std::fill_n(total, size * width, 0.0f);
      std::fill_n(bias_sums.at<float>(), size * kLanes, 0.0f);
      const TileRule rule(a.rule, start, rows, size);
      if (valid > 0)
        Engine::pack_tile({a.items + start * a.dim, a.dim, a.dim}, rows, size, width, tile.at());
      for (int64_t first = 0; valid > 0 && first < groups; first += room) {
        const int64_t steps = std::min(room, groups - first);
        for (int64_t step = 0; step < steps; ++step) {
          const int64_t g = first + step;
          Engine::score(packed.queries(g), tile.at(), size, width, all, scores);
          rule.finish(scores);
          mask_labels(packed.targets(g), rule.offset + start, valid, scores);
          Vec lse_of[kPieces], weight_of[kPieces], log_weight_of[kPieces];
          for (int piece = 0; piece < kPieces; ++piece) {
            lse_of[piece] = load(lse + g * kGroup + piece * kLanes);
            weight_of[piece] = load(weight + g * kGroup + piece * kLanes);
            log_weight_of[piece] = load(log_weight + g * kGroup + piece * kLanes);
          }
          if (rule.softcap > 0 || rule.bias || side.log_weight) {
            Engine::pack_weights(
                scores, size, all, step, room, weights.at(), [&](int64_t j, int piece, Vec s) {
                  const Vec x = from_reference(s, lse_of[piece]);
                  Vec c = (weight_of[piece] + log_weight_of[piece] * x) * exp(x);
                  if (rule.softcap > 0) c *= slope_of(rule, max(s, splat(-rule.softcap)));
                  float* b = bias_sums.at<float>() + j * kLanes;
                  store(b, load(b) + c);
                  return c;
                });
          } else {
            Engine::pack_weights(scores, size, all, step, room, weights.at(),
                                 [&](int64_t, int piece, Vec s) {
                                   return weight_of[piece] * exp(s - lse_of[piece]);
                                 });
          }
        }
        Engine::fold_queries(weights.at(), packed.side(first), size, all, steps, room, width,
                             total);
      }
      const auto is_item = [&](int64_t j) { return j < valid && !rule.out(start + j); };
      if (grad_bias)
        for (int64_t j = 0; j < rows; ++j)
          grad_bias[start + j] =
              is_item(j) ? sum(load(bias_sums.at<float>() + j * kLanes)) : 0.0f;
      for (int64_t i = 0; i < a.num_queries; ++i) {
        const int64_t row = int64_t(a.targets[i]) - (rule.offset + start);
        if (row < 0 || row >= valid || !is_item(row)) continue;
        const float factor = side.label_weight[i];
        for (int64_t k = 0; k < a.dim; ++k)
          total[row * width + k] += factor * to_float(a.queries[i * a.dim + k]);
        if (grad_bias) grad_bias[start + row] += factor;
      }
      for (int64_t j = 0; j < rows; ++j)
        for (int64_t k = 0; k < a.dim; ++k)
          grad[(start + j) * a.dim + k] = is_item(j) ? a.rule.scale * total[j * width + k] : 0.0f;
    }
    Engine::leave();
  });
}

}  // namespace rec_jax
