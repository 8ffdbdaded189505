// Threads that stay with one loop from its first step to its last.
//
// A step of about a microsecond is over before parallel_for has woken its threads. So one parallel_for
// spans all steps: one of its threads leads and hands each step out, and the others, the members, wait
// for the next by spinning. A step only counts on members that are there when it begins, so no thread
// ever waits for one that may not come: where threads are fewer than asked for, or come one after the
// other, the leader works alone. Which thread does what must not show in the results.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace modfast {

constexpr int kCacheLine = 64;

class Crew {
 public:
  explicit Crew(int64_t most_members) : members_(most_members) {}
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  // For the leader: calls step(begin, end, member) for parts of [0, n) on the threads that are there, and
  // returns when all are done. As long as the crew is the same, a part is in the same hands each time.
  template <class Step>
  void run(int64_t n, const Step& step) {
    static_assert(std::is_trivially_copyable_v<Step> && sizeof(Step) <= sizeof(Order::step));
    const uint64_t n_members = over() ? 0 : std::min<uint64_t>(n_joined_.load(), members_.size());
    if (n_members == 0 || n < 2) {
      step(int64_t{0}, n, int64_t{0});
      return;
    }
    order_.n = n;
    order_.call = [](const void* copy, int64_t all, int64_t member, int64_t n_parts) {
      (*static_cast<const Step*>(copy))(all * member / n_parts, all * (member + 1) / n_parts, member);
    };
    memcpy(order_.step, &step, sizeof(step));
    if (n_steps_ == 0) begun_ = Clock::now();
    const uint64_t number = ++n_steps_ * kMost + n_members;
    order_.number.store(number, std::memory_order_release);
    step(int64_t{0}, n / static_cast<int64_t>(n_members + 1), int64_t{0});
    double waited = 0.0;
    for (uint64_t i = 0; i < n_members; ++i) {
      waited += wait([&] { return members_[i].done.load(std::memory_order_acquire) == number; });
    }
    if (waited > 0.0) count(waited, static_cast<double>(n_members));
  }

  // For the leader: no step will follow.
  void end() { order_.number.store(kOver, std::memory_order_release); }

  // For any other thread: works for the crew until its end, or returns at once if it needs nobody.
  void join() {
    if (over()) return;
    const uint64_t own = n_joined_.fetch_add(1);
    if (own >= members_.size()) return;
    for (uint64_t seen = 0, number = 0;; seen = number) {
      wait([&] { return (number = order_.number.load(std::memory_order_acquire)) != seen; });
      if (number == kOver) return;
      const uint64_t n_members = number % kMost;
      if (own >= n_members) continue;
      order_.call(order_.step, order_.n, static_cast<int64_t>(own + 1), static_cast<int64_t>(n_members + 1));
      members_[own].done.store(number, std::memory_order_release);
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr uint64_t kMost = 1 << 16, kOver = ~uint64_t{0};
  static constexpr int kBrief = 100, kSpins = 2000;
  static constexpr double kPatience = 5e-4;  // seconds

  // What a member reads stands in one line of the cache.
  struct alignas(kCacheLine) Order {
    std::atomic<uint64_t> number{0};  // the step's, times kMost, plus how many members it counts on
    void (*call)(const void*, int64_t, int64_t, int64_t);
    int64_t n;
    alignas(8) unsigned char step[kCacheLine - 24];
  };
  struct alignas(kCacheLine) Member {
    std::atomic<uint64_t> done{0};  // the number of its last step
  };

  bool over() const { return order_.number.load(std::memory_order_relaxed) == kOver; }

  static double since(Clock::time_point begin) {
    return std::chrono::duration<double>(Clock::now() - begin).count();
  }

  // Until found(): by spinning, but after some time others get the processor. The seconds that it took,
  // or 0 where these are next to nothing.
  template <class Found>
  static double wait(const Found& found) {
    for (int spin = 0; spin < kBrief; ++spin) {
      if (found()) return 0.0;
      pause();
    }
    const Clock::time_point begin = Clock::now();
    for (int spin = kBrief; !found(); ++spin) {
      spin < kSpins ? pause() : std::this_thread::yield();
    }
    return since(begin);
  }

  // Threads that must share a processor wait for each other longer than one of them would work alone:
  // then the crew ends.
  void count(double waited, double n_members) {
    waited_ += waited;
    if (waited_ > kPatience + since(begun_) * n_members / (n_members + 1)) end();
  }

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  Order order_;
  std::vector<Member> members_;
  alignas(kCacheLine) std::atomic<uint64_t> n_joined_{0};
  alignas(kCacheLine) uint64_t n_steps_ = 0;
  double waited_ = 0.0;
  Clock::time_point begun_;
};

}  // namespace modfast
