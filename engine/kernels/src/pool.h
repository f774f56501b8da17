// Threads that share out numbered units of work.
//
// Units are taken from one atomic counter, so a thread whose core was stolen holds up its current unit and no more;
// a thread that wakes too late takes none. Idle threads spin briefly, then sleep. The caller works too.
#pragma once

#include <cstddef>
#include <mutex>

namespace distllm {

class Pool {
 public:
  explicit Pool(int num_threads);  // callers count as one of them
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int num_threads() const { return num_threads_; }

 private:
  friend class Session;
  struct State;

  State& state();  // this process's; made anew in a forked child, where the parent's threads do not exist

  int num_threads_;
  unsigned forks_;
  State* state_;
  std::mutex renewal_;
};

// Exclusive use of a pool and of its scratch memory: Python threads take turns.
class Session {
 public:
  explicit Session(Pool& pool);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  int num_threads() const { return num_threads_; }

  // Runs body(unit, thread) for unit = 0 .. count - 1 in any order on any thread; returns when all are done.
  template <class F>
  void for_each(int count, const F& body) {
    const Body call = [](const void* f, int unit, int thread) { (*static_cast<const F*>(f))(unit, thread); };
    run(count, call, &body);
  }

  // Memory aligned to 64 bytes, valid until the next call for the same slot: 0 .. num_threads - 1 for the threads,
  // num_threads for what they share. Call it outside for_each: it may throw std::bad_alloc.
  template <class T>
  T* scratch(int slot, size_t count) {
    return static_cast<T*>(scratch_bytes(slot, count * sizeof(T)));
  }

 private:
  using Body = void (*)(const void*, int, int);
  void run(int count, Body body, const void* argument);
  void* scratch_bytes(int slot, size_t bytes);

  Pool::State& state_;
  int num_threads_;
};

}  // namespace distllm
