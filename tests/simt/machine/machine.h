// What the machine knows: of memory, of threads, of the launch. See ../README.md.
#pragma once

#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"
#include "simt.h"

namespace simt {

constexpr int kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kStack = 128 << 10;
// Accesses of one thread without a pause, after which it is taken to wait for something by spinning.
constexpr uint64_t kSpinning = 50'000'000;

// ---- what is known of memory

// Who touched an element in one way (wrote, read, or changed atomically) since the last access that
// had to come after all of them. Several lanes of one warp are kept apart, because __syncwarp may
// order some of them only; anything wider is ordered by the block's barrier or by nothing.
struct Touch {
  static constexpr int kNone = -1, kSeveral = -2;
  int block = kNone;
  signed char warp = kNone;
  signed char lane = kNone;
  unsigned epoch = 0;  // barriers that the block had passed
  unsigned stamp = 0;  // of a single lane: its last __syncwarp; of several: an index in m.stamps
  unsigned pc = 0;     // within this library
};

struct Element {
  unsigned run = 0;  // what follows is of this run of the kernel; in shared memory, of this block
  Touch writes, reads, atomics;
};

struct Array {
  uintptr_t begin, end;
  size_t element;
  unsigned run = 0;
  std::vector<Element> elements;
  std::vector<char> initialized;

  Array(uintptr_t begin, size_t bytes, size_t element, bool initialized)
      : begin(begin), end(begin + bytes), element(element), elements((bytes + element - 1) / element),
        initialized(elements.size(), initialized) {}
};

struct Saved {
  std::vector<std::vector<char>> bytes, initialized;
};

// ---- threads

enum class State { ready, at_barrier, in_warp, ended };

struct Thread {
  Fiber fiber;
  uintptr_t stack = 0;
  State state = State::ready;
  uint3 index{};
  int warp = 0, lane = 0;
  uint64_t accesses = 0;
  // while it waits
  const char* waits_in = "";
  Site site;
  unsigned mask = 0;
  uint64_t value = 0;
  std::array<uint64_t, kWarp> received{};
  // the order that __syncwarp makes: of each lane of the warp, the last stamp known to be over
  unsigned stamp = 0;
  std::array<unsigned, kWarp> known{};
};

struct Place {
  const char* file;
  unsigned line;
  auto operator<=>(const Place&) const = default;
};

struct Barrier {
  bool needed = false;      // whether a run without it went wrong
  unsigned last_launch = 0;  // that passed it
};

struct Machine {
  std::mutex one_launch;
  // set by the tests
  int schedules = 5;
  uint64_t seed = 0;
  // memory
  std::vector<Array> arrays;
  Array* last = nullptr;
  std::vector<char> dynamic_bytes = std::vector<char>(kMaxShared + 1024);
  std::vector<Array> shared;  // static, then dynamic
  std::map<const void*, size_t> allowed;  // dynamic shared memory of kernels that asked for it
  // For elements that several lanes of one warp touched: 1 + the stamp of each, 0 for none.
  std::vector<std::array<unsigned, kWarp>> stamps;
  unsigned runs = 0;
  // the launch
  unsigned launches = 0;
  const void* kernel = nullptr;
  void (*call)(const void*) = nullptr;
  const void* parameters = nullptr;
  std::mt19937_64 random;
  // the block
  int block_number = 0;
  unsigned epoch = 0, warp_stamp = 0;
  unsigned n_threads = 0, n_ended = 0, n_at_barrier = 0;
  Votes votes{};
  std::vector<Thread> threads;
  std::vector<Thread*> ready;
  Thread* current = nullptr;   // the thread that runs kernel code now
  Thread* starting = nullptr;  // the one that the scheduler resumes
  Fiber scheduler;
  char* stacks = nullptr;
  // findings
  bool failed = false;
  std::string report;
  const void *pc = nullptr, *earlier_pc = nullptr;
  std::map<Place, Barrier> barriers;
  const Place* left_out = nullptr;
};

extern Machine m;

// Code of the machine itself may be compiled with hooks, where it shares templates with kernels.
struct Inside {
  Thread* thread = std::exchange(m.current, nullptr);
  ~Inside() { m.current = thread; }
};

// Lets another thread run.
inline void pause(Thread& thread) { thread.fiber.switch_to(m.scheduler); }

// ---- arrays (memory.cpp)

Saved save();
void restore(const Saved& saved);
// The first element in which two results differ, told; empty where they are equal.
std::string difference(const Saved& a, const Saved& b);

// ---- this library in memory (report.cpp)

struct Image {
  uintptr_t begin = 0;
  size_t bytes = 0;
  uintptr_t shared = 0;
  size_t shared_bytes = 0;
};
extern Image image;
Image find_image();

// ---- reports (report.cpp)

inline uint3 index_in(unsigned number, dim3 size) {
  return {number % size.x, number / size.x % size.y, number / size.x / size.y};
}

inline bool same(Site a, Site b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

std::string short_name(const char* file);
std::string told(uint3 index);
std::string told(Site site);

// Ends the launch.
[[noreturn]] void stop(Thread& thread);

// Notes what is wrong, and ends the launch.
template <class... Parts>
[[noreturn]] void fail(Thread& thread, const void* pc, const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  text << ", by thread " << told(thread.index) << " of block " << told(blockIdx);
  m.report = text.str();
  m.pc = pc;
  stop(thread);
}

template <class... Parts>
[[noreturn]] void fail_at(Thread& thread, Site site, const Parts&... parts) {
  fail(thread, nullptr, parts..., " at ", told(site));
}

}  // namespace simt
