// Threads as fibers, run one after another in an order drawn at random; barriers, warps, launches.
#include <sys/mman.h>

#include <algorithm>

#include "machine.h"

namespace simt {

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
Machine m;

namespace {

// ---- running

void enter(Thread& thread) {
  m.starting = &thread;
  threadIdx = thread.index;
  m.scheduler.switch_to(thread.fiber);
}

void fiber_main() {
  Thread& thread = *m.starting;
  m.current = &thread;
  m.call(m.parameters);
  m.current = nullptr;
  thread.state = State::ended;
  ++m.n_ended;
  for (const Thread& other : m.threads) {
    if (other.state == State::at_barrier) {
      fail_at(thread, other.site, "thread ends while others wait in ", other.waits_in);
    }
    if (other.state == State::in_warp && other.warp == thread.warp && (other.mask >> thread.lane & 1u)) {
      fail_at(thread, other.site, "lane ", thread.lane, " ends while others wait for it in ", other.waits_in);
    }
  }
  for (;;) pause(thread);
}

void report_deadlock() {
  std::ostringstream text;
  text << "deadlock:";
  const char* separator = " ";
  std::map<std::string, int> places;
  Thread* first = nullptr;
  for (Thread& t : m.threads) {
    if (t.state == State::ended) continue;
    if (!first) first = &t;
    ++places[std::string(t.waits_in) + " at " + told(t.site)];
  }
  for (const auto& [place, count] : places) {
    text << separator << count << (count == 1 ? " thread waits in " : " threads wait in ") << place;
    separator = ", ";
  }
  text << ", thread " << told(first->index) << " of block " << told(blockIdx) << " among them";
  m.report = text.str();
  m.failed = true;
}

void run_block(unsigned number) {
  m.block_number = static_cast<int>(number);
  blockIdx = index_in(number, gridDim);
  m.epoch = m.warp_stamp = m.n_ended = m.n_at_barrier = 0;
  m.votes = {};
  for (Array& array : m.shared) {
    std::memset(reinterpret_cast<void*>(array.begin), 0xff, array.end - array.begin);
    std::fill(array.initialized.begin(), array.initialized.end(), 0);
    array.run = ++m.runs;
  }
  m.ready.clear();
  for (unsigned i = 0; i < m.n_threads; ++i) {
    Thread& t = m.threads[i];
    t = Thread{};
    t.index = index_in(i, blockDim);
    t.warp = static_cast<int>(i) / kWarp;
    t.lane = static_cast<int>(i) % kWarp;
    t.stack = reinterpret_cast<uintptr_t>(m.stacks + i * kStack);
    t.fiber.start(m.stacks + i * kStack, kStack, &fiber_main);
    m.ready.push_back(&t);
  }
  while (m.n_ended < m.n_threads && !m.failed) {
    if (m.ready.empty()) return report_deadlock();
    std::swap(m.ready[m.random() % m.ready.size()], m.ready.back());
    Thread* next = m.ready.back();
    m.ready.pop_back();
    enter(*next);
  }
}

// One run of the kernel, in the order that `schedule` draws.
bool run(int schedule) {
  m.failed = false;
  m.pc = m.earlier_pc = nullptr;
  m.stamps.clear();
  ++m.runs;
  for (Array& array : m.arrays) array.run = m.runs;
  m.random.seed(m.seed * 1000 + schedule);
  std::vector<unsigned> blocks(size_t{gridDim.x} * gridDim.y * gridDim.z);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<unsigned>(i);
  std::shuffle(blocks.begin(), blocks.end(), m.random);
  for (unsigned number : blocks) {
    run_block(number);
    if (m.failed) return false;
  }
  return true;
}

bool refuse(const char* why) {
  m.failed = true;
  m.pc = m.earlier_pc = nullptr;
  m.report = why;
  return false;
}

bool prepare(dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || threads % kWarp != 0) {
    return refuse("invalid launch: a block must have a multiple of 32 threads, at most 1024");
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535) {
    return refuse("invalid launch: a grid has 1 to 2^31-1, 65535 and 65535 blocks");
  }
  if (shared_bytes > kMaxShared) return refuse("invalid launch: too much shared memory");
  if (shared_bytes > std::max(kPlainShared, m.allowed[m.kernel])) {
    return refuse("invalid launch: more shared memory than the kernel asked for");
  }
  if (!m.stacks) {
    m.stacks = static_cast<char*>(mmap(nullptr, kMaxThreads * kStack, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    m.threads.reserve(kMaxThreads);
  }
  gridDim = grid;
  blockDim = block;
  m.n_threads = static_cast<unsigned>(threads);
  m.threads.resize(threads);
  image = find_image();
  m.shared.clear();
  m.last = nullptr;
  m.shared.emplace_back(image.shared, image.shared_bytes, 1, false);
  m.shared.emplace_back(reinterpret_cast<uintptr_t>(dynamic_shared()), shared_bytes, 1, false);
  return true;
}

// ---- warps

// Lanes that wait for each other must be in the same call with the same mask. One that is waited for
// may have something else to do first.
void check_lanes(Thread& thread) {
  if (!(thread.mask >> thread.lane & 1u)) {
    fail_at(thread, thread.site, "wrong mask: lane ", thread.lane, " calls ", thread.waits_in,
            " with a mask that leaves it out");
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    const Thread& other = m.threads[thread.warp * kWarp + lane];
    const bool named = thread.mask >> lane & 1u;
    if (named && other.state == State::ended) {
      fail_at(thread, thread.site, "wrong mask: ", thread.waits_in, " names lane ", lane, ", which has ended");
    }
    if (other.state != State::in_warp || !named || !(other.mask >> thread.lane & 1u)) continue;
    if (other.mask != thread.mask) {
      fail_at(thread, thread.site, "wrong mask: lane ", thread.lane, " calls ", thread.waits_in, " with ",
              std::to_string(thread.mask), ", lane ", lane, " waits for it with ", std::to_string(other.mask));
    }
    if (std::strcmp(other.waits_in, thread.waits_in) != 0 || !same(other.site, thread.site)) {
      fail_at(thread, thread.site, "mismatched collectives: lane ", thread.lane, " calls ", thread.waits_in,
              ", lane ", lane, " waits for it in ", other.waits_in, " at ", told(other.site));
    }
  }
}

// Waits until the lanes of `mask` are there. The last calls `complete(lanes)`.
template <class Complete>
void meet(Thread& thread, const char* name, unsigned mask, Site site, const Complete& complete) {
  thread.accesses = 0;
  thread.waits_in = name;
  thread.site = site;
  thread.mask = mask;
  thread.state = State::in_warp;
  check_lanes(thread);
  std::vector<Thread*> lanes;
  for (int lane = 0; lane < kWarp; ++lane) {
    Thread& other = m.threads[thread.warp * kWarp + lane];
    if (!(mask >> lane & 1u)) continue;
    if (other.state != State::in_warp || other.mask != mask || !same(other.site, site)) {
      return pause(thread);
    }
    lanes.push_back(&other);
  }
  complete(lanes);
  for (Thread* each : lanes) {
    each->state = State::ready;
    m.ready.push_back(each);
  }
  pause(thread);
}

// Whether this barrier is the one that the run leaves out.
bool left_out(Site site) {
  auto& [place, barrier] = *m.barriers.try_emplace({site.file_name(), site.line()}).first;
  barrier.last_launch = m.launches;
  return &place == m.left_out;
}

Votes wait_for_block(Thread& thread, const char* name, bool yes, Site site) {
  thread.accesses = 0;
  thread.waits_in = name;
  thread.site = site;
  thread.state = State::at_barrier;
  for (const Thread& other : m.threads) {
    if (other.state == State::at_barrier && !same(other.site, site)) {
      fail_at(thread, site, "divergent barrier: others wait at ", told(other.site), ", this one");
    }
    if (other.state == State::ended) {
      fail_at(thread, site, "thread ", told(other.index), " has ended before the barrier reached");
    }
  }
  thread.value = yes;
  if (++m.n_at_barrier == m.n_threads) {
    ++m.epoch;
    m.n_at_barrier = 0;
    m.votes = {0, static_cast<int>(m.n_threads)};
    for (Thread& each : m.threads) {
      m.votes.yes += each.value != 0;
      each.state = State::ready;
      m.ready.push_back(&each);
    }
  }
  pause(thread);
  return m.votes;
}

}  // namespace

// ---- asked by kernels

int lane() { return m.current->lane; }

void* dynamic_shared() {
  const uintptr_t at = reinterpret_cast<uintptr_t>(m.dynamic_bytes.data());
  return reinterpret_cast<void*>((at + 1023) / 1024 * 1024);
}

void sync_block(Site site) {
  Inside inside;
  if (!left_out(site)) wait_for_block(*inside.thread, "__syncthreads", false, site);
}

Votes count_block(bool yes, Site site) {
  Inside inside;
  return wait_for_block(*inside.thread, "a reducing __syncthreads", yes, site);
}

void sync_warp(unsigned mask, Site site) {
  Inside inside;
  if (left_out(site)) return;
  meet(*inside.thread, "__syncwarp", mask, site, [](const std::vector<Thread*>& lanes) {
    std::array<unsigned, kWarp> known{};
    for (const Thread* each : lanes) {
      for (int lane = 0; lane < kWarp; ++lane) known[lane] = std::max(known[lane], each->known[lane]);
    }
    ++m.warp_stamp;
    for (const Thread* each : lanes) known[each->lane] = m.warp_stamp;
    for (Thread* each : lanes) {
      each->known = known;
      each->stamp = m.warp_stamp;
    }
  });
}

const uint64_t* exchange(const char* name, unsigned mask, uint64_t value, Site site, int source) {
  Inside inside;
  Thread& thread = *inside.thread;
  if (source >= 0 && !(mask >> source & 1u)) {
    fail_at(thread, site, name, " from inactive lane ", source);
  }
  thread.value = value;
  meet(thread, name, mask, site, [](const std::vector<Thread*>& lanes) {
    std::array<uint64_t, kWarp> values{};
    for (const Thread* each : lanes) values[each->lane] = each->value;
    for (Thread* each : lanes) each->received = values;
  });
  return thread.received.data();
}

// ---- asked by hosts

void allow_shared(const void* kernel, size_t bytes) { m.allowed[kernel] = bytes; }

bool launch(dim3 grid, dim3 block, size_t shared_bytes, const void* kernel,
            void (*call)(const void*), const void* parameters) {
  const std::lock_guard lock(m.one_launch);
  ++m.launches;
  m.kernel = kernel;
  m.call = call;
  m.parameters = parameters;
  if (!prepare(grid, block, shared_bytes)) return false;
  const Saved before = save();
  Saved result;
  for (int schedule = 0; schedule < m.schedules; ++schedule) {
    if (schedule > 0) restore(before);
    if (!run(schedule)) return false;
    if (schedule == 0) {
      result = save();
    } else if (m.report = difference(result, save()); !m.report.empty()) {
      m.failed = true;
      return false;
    }
  }
  // Is each barrier needed? Once a run without it goes wrong, that is settled.
  for (auto& [place, barrier] : m.barriers) {
    if (barrier.needed || barrier.last_launch != m.launches) continue;
    restore(before);
    m.left_out = &place;
    barrier.needed = !run(0) || !difference(result, save()).empty();
    m.left_out = nullptr;
    m.failed = false;
  }
  restore(result);
  return true;
}

// ---- asked by the tests, through ctypes

#define SIMT_API extern "C" __attribute__((visibility("default")))

SIMT_API void simt_configure(int schedules, uint64_t seed) {
  m.schedules = schedules;
  m.seed = seed;
}

// A line "1 path:line" for each barrier that was passed and shown to be needed, "0 path:line" for the
// others.
SIMT_API const char* simt_barriers() {
  static std::string text;
  text.clear();
  for (const auto& [place, barrier] : m.barriers) {
    text += std::string(barrier.needed ? "1 " : "0 ") + place.file + ':' + std::to_string(place.line) + '\n';
  }
  return text.c_str();
}

// Writes down how often each line was run.
extern "C" void __gcov_dump();
SIMT_API void simt_write_counters() { __gcov_dump(); }

}  // namespace simt
