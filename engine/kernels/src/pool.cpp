#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "relax.h"

namespace distllm {
namespace {

constexpr std::chrono::microseconds kSpin{150};  // about the gap between two calls of one step
constexpr uint32_t kClosed = 0xffffffff;

std::atomic<unsigned> forks{0};

uint64_t ticket_of(uint32_t epoch, uint32_t next) { return (uint64_t)epoch << 32 | next; }
uint32_t epoch_of(uint64_t ticket) { return (uint32_t)(ticket >> 32); }
uint32_t next_of(uint64_t ticket) { return (uint32_t)ticket; }

struct Buffer {
  void* memory = nullptr;
  size_t bytes = 0;

  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(memory); }

  void* at_least(size_t wanted) {
    if (wanted <= bytes) return memory;
    std::free(memory);
    bytes = 0;
    const size_t rounded = (wanted + wanted / 4 + 4095) / 4096 * 4096;
    memory = std::aligned_alloc(4096, rounded);
    if (memory == nullptr) throw std::bad_alloc();
    bytes = rounded;
    return memory;
  }
};

}  // namespace

// `ticket` is (epoch of the job, next unit to take). A job is published as: ticket closed, fields, ticket open. A
// thread that reads the fields of one job cannot take a unit of another, since its compare-and-swap names the epoch.
struct Pool::State {
  std::mutex turn;

  alignas(64) std::atomic<uint64_t> ticket{ticket_of(0, kClosed)};
  std::atomic<void (*)(const void*, int, int)> body{nullptr};
  std::atomic<const void*> argument{nullptr};
  std::atomic<uint32_t> count{0};
  alignas(64) std::atomic<uint32_t> done{0};

  alignas(64) std::atomic<int> num_sleeping{0};
  std::atomic<bool> stopping{false};
  std::mutex sleep;
  std::condition_variable wake;

  std::vector<std::thread> threads;
  std::vector<Buffer> buffers;

  explicit State(int num_threads) : buffers((size_t)num_threads + 1) {
    threads.reserve((size_t)num_threads);
    try {
      for (int i = 1; i < num_threads; ++i) threads.emplace_back([this, i] { serve(i); });
    } catch (...) {
      stop();
      throw;
    }
  }

  ~State() { stop(); }

  void stop() {
    {
      std::lock_guard<std::mutex> lock(sleep);
      stopping = true;
    }
    wake.notify_all();
    for (std::thread& thread : threads) thread.join();
    threads.clear();
  }

  void publish(uint32_t units, void (*run)(const void*, int, int), const void* with) {
    const uint32_t epoch = epoch_of(ticket.load(std::memory_order_relaxed)) + 1;
    ticket.store(ticket_of(epoch, kClosed), std::memory_order_relaxed);
    done.store(0, std::memory_order_relaxed);
    body.store(run, std::memory_order_release);
    argument.store(with, std::memory_order_release);
    count.store(units, std::memory_order_release);
    ticket.store(ticket_of(epoch, 0), std::memory_order_seq_cst);
    if (num_sleeping.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(sleep);
      wake.notify_all();
    }
  }

  void work(int thread) {
    uint64_t seen = ticket.load(std::memory_order_acquire);
    for (;;) {
      const uint32_t units = count.load(std::memory_order_acquire);
      auto* const run = body.load(std::memory_order_acquire);
      const void* const with = argument.load(std::memory_order_acquire);
      if (next_of(seen) >= units) return;
      const uint64_t taken = seen + 1;
      if (!ticket.compare_exchange_weak(seen, taken, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      run(with, (int)next_of(seen), thread);
      done.fetch_add(1, std::memory_order_release);
      seen = ticket.load(std::memory_order_acquire);
    }
  }

  void wait_until_done(uint32_t units) {
    for (int spins = 0; done.load(std::memory_order_acquire) != units; ++spins) {
      if (spins < 2000)
        relax();
      else
        sched_yield();
    }
  }

  void serve(int thread) {
    uint32_t epoch = 0;
    while (wait_for_job(epoch)) {
      epoch = epoch_of(ticket.load(std::memory_order_acquire));
      work(thread);
    }
  }

  // False once the pool stops.
  bool wait_for_job(uint32_t epoch) {
    const auto is_new = [&] { return epoch_of(ticket.load(std::memory_order_seq_cst)) != epoch; };
    const auto give_up = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < 32; ++i) {
        if (is_new()) return !stopping;
        relax();
      }
    } while (std::chrono::steady_clock::now() < give_up);
    std::unique_lock<std::mutex> lock(sleep);
    num_sleeping.fetch_add(1, std::memory_order_seq_cst);
    wake.wait(lock, [&] { return stopping || is_new(); });
    num_sleeping.fetch_sub(1, std::memory_order_relaxed);
    return !stopping;
  }
};

Pool::Pool(int num_threads) : num_threads_(num_threads), forks_(forks), state_(new State(num_threads)) {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { ++forks; });
  (void)registered;
}

Pool::~Pool() {
  if (forks_ == forks) delete state_;  // a child leaks its parent's: those threads and locks are not its own
}

Pool::State& Pool::state() {
  std::lock_guard<std::mutex> lock(renewal_);
  if (forks_ != forks) {
    state_ = new State(num_threads_);
    forks_ = forks;
  }
  return *state_;
}

Session::Session(Pool& pool) : state_(pool.state()), num_threads_(pool.num_threads()) { state_.turn.lock(); }

Session::~Session() { state_.turn.unlock(); }

void Session::run(int count, Body body, const void* argument) {
  if (count <= 1 || state_.threads.empty()) {
    for (int unit = 0; unit < count; ++unit) body(argument, unit, 0);
    return;
  }
  state_.publish((uint32_t)count, body, argument);
  state_.work(0);
  state_.wait_until_done((uint32_t)count);
}

void* Session::scratch_bytes(int slot, size_t bytes) { return state_.buffers[(size_t)slot].at_least(bytes); }

}  // namespace distllm
