// csrc/cpu/crew.h under the thread sanitizer: every step's parts, each once, and all that a leader and
// its members hand each other is ordered. Threads are few, many, late, or none; loops end in any way.
#include "../../csrc/cpu/crew.h"

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <numeric>
#include <stdexcept>

using modfast::Crew;

namespace {

void expect(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "crew: %s\n", what);
  std::exit(1);
}

std::atomic<int64_t> n_parts_of_members{0};

// A loop whose step reads what any thread wrote in the step before, with plain loads and stores.
void run_steps(Crew& crew, int64_t n, int n_steps) {
  std::vector<int64_t> now(n, 1), before(n), n_parts(8);
  for (int step = 1; step <= n_steps; ++step) {
    now.swap(before);
    const int64_t* from = before.data();
    int64_t* to = now.data();
    crew.run(n, [from, to, n, counts = n_parts.data()](int64_t begin, int64_t end, int64_t member) {
      ++counts[member];
      for (int64_t i = begin; i < end; ++i) to[i] = from[n - 1 - i] + 1;
    });
    for (const int64_t value : now) expect(value == step + 1, "a step's part was left out, or done twice");
  }
  n_parts_of_members += std::accumulate(n_parts.begin() + 1, n_parts.end(), int64_t{0});
}

struct Ended {  // as an operator ends a crew's work
  Crew& crew;
  ~Ended() { crew.end(); }
};

void one_crew(int n_members, int n_threads, int64_t n, int n_steps) {
  Crew crew(n_members);
  std::vector<std::thread> threads;
  for (int i = 0; i < n_threads; ++i) threads.emplace_back([&] { crew.join(); });
  {
    const Ended ended{crew};
    run_steps(crew, n, n_steps);
  }
  crew.join();  // by the leader, as operators do; needs nobody
  for (std::thread& thread : threads) thread.join();
}

// Threads that come while steps are under way.
void latecomers() {
  Crew crew(3);
  std::vector<std::thread> threads;
  std::thread caller([&] {
    for (int i = 0; i < 3; ++i) {
      std::this_thread::yield();
      threads.emplace_back([&] { crew.join(); });
    }
  });
  run_steps(crew, 17, 400);
  crew.end();
  caller.join();
  for (std::thread& thread : threads) thread.join();
}

// Several crews, of which every thread leads some and then joins the others, as in pruning.
void several(int n_crews, int n_threads) {
  std::deque<Crew> crews;
  for (int g = 0; g < n_crews; ++g) crews.emplace_back(2);
  std::vector<std::thread> threads;
  for (int t = 0; t < n_threads; ++t) {
    threads.emplace_back([&, t] {
      for (int g = t; g < n_crews; g += n_threads) {
        const Ended ended{crews[g]};
        run_steps(crews[g], 9, 100);
      }
      for (int g = 0; g < n_crews; ++g) crews[(t + g) % n_crews].join();
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// An error between two steps.
void failing() {
  Crew crew(2);
  std::thread member([&] { crew.join(); });
  try {
    const Ended ended{crew};
    run_steps(crew, 5, 20);
    throw std::runtime_error("a step failed");
  } catch (const std::runtime_error&) {
  }
  member.join();
}

}  // namespace

int main() {
  // A crew ends early where threads share a processor, so all is done again until members have worked.
  int round = 0;
  for (; round < 3 || (n_parts_of_members < 2000 && round < 100); ++round) {
    for (const int64_t n : {1, 2, 3, 64}) {
      one_crew(0, 0, n, 50);
      one_crew(1, 1, n, 300);
      one_crew(3, 2, n, 300);
      one_crew(1, 3, n, 300);  // more come than it takes
    }
    latecomers();
    several(4, 2);
    several(2, 3);
    failing();
  }
  const auto n_parts = static_cast<long long>(n_parts_of_members);
  std::printf("crew: no report in %d rounds, %lld parts by members\n", round, n_parts);
  expect(n_parts > 0, "no member ever worked");
}
