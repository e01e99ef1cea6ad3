// How many items are not worse than each query's target; `primitives.py` says what is computed.
#pragma once

#include <vector>

#include "fold.h"

namespace rec_jax {

// Pairs (query, item) by item, global ids; those that are none come last, with an item that is none.
struct Pairs {
  const int32_t *queries, *items;
  int64_t count;
};

// The pairs whose item lies in a shard, by groups of queries and there by item.
class Grouped {
 public:
  struct Pair {
    int64_t row;
    int32_t lane;
  };

  Grouped(const Pairs& pairs, int64_t groups, int64_t num_queries, int64_t offset, int64_t rows)
      : of_(groups) {
    const int32_t* end = pairs.items + pairs.count;
    for (const int32_t* at = std::lower_bound(pairs.items, end, offset);
         at != end && *at < offset + rows; ++at) {
      const int32_t query = pairs.queries[at - pairs.items];
      if (query >= 0 && query < num_queries)
        of_[query / kGroup].push_back({*at - offset, int32_t(query % kGroup)});
    }
  }

  // Of a group, from the first whose row is at least `row`.
  const Pair* from(int64_t group, int64_t row) const {
    return std::lower_bound(of_[group].data(), end(group), row,
                            [](const Pair& pair, int64_t least) { return pair.row < least; });
  }
  const Pair* end(int64_t group) const { return of_[group].data() + of_[group].size(); }

 private:
  std::vector<std::vector<Pair>> of_;
};

// Scores of a group against 32 rows of which its targets are the first, second, ..: the same
// products in the same order as `rank_unit`'s, so that a target's score has its bits.
template <class Engine, class Query, class Item>
void label_scores(Threads& pool, const Arguments<Query, Item>& a, float* out) {
  const Packed<Engine, Query, Item> packed(pool, a, false);
  parallel_for(pool, a.groups(), [&](int64_t g) {
    constexpr int64_t size = kGroup;
    Buffer rows_buffer(size * a.dim * sizeof(Item)), tile(Engine::tile_bytes(size, a.template width<Engine>()));
    Buffer scores_buffer(size * kGroup * 4);
    Item* rows = rows_buffer.at<Item>();
    float* scores = scores_buffer.at<float>();
    float biases[size];
    bool here[size];
    for (int64_t i = 0; i < size; ++i) {
      const int64_t row = int64_t(packed.targets(g)[i]) - a.rule.offset;
      here[i] = packed.targets(g)[i] >= 0 && row >= 0 && row < a.rule.items;
      const int64_t from = here[i] ? row : 0;
      std::copy_n(a.items + from * a.dim, a.dim, rows + i * a.dim);
      biases[i] = a.rule.bias ? a.rule.bias[from] : 0.0f;
    }
    Engine::enter();
    Engine::pack_tile({rows, a.dim, a.dim}, size, size, a.template width<Engine>(), tile.at());
    Engine::score(packed.queries(g), tile.at(), size, a.template width<Engine>(), {0, size}, scores);
    Engine::leave();
    Rule rule = a.rule;
    rule.items = size;
    if (rule.bias) rule.bias = biases;
    if (!plain(rule)) finish_scores(rule, 0, size, scores);
    for (int64_t i = 0; i < a.in_group(g); ++i)
      out[g * kGroup + i] = here[i] ? scores[i * kGroup + i] : -kInfinity;
  });
}

// Of items [begin, end), those that are not less than least `[groups * 32]`; pairs do not count.
template <class Engine, class Query, class Item>
void rank_unit(const Arguments<Query, Item>& a, const Packed<Engine, Query, Item>& packed,
               const Grouped& excluded, int64_t first_group, int64_t groups, int64_t begin,
               int64_t end, const float* least, int32_t* counts) {
  constexpr int64_t size = kForwardTile;
  Buffer tile(Engine::tile_bytes(size, a.template width<Engine>())), scores_buffer(size * kGroup * 4);
  float* scores = scores_buffer.at<float>();
  std::fill_n(counts, groups * kGroup, 0);
  std::vector<const Grouped::Pair*> next(groups);
  for (int64_t g = 0; g < groups; ++g) next[g] = excluded.from(first_group + g, begin);
  Engine::enter();
  for (int64_t start = begin; start < end; start += size) {
    const int64_t rows = std::min(size, end - start);
    Engine::pack_tile({a.items + start * a.dim, a.dim, a.dim}, rows, size, a.template width<Engine>(), tile.at());
    const TileRule rule(a.rule, start, rows, size);
    for (int64_t g = 0; g < groups; ++g) {
      Engine::score(packed.queries(first_group + g), tile.at(), size, a.template width<Engine>(), {0, size}, scores);
      rule.finish(scores);
      for (int piece = 0; piece < kPieces; ++piece) {
        const Vec bound = load(least + g * kGroup + piece * kLanes);
        Ints less[4] = {};
        for (int64_t j = 0; j < size; j += 4)
          for (int i = 0; i < 4; ++i)
            less[i] += load(scores + (j + i) * kGroup + piece * kLanes) < bound;  // -1 where it is
        const Ints found = int32_t(size) + less[0] + less[1] + less[2] + less[3];
        int32_t* at = counts + g * kGroup + piece * kLanes;
        for (int i = 0; i < kLanes; ++i) at[i] += found[i];
      }
      const Grouped::Pair* last = excluded.end(first_group + g);
      for (; next[g] != last && next[g]->row < start + rows; ++next[g]) {
        const int32_t lane = next[g]->lane;
        const float s = scores[(next[g]->row - start) * kGroup + lane];
        counts[g * kGroup + lane] -= !(s < least[g * kGroup + lane]);
      }
    }
  }
  Engine::leave();
}

// See `primitives.RankCount`. least: `[N]`, the targets' scores.
template <class Engine, class Query, class Item>
void rank_count(Threads& pool, const Arguments<Query, Item>& a, const float* least,
                const Pairs& pairs, int32_t* out) {
  const int64_t groups = a.groups(), padded = groups * kGroup;
  const Packed<Engine, Query, Item> packed(pool, a, false);
  const Grouped excluded(pairs, groups, a.num_queries, a.rule.offset, a.num_rows);
  const Cuts work(groups, 8, a.num_rows, 1024);
  Buffer bounds(padded * 4), counts(work.cuts * padded * 4);
  std::fill_n(bounds.at<float>(), padded, kInfinity);
  std::copy_n(least, a.num_queries, bounds.at<float>());
  parallel_for(pool, work.units(), [&](int64_t unit) {
    const int64_t first = work.first_group(unit);
    rank_unit<Engine>(a, packed, excluded, first, work.groups_of(unit), work.begin(unit),
                      work.end(unit), bounds.at<float>() + first * kGroup,
                      counts.at<int32_t>() + work.cut(unit) * padded + first * kGroup);
  });
  for (int64_t i = 0; i < a.num_queries; ++i) {
    out[i] = 0;
    for (int64_t cut = 0; cut < work.cuts; ++cut) out[i] += counts.at<int32_t>()[cut * padded + i];
  }
}

}  // namespace rec_jax
