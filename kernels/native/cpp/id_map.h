// A map from 64-bit ids to rows, in an array that the caller has: open addressing by cache lines.
//
// A bucket is one cache line with five ids and their rows. An id belongs to the bucket of its hash,
// or to the first one behind it that has room; a bucket counts the ids that had to pass it. So a
// look-up is nearly always one read of memory, and it ends at the first bucket that nobody passed.
// What is erased leaves no trace: the counts on its way fall again.
#pragma once

#include <algorithm>
#include <cstdint>

namespace rec_jax {

constexpr int kBucketIds = 5;
constexpr int64_t kAhead = 32;  // look-ups whose bucket is on its way from memory

// rows: 0 where there is no id.
struct alignas(64) Bucket {
  int64_t ids[kBucketIds];
  int32_t rows[kBucketIds];
  int32_t passed;
};
static_assert(sizeof(Bucket) == 64, "a bucket is a cache line");

inline uint64_t scatter_bits(uint64_t x) {  // the finaliser of SplitMix64, a bijection
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

inline int64_t home_of(int64_t id, int64_t buckets) {
  return int64_t((static_cast<unsigned __int128>(scatter_bits(uint64_t(id))) *
                  static_cast<uint64_t>(buckets)) >> 64);
}

inline int64_t next_bucket(int64_t at, int64_t buckets) { return at + 1 == buckets ? 0 : at + 1; }

// Calls work(i, bucket) for each id, in order, with the buckets fetched ahead.
template <class Work>
void each_home(const Bucket* table, int64_t buckets, const int64_t* ids, int64_t count,
               const Work& work) {
  int64_t homes[kAhead];
  const int64_t first = std::min<int64_t>(kAhead, count);
  auto ask = [&](int64_t i) {
    const int64_t home = homes[i & (kAhead - 1)] = home_of(ids[i], buckets);
    __builtin_prefetch(table + home);
  };
  for (int64_t i = 0; i < first; ++i) ask(i);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t home = homes[i & (kAhead - 1)];
    if (i + kAhead < count) ask(i + kAhead);
    work(i, home);
  }
}

// All places are looked at without a branch: which of them has the id is nobody's guess. An empty
// place has row 0 and so adds nothing, also where the id is 0.
inline int32_t row_in(const Bucket& bucket, int64_t id) {
  int32_t row = 0;
  for (int slot = 0; slot < kBucketIds; ++slot)
    row |= bucket.ids[slot] == id ? bucket.rows[slot] : 0;
  return row;
}

// The row of each id; 0 where there is none. Ids that are not in their own bucket wait for the end
// of a block, when the bucket behind is there as well.
inline void find_ids(const Bucket* table, int64_t buckets, const int64_t* ids, int64_t count,
                     int32_t* rows) {
  constexpr int64_t kBlock = 64;
  int64_t waits[kBlock], places[kBlock], waiting = 0;
  auto settle = [&] {
    for (int64_t k = 0; k < waiting; ++k) {
      int64_t at = places[k];
      int32_t row = row_in(table[at], ids[waits[k]]);
      for (int64_t tried = 2; !row && table[at].passed && tried < buckets; ++tried) {
        at = next_bucket(at, buckets);
        row = row_in(table[at], ids[waits[k]]);
      }
      rows[waits[k]] = row;
    }
    waiting = 0;
  };
  each_home(table, buckets, ids, count, [&](int64_t i, int64_t at) {
    rows[i] = row_in(table[at], ids[i]);
    if (!rows[i] && table[at].passed) {
      waits[waiting] = i;
      places[waiting] = next_bucket(at, buckets);
      __builtin_prefetch(table + places[waiting++]);
    }
    if ((i & (kBlock - 1)) == kBlock - 1) settle();
  });
  settle();
}

inline int slot_in(const Bucket& bucket, int64_t id) {
  for (int slot = 0; slot < kBucketIds; ++slot)
    if (bucket.ids[slot] == id && bucket.rows[slot]) return slot;
  return -1;
}

// Adds ids that are not there, with rows above 0. Returns how many found room.
inline int64_t insert_ids(Bucket* table, int64_t buckets, const int64_t* ids, const int32_t* rows,
                          int64_t count) {
  int64_t added = 0;
  each_home(table, buckets, ids, count, [&](int64_t i, int64_t at) {
    for (int64_t tried = 0; tried < buckets; ++tried, at = next_bucket(at, buckets)) {
      Bucket& bucket = table[at];
      for (int slot = 0; slot < kBucketIds; ++slot)
        if (!bucket.rows[slot]) {
          bucket.ids[slot] = ids[i];
          bucket.rows[slot] = rows[i];
          ++added;
          return;
        }
      ++bucket.passed;
    }
  });
  return added;
}

// Takes ids out that are there. Returns how many were.
inline int64_t erase_ids(Bucket* table, int64_t buckets, const int64_t* ids, int64_t count) {
  int64_t gone = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t home = home_of(ids[i], buckets);
    int64_t at = home;
    int slot = -1;
    for (int64_t tried = 0; tried < buckets; ++tried, at = next_bucket(at, buckets)) {
      slot = slot_in(table[at], ids[i]);
      if (slot >= 0 || !table[at].passed) break;
    }
    if (slot < 0) continue;
    table[at].ids[slot] = 0;
    table[at].rows[slot] = 0;
    for (int64_t by = home; by != at; by = next_bucket(by, buckets)) --table[by].passed;
    ++gone;
  }
  return gone;
}

// What a look-up is measured against: the sum of the 64 bytes of each of some buckets.
inline int64_t read_lines(const Bucket* table, const int64_t* at, int64_t count) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) __builtin_prefetch(table + at[i + kAhead]);
    const uint64_t* words = reinterpret_cast<const uint64_t*>(table + at[i]);
    for (int word = 0; word < 8; ++word) sum += words[word];
  }
  return int64_t(sum);
}

}  // namespace rec_jax

extern "C" {

void rec_jax_ids_find(const void* table, int64_t buckets, const int64_t* ids, int64_t count,
                      int32_t* rows) {
  rec_jax::find_ids(static_cast<const rec_jax::Bucket*>(table), buckets, ids, count, rows);
}

int64_t rec_jax_ids_insert(void* table, int64_t buckets, const int64_t* ids, const int32_t* rows,
                           int64_t count) {
  return rec_jax::insert_ids(static_cast<rec_jax::Bucket*>(table), buckets, ids, rows, count);
}

int64_t rec_jax_ids_erase(void* table, int64_t buckets, const int64_t* ids, int64_t count) {
  return rec_jax::erase_ids(static_cast<rec_jax::Bucket*>(table), buckets, ids, count);
}

int64_t rec_jax_ids_read(const void* table, const int64_t* at, int64_t count) {
  return rec_jax::read_lines(static_cast<const rec_jax::Bucket*>(table), at, count);
}

}  // extern "C"
