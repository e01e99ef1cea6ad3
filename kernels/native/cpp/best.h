// The best item of each query; `primitives.TopK` with k = 1 says what is computed.
#pragma once

#include "fold.h"

namespace rec_jax {

// Of items [begin, end): the largest score of each query and the row that has it, the first one of
// several; -inf and -1 where none is more than -inf. best, rows: `[groups * 32]`.
template <class Engine, class Query, class Item>
void best_unit(const Arguments<Query, Item>& a, const Packed<Engine, Query, Item>& packed,
               int64_t first_group, int64_t groups, int64_t begin, int64_t end, float* best,
               int32_t* rows) {
  constexpr int64_t size = kForwardTile;
  const int64_t width = a.template width<Engine>();
  Buffer tile(Engine::tile_bytes(size, width)), scores_buffer(size * kGroup * 4);
  float* scores = scores_buffer.at<float>();
  std::fill_n(best, groups * kGroup, -kInfinity);
  std::fill_n(rows, groups * kGroup, -1);
  Engine::enter();
  for (int64_t start = begin; start < end; start += size) {
    const int64_t count = std::min(size, end - start);
    Engine::pack_tile({a.items + start * a.dim, a.dim, a.dim}, count, size, width, tile.at());
    const TileRule rule(a.rule, start, count, size);
    for (int64_t g = 0; g < groups; ++g) {
      Engine::score(packed.queries(first_group + g), tile.at(), size, width, {0, size}, scores);
      rule.finish(scores);
      for (int piece = 0; piece < kPieces; ++piece) {
        const float* at = scores + piece * kLanes;
        float* best_of = best + g * kGroup + piece * kLanes;
        const Vec before = load(best_of);
        // Seldom is an item of a later tile better; a maximum hides NaN, as it should.
        Vec top[4] = {before, before, before, before};
        for (int64_t j = 0; j < size; j += 4)
          for (int i = 0; i < 4; ++i) top[i] = max(load(at + (j + i) * kGroup), top[i]);
        const Vec found = max(max(top[0], top[1]), max(top[2], top[3]));
        for (int i = 0; i < kLanes; ++i) {
          if (!(found[i] > before[i])) continue;
          int64_t j = 0;
          while (at[j * kGroup + i] != found[i]) ++j;
          best_of[i] = found[i];
          rows[g * kGroup + piece * kLanes + i] = int32_t(start + j);
        }
      }
    }
  }
  Engine::leave();
}

// best: `[N]`; ids: `[N]`, global.
template <class Engine, class Query, class Item>
void best_item(Threads& pool, const Arguments<Query, Item>& a, float* best, int32_t* ids) {
  const int64_t groups = a.groups(), padded = groups * kGroup;
  const Packed<Engine, Query, Item> packed(pool, a, false);
  const Cuts work(groups, 8, a.num_rows, 1024);
  Buffer bests(work.cuts * padded * 4), rows(work.cuts * padded * 4);
  parallel_for(pool, work.units(), [&](int64_t unit) {
    const int64_t first = work.first_group(unit), at = work.cut(unit) * padded + first * kGroup;
    best_unit<Engine>(a, packed, first, work.groups_of(unit), work.begin(unit), work.end(unit),
                      bests.at<float>() + at, rows.at<int32_t>() + at);
  });
  for (int64_t i = 0; i < a.num_queries; ++i) {
    best[i] = -kInfinity;
    ids[i] = -1;
    for (int64_t at = i; at < work.cuts * padded; at += padded) {
      if (!(bests.at<float>()[at] > best[i])) continue;
      best[i] = bests.at<float>()[at];
      ids[i] = int32_t(a.rule.offset + rows.at<int32_t>()[at]);
    }
  }
}

}  // namespace rec_jax
