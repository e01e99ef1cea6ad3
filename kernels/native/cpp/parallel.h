// A loop over independent units of work, on threads that somebody lends.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

namespace rec_jax {

// Who lends threads; `calls.h` asks XLA.
class Threads {
 public:
  virtual ~Threads() = default;
  virtual int64_t count() const = 0;
  virtual void schedule(std::function<void()> work) = 0;
};

// Runs work(unit) for every unit in [0, units), each once, in no fixed order. The caller takes
// part and waits only for helpers that hold a unit, so it cannot wait for a thread that never comes.
// A helper that arrives when all units are taken touches nothing but the shared counter.
inline void parallel_for(Threads& pool, int64_t units,
                         const std::function<void(int64_t)>& work) {
  struct Shared {
    std::atomic<int64_t> next{0};
    int64_t units, done = 0;
    const std::function<void(int64_t)>* work;
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto shared = std::make_shared<Shared>();
  shared->units = units;
  shared->work = &work;
  auto take = [shared] {
    int64_t finished = 0;
    for (int64_t unit; (unit = shared->next.fetch_add(1)) < shared->units; ++finished)
      (*shared->work)(unit);
    if (finished == 0) return;
    std::lock_guard<std::mutex> lock(shared->mutex);
    shared->done += finished;
    if (shared->done == shared->units) shared->all_done.notify_all();
  };
  int64_t helpers = std::min<int64_t>(pool.count(), units) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.schedule(std::function<void()>(take));
  take();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == shared->units; });
}

}  // namespace rec_jax
