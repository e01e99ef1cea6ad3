// Compares every fold of the native library with a loop over f64: a program without Python and XLA,
// so that it can be built with sanitizers, for other CPUs, and with tiles of AMX that are emulated.
//
//   c++ -std=c++17 -pthread -fsanitize=address,undefined -I ../../kernels/native/cpp native_check.cc
//
// -DREC_JAX_EMULATED_AMX='"amx_emulated.h"' -DREC_JAX_WIDE checks the engine of AMX on any CPU.

#include <array>
#include <cmath>
#include <cstdio>
#include <map>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "attention.h"
#include "best.h"
#include "engine_amx.h"
#include "engine_vector.h"
#include "feed_forward.h"
#include "fold.h"
#include "id_map.h"
#include "pairs.h"
#include "rank.h"

namespace rec_jax {
namespace {

// Three threads beside the caller, which end with the work that they were given.
class Team : public Threads {
 public:
  ~Team() override {
    for (std::thread& one : threads_) one.join();
  }
  int64_t count() const override { return 4; }
  void schedule(std::function<void()> work) override { threads_.emplace_back(std::move(work)); }

 private:
  std::vector<std::thread> threads_;
};

std::mt19937 draw(7);
int failures = 0;

float normal() { return std::normal_distribution<float>()(draw); }

template <class T>
T made(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return T(bits >> 16);
  }
}

template <class T>
std::vector<T> randoms(int64_t count, float scale = 1) {
  std::vector<T> out(count);
  for (T& x : out) x = made<T>(scale * normal());
  return out;
}

// found: of floats or bf16. Both have as many elements.
template <class T>
void expect(const std::string& what, const std::vector<T>& found, const std::vector<double>& right,
            double tolerance) {
  double most = 0, off = 0;
  for (size_t i = 0; i < right.size(); ++i) {
    most = std::max(most, std::abs(right[i]));
    const double error = std::abs(double(to_float(found[i])) - right[i]);
    off = error <= off ? off : error;  // a NaN stays
  }
  if (off <= tolerance * (1 + most)) return;
  std::printf("%s: off by %g of %g\n", what.c_str(), off, most);
  ++failures;
}

struct Shape {
  int64_t queries, rows, dim, items;
  bool bias;
  float scale, softcap;
};

template <class Engine, class Query, class Item>
void check_catalogue(const std::string& name, const Shape& s, double tolerance) {
  const auto queries = randoms<Query>(s.queries * s.dim);
  const auto items = randoms<Item>(s.rows * s.dim, 0.3f);
  const auto biases = randoms<float>(s.rows);
  const auto weight = randoms<float>(s.queries), label_weight = randoms<float>(s.queries);
  std::vector<int32_t> targets(s.queries);
  for (int32_t& target : targets) target = draw() % s.rows;
  const int64_t offset = 5;
  Rule rule;
  rule.scale = s.scale;
  rule.bias = s.bias ? biases.data() : nullptr;
  rule.softcap = s.softcap;
  rule.offset = offset;
  rule.items = s.items;
  std::vector<int32_t> global(targets);
  for (int32_t& target : global) target += offset;
  const Arguments<Query, Item> a{queries.data(), items.data(), global.data(), s.queries,
                                 s.rows,         s.dim,        rule};

  std::vector<double> scores(s.queries * s.rows), slopes(scores.size(), 1.0);
  for (int64_t i = 0; i < s.queries; ++i)
    for (int64_t j = 0; j < s.rows; ++j) {
      double x = 0;
      for (int64_t k = 0; k < s.dim; ++k)
        x += double(to_float(queries[i * s.dim + k])) * to_float(items[j * s.dim + k]);
      x = x * s.scale + (s.bias ? biases[j] : 0);
      double& slope = slopes[i * s.rows + j];
      if (s.softcap > 0) {
        const double bent = std::tanh(x / s.softcap);
        slope = 1 - bent * bent;
        x = s.softcap * bent;
      }
      scores[i * s.rows + j] = j < s.items ? x : -INFINITY;
    }

  Team team;
  std::vector<float> m(s.queries), sum(s.queries), expected(s.queries * s.dim), lse(s.queries);
  forward<Engine>(team, a, Sums{m.data(), sum.data(), expected.data()});
  std::vector<double> right_lse(s.queries), right_expected(s.queries * s.dim);
  std::vector<float> found_lse(s.queries), found_expected(s.queries * s.dim);
  for (int64_t i = 0; i < s.queries; ++i) {
    double total = 0;
    std::vector<double> mean(s.dim);
    for (int64_t j = 0; j < s.items; ++j) {
      if (j == targets[i]) continue;
      const double p = std::exp(scores[i * s.rows + j]);
      total += p;
      for (int64_t k = 0; k < s.dim; ++k)
        mean[k] += p * slopes[i * s.rows + j] * to_float(items[j * s.dim + k]);
    }
    right_lse[i] = total > 0 ? std::log(total) : 0;
    found_lse[i] = sum[i] > 0 ? m[i] + std::log(sum[i]) : 0;
    for (int64_t k = 0; k < s.dim; ++k) {
      right_expected[i * s.dim + k] = total > 0 ? mean[k] / total : 0;
      found_expected[i * s.dim + k] = sum[i] > 0 ? expected[i * s.dim + k] / sum[i] : 0;
    }
    lse[i] = float(right_lse[i]) + 1;
  }
  expect(name + " forward", found_lse, right_lse, tolerance);
  expect(name + " expected", found_expected, right_expected, tolerance);

  // The entropy's sums: with and without the expected rows, and the rest as it is without them.
  std::vector<float> moment(s.queries), of_moment(s.queries * s.dim), sum_again(s.queries);
  for (const bool with_expected : {false, true}) {
    std::vector<float> again(s.queries * s.dim);
    forward<Engine>(team, a, Sums{m.data(), sum_again.data(), with_expected ? again.data() : nullptr,
                                  moment.data(), with_expected ? of_moment.data() : nullptr});
    std::vector<double> right_moment(s.queries), right_of_moment(s.queries * s.dim);
    std::vector<float> found_moment(s.queries), found_of_moment(s.queries * s.dim);
    for (int64_t i = 0; i < s.queries; ++i) {
      double total = 0;
      for (int64_t j = 0; j < s.items; ++j)
        if (j != targets[i]) total += std::exp(scores[i * s.rows + j] - m[i]);
      for (int64_t j = 0; j < s.items && total > 0; ++j) {
        if (j == targets[i]) continue;
        const double x = scores[i * s.rows + j] - m[i], p = std::exp(x) * x / total;
        right_moment[i] += p;
        for (int64_t k = 0; k < s.dim; ++k)
          right_of_moment[i * s.dim + k] +=
              p * slopes[i * s.rows + j] * to_float(items[j * s.dim + k]);
      }
      if (total > 0) found_moment[i] = moment[i] / sum_again[i];
      for (int64_t k = 0; k < s.dim && total > 0 && with_expected; ++k)
        found_of_moment[i * s.dim + k] = of_moment[i * s.dim + k] / sum_again[i];
      failures += std::abs(sum_again[i] - sum[i]) > 1e-5 * sum[i];
      for (int64_t k = 0; k < s.dim && total > 0 && with_expected; ++k)
        found_expected[i * s.dim + k] = again[i * s.dim + k] / sum_again[i];
    }
    expect(name + " expected beside a moment", found_expected, right_expected, tolerance);
    expect(name + " moment", found_moment, right_moment, 10 * tolerance);
    if (with_expected)
      expect(name + " moment rows", found_of_moment, right_of_moment, 10 * tolerance);
  }

  std::vector<float> best(s.queries);
  std::vector<int32_t> best_ids(s.queries);
  best_item<Engine>(team, a, best.data(), best_ids.data());
  for (int32_t& id : best_ids) id -= id < 0 ? 0 : offset;
  for (int64_t i = 0; i < s.queries; ++i) {
    double most = -INFINITY;
    for (int64_t j = 0; j < s.items; ++j) most = std::max(most, scores[i * s.rows + j]);
    if (s.items == 0) {
      failures += best_ids[i] != -1;
    } else if (best_ids[i] < 0 || best_ids[i] >= s.items) {
      ++failures;
    } else {
      failures += std::abs(scores[i * s.rows + best_ids[i]] - most) > tolerance * (1 + std::abs(most));
      failures += std::abs(best[i] - most) > tolerance * (1 + std::abs(most));
    }
  }

  std::vector<float> grad(s.rows * s.dim), grad_bias(s.rows);
  item_grad<Engine>(team, a, Side{lse.data(), weight.data(), label_weight.data()}, grad.data(),
                    s.bias ? grad_bias.data() : nullptr);
  std::vector<double> right_grad(grad.size()), right_bias(s.bias ? s.rows : 0);
  for (int64_t i = 0; i < s.queries; ++i)
    for (int64_t j = 0; j < s.items; ++j) {
      const double c = j == targets[i] ? label_weight[i]
                                       : weight[i] * slopes[i * s.rows + j] *
                                             std::exp(scores[i * s.rows + j] - lse[i]);
      if (s.bias) right_bias[j] += c;
      for (int64_t k = 0; k < s.dim; ++k)
        right_grad[j * s.dim + k] += s.scale * c * to_float(queries[i * s.dim + k]);
    }
  expect(name + " item gradient", grad, right_grad, tolerance);
  expect(name + " bias gradient", grad_bias, right_bias, tolerance);

  const std::vector<float> log_weight(weight.rbegin(), weight.rend());
  item_grad<Engine>(team, a, Side{lse.data(), weight.data(), label_weight.data(), log_weight.data()},
                    grad.data(), s.bias ? grad_bias.data() : nullptr);
  for (int64_t i = 0; i < s.queries; ++i)
    for (int64_t j = 0; j < s.items; ++j) {
      if (j == targets[i]) continue;
      const double x = scores[i * s.rows + j] - lse[i];
      const double c = log_weight[i] * x * slopes[i * s.rows + j] * std::exp(x);
      if (s.bias) right_bias[j] += c;
      for (int64_t k = 0; k < s.dim; ++k)
        right_grad[j * s.dim + k] += s.scale * c * to_float(queries[i * s.dim + k]);
    }
  expect(name + " item gradient with a logarithm", grad, right_grad, 4 * tolerance);
  expect(name + " bias gradient with a logarithm", grad_bias, right_bias, 4 * tolerance);

  std::vector<float> own(s.queries);
  label_scores<Engine>(team, a, own.data());
  std::vector<double> right_own(s.queries);
  for (int64_t i = 0; i < s.queries; ++i) {
    const bool here = targets[i] < s.items;
    right_own[i] = here ? scores[i * s.rows + targets[i]] : 0;
    if (here != std::isfinite(own[i])) ++failures;
    if (!here) own[i] = 0;
  }
  expect(name + " label scores", own, right_own, tolerance);

  // A bound between scores, so that rounding does not matter; some pairs are taken out.
  std::vector<float> least(s.queries);
  std::vector<int32_t> excluded_query, excluded_item, counts(s.queries);
  std::vector<double> right_counts(s.queries);
  for (int64_t j = 0; j < s.rows; j += 3) {
    excluded_query.push_back(j % s.queries);
    excluded_item.push_back(j + offset);
  }
  for (int64_t i = 0; i < s.queries; ++i) {
    std::vector<double> sorted(scores.begin() + i * s.rows, scores.begin() + i * s.rows + s.items);
    std::sort(sorted.begin(), sorted.end());
    size_t at = sorted.size() / 2;
    while (at > 0 && sorted[at] - sorted[at - 1] < 1e-3) --at;
    least[i] = at > 0 ? float((sorted[at] + sorted[at - 1]) / 2) : -1e30f;
    for (int64_t j = 0; j < s.items; ++j)
      right_counts[i] += scores[i * s.rows + j] >= least[i] &&
                         !(j % 3 == 0 && j % s.queries == i);
  }
  rank_count<Engine>(team, a, least.data(),
                     Pairs{excluded_query.data(), excluded_item.data(),
                           int64_t(excluded_item.size())},
                     counts.data());
  expect(name + " rank", std::vector<float>(counts.begin(), counts.end()), right_counts, 0);
}

template <class Engine, class T>
void check_attention(const std::string& name, int64_t queries, int64_t keys, int64_t dim,
                     bool causal, double tolerance) {
  const int64_t batch = 2, heads = 2, wide = heads * dim;
  const auto q = randoms<T>(batch * queries * wide), k = randoms<T>(batch * keys * wide);
  const auto v = randoms<T>(batch * keys * wide), gradient = randoms<T>(batch * queries * wide);
  std::vector<int32_t> segments(batch * keys), own(batch * queries), places(batch * queries);
  for (int64_t i = 0; i < batch * keys; ++i) segments[i] = i % keys * 3 / keys;
  for (int64_t i = 0; i < batch * queries; ++i) {
    places[i] = i % queries * keys / queries;
    own[i] = i % 7 == 5 ? 9 : segments[places[i]];  // 9: sees nothing
  }
  const AttentionShape shape{batch, heads, queries, keys, dim, causal, 1 / std::sqrt(float(dim))};
  std::vector<T> out(q.size()), dq(q.size()), dk(k.size()), dv(v.size());
  std::vector<float> log_total(batch * heads * queries);
  const auto of = [&](const std::vector<T>& x, int64_t length) {
    return Wide<const T>{x.data(), length, wide, 0};
  };
  const auto to = [&](std::vector<T>& x, int64_t length) { return Wide<T>{x.data(), length, wide, 0}; };
  const Segments who{own.data(), segments.data(), places.data()};
  Team team;
  attention_forward<Engine, T>(team, shape, of(q, queries), of(k, keys), of(v, keys), who,
                               to(out, queries), log_total.data());
  attention_backward<Engine, T>(
      team, shape,
      {of(q, queries), of(k, keys), of(v, keys), of(out, queries), of(gradient, queries),
       log_total.data()},
      who, to(dq, queries), to(dk, keys), to(dv, keys));

  std::vector<double> right(q.size()), right_q(q.size()), right_k(k.size()), right_v(v.size());
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < queries; ++i) {
        const int64_t at = (b * queries + i) * wide + h * dim;
        const auto key = [&](int64_t j) { return (b * keys + j) * wide + h * dim; };
        const auto seen = [&](int64_t j) {
          return own[b * queries + i] == segments[b * keys + j] &&
                 (!causal || j <= places[b * queries + i]);
        };
        std::vector<double> p(keys), of_p(keys);
        double total = 0, mean = 0;
        for (int64_t j = 0; j < keys; ++j) {
          if (!seen(j)) continue;
          double x = 0;
          for (int64_t c = 0; c < dim; ++c)
            x += double(to_float(q[at + c])) * to_float(k[key(j) + c]);
          total += p[j] = std::exp(x * shape.scale);
        }
        if (total == 0) continue;
        for (int64_t j = 0; j < keys; ++j) {
          p[j] /= total;
          for (int64_t c = 0; c < dim; ++c) {
            right[at + c] += p[j] * to_float(v[key(j) + c]);
            of_p[j] += double(to_float(gradient[at + c])) * to_float(v[key(j) + c]);
          }
          mean += p[j] * of_p[j];
        }
        for (int64_t j = 0; j < keys; ++j)
          for (int64_t c = 0; c < dim; ++c) {
            const double ds = p[j] * (of_p[j] - mean) * shape.scale;
            right_q[at + c] += ds * to_float(k[key(j) + c]);
            right_k[key(j) + c] += ds * to_float(q[at + c]);
            right_v[key(j) + c] += p[j] * to_float(gradient[at + c]);
          }
      }
  expect(name + " attention", out, right, tolerance);
  expect(name + " attention dq", dq, right_q, tolerance);
  expect(name + " attention dk", dk, right_k, tolerance);
  expect(name + " attention dv", dv, right_v, tolerance);
}

template <class Engine, class T>
void check_feed_forward(const std::string& name, int64_t places, int64_t dim, int64_t hidden,
                        double tolerance) {
  const auto x = randoms<T>(places * dim), up = randoms<T>(2 * hidden * dim, 0.3f);
  const auto down = randoms<T>(hidden * dim, 0.3f);
  const auto up_bias = randoms<float>(2 * hidden), down_bias = randoms<float>(dim);
  for (const Activation kind : {Activation::kGelu, Activation::kSwiglu}) {
    const bool gated = kind == Activation::kSwiglu;
    const int64_t wide = gated ? 2 * hidden : hidden;
    std::vector<T> out(places * dim), before(places * wide);
    std::vector<double> right(out.size()), right_before(before.size());
    for (int64_t i = 0; i < places; ++i) {
      for (int64_t j = 0; j < wide; ++j) {
        double sum = up_bias[j];
        for (int64_t k = 0; k < dim; ++k)
          sum += double(to_float(x[i * dim + k])) * to_float(up[j * dim + k]);
        right_before[i * wide + j] = sum;
      }
      for (int64_t k = 0; k < dim; ++k) right[i * dim + k] = down_bias[k];
      for (int64_t j = 0; j < hidden; ++j) {
        const double b = right_before[i * wide + j];
        const double h = gated ? b / (1 + std::exp(-b)) * right_before[i * wide + hidden + j]
                               : b / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) *
                                                        (b + 0.044715 * b * b * b)));
        for (int64_t k = 0; k < dim; ++k) right[i * dim + k] += h * to_float(down[j * dim + k]);
      }
    }
    Team team;
    for (T* kept : {before.data(), static_cast<T*>(nullptr)}) {
      feed_forward<Engine, T>(team, {places, dim, hidden}, kind, x.data(), up.data(),
                              up_bias.data(), down.data(), down_bias.data(), out.data(), kept);
      expect(name + " feed-forward", out, right, tolerance);
    }
    expect(name + " hidden layer", before, right_before, tolerance);
  }
}

void check_pairs() {
  std::vector<int32_t> queries(3000), items(queries.size()), a(queries.size()), b(queries.size());
  std::set<std::pair<int32_t, int32_t>> right;
  for (size_t i = 0; i < queries.size(); ++i) {
    queries[i] = draw() % 40;
    items[i] = i % 9 ? int32_t(draw() % 5000) : INT32_MAX;
    if (i % 9) right.insert({items[i], queries[i]});
  }
  sorted_pairs(queries.data(), items.data(), queries.size(), INT32_MAX, a.data(), b.data());
  size_t at = 0;
  for (const auto& [item, query] : right) failures += a[at] != query || b[at++] != item;
  for (; at < a.size(); ++at) failures += a[at] != 0 || b[at] != INT32_MAX;
}

// Ids come and go in a table of few buckets, so that most of them pass some.
void check_ids() {
  std::mt19937_64 draw(2);
  constexpr int64_t kBuckets = 37;
  std::vector<Bucket> table(kBuckets, Bucket{});
  std::map<int64_t, int32_t> right;
  std::vector<int64_t> pool = {0, -1, INT64_MAX, INT64_MIN};
  while (pool.size() < 400) pool.push_back(int64_t(draw()));
  for (int turn = 0; turn < 200; ++turn) {
    std::vector<int64_t> added, gone;
    std::vector<int32_t> rows, found(pool.size());
    for (int64_t id : pool) {
      if (draw() % 4) continue;
      if (right.count(id)) {
        gone.push_back(id);
      } else if (right.size() + added.size() < kBuckets * kBucketIds) {
        added.push_back(id);
        rows.push_back(int32_t(1 + draw() % 1000));
      }
    }
    failures += insert_ids(table.data(), kBuckets, added.data(), rows.data(), added.size()) !=
                int64_t(added.size());
    failures += erase_ids(table.data(), kBuckets, gone.data(), gone.size()) != int64_t(gone.size());
    for (size_t i = 0; i < added.size(); ++i) right[added[i]] = rows[i];
    for (int64_t id : gone) right.erase(id);
    find_ids(table.data(), kBuckets, pool.data(), pool.size(), found.data());
    for (size_t i = 0; i < pool.size(); ++i)
      failures += found[i] != (right.count(pool[i]) ? right[pool[i]] : 0);
  }
}

template <template <class, class> class Engine, template <class, class> class Fine>
void check_all(const std::string& engine, double f32, double bf16) {
  const Shape shapes[] = {
      {1, 1, 1, 1, false, 1, 0},         {1, 300, 50, 300, false, 1, 0},
      {33, 129, 7, 100, true, 0.5f, 0},  {70, 700, 64, 700, false, 1, 0},
      {64, 257, 100, 200, true, 1, 2.0f}, {40, 1500, 24, 1500, true, 2, 0},
  };
  for (const Shape& s : shapes) {
    const std::string name = engine + " " + std::to_string(s.queries) + "x" +
                             std::to_string(s.rows) + "x" + std::to_string(s.dim);
    check_catalogue<Engine<float, float>, float, float>(name + " f32", s, f32);
    check_catalogue<Engine<uint16_t, uint16_t>, uint16_t, uint16_t>(name + " bf16", s, f32);
    check_catalogue<Engine<float, uint16_t>, float, uint16_t>(name + " mixed", s, f32);
    check_catalogue<Engine<uint16_t, float>, uint16_t, float>(name + " mixed", s, f32);
  }
  for (const bool causal : {false, true})
    for (const auto& [queries, keys, dim] :
         {std::array<int64_t, 3>{1, 1, 1}, {3, 40, 5}, {37, 37, 20}, {70, 100, 33}}) {
      check_attention<Fine<float, float>, float>(engine, queries, keys, dim, causal, 1e-5);
      check_attention<Fine<uint16_t, uint16_t>, uint16_t>(engine + " bf16", queries, keys, dim,
                                                          causal, bf16);
    }
  for (const auto& [places, dim, hidden] :
       {std::array<int64_t, 3>{1, 1, 1}, {33, 20, 50}, {70, 64, 100}}) {
    check_feed_forward<Fine<float, float>, float>(engine, places, dim, hidden, 1e-5);
    check_feed_forward<Fine<uint16_t, uint16_t>, uint16_t>(engine + " bf16", places, dim, hidden,
                                                           bf16);
  }
}

#ifdef REC_JAX_AMX
template <class Query, class Item>
using Coarse = AmxEngine<Query, Item, 2>;
template <class Query, class Item>
using Exact = AmxEngine<Query, Item, 3>;
#endif

}  // namespace
}  // namespace rec_jax

int main() {
  using namespace rec_jax;
  check_pairs();
  check_ids();
  check_all<VectorEngine, VectorEngine>("vector", 1e-5, 1e-2);
#ifdef REC_JAX_AMX
  if (amx_permitted()) check_all<Coarse, Exact>("amx", 1e-4, 1e-2);
#endif
  if (Buffer::held() != 0) ++failures;
  std::printf("%d lanes, %d failures\n", kLanes, failures);
  return failures != 0;
}
