// Which memory kernels may touch, who touched what, and whether accesses come in an order that is
// certain.
#include <algorithm>

#include "machine.h"

namespace simt {
namespace {

// ---- who comes after whom

// Whether all that `touch` tells of came before what `thread` does now.
bool is_over(const Touch& touch, const Thread& thread) {
  if (touch.block == Touch::kNone) return true;
  if (touch.block != m.block_number) return false;
  if (touch.epoch < m.epoch) return true;
  if (touch.warp != thread.warp) return false;
  const auto over = [&](int lane, unsigned stamp) {
    return lane == thread.lane || thread.known[lane] > stamp;
  };
  if (touch.lane != Touch::kSeveral) return over(touch.lane, touch.stamp);
  for (int lane = 0; lane < kWarp; ++lane) {
    const unsigned stamp = m.stamps[touch.stamp][lane];
    if (stamp > 0 && !over(lane, stamp - 1)) return false;
  }
  return true;
}

void add(Touch& touch, const Thread& thread, const void* pc) {
  touch.pc = static_cast<unsigned>(reinterpret_cast<uintptr_t>(pc) - image.begin);
  if (is_over(touch, thread)) {
    touch.block = m.block_number;
    touch.warp = static_cast<signed char>(thread.warp);
    touch.lane = static_cast<signed char>(thread.lane);
    touch.epoch = m.epoch;
    touch.stamp = thread.stamp;
  } else if (touch.block != m.block_number) {
    touch.block = Touch::kSeveral;
  } else if (touch.warp != thread.warp) {
    touch.warp = Touch::kSeveral;
  } else {
    if (touch.lane != Touch::kSeveral) {
      m.stamps.emplace_back()[touch.lane] = touch.stamp + 1;
      touch.stamp = static_cast<unsigned>(m.stamps.size() - 1);
      touch.lane = Touch::kSeveral;
    }
    m.stamps[touch.stamp][thread.lane] = thread.stamp + 1;
  }
}

std::string told(const Touch& touch) {
  std::ostringstream text;
  if (touch.block == Touch::kSeveral) return "several blocks";
  if (touch.warp == Touch::kSeveral) {
    text << "several warps";
  } else if (touch.lane == Touch::kSeveral) {
    text << "several lanes of warp " << static_cast<int>(touch.warp);
  } else {
    text << "thread " << told(m.threads[touch.warp * kWarp + touch.lane].index);
  }
  text << " of block " << told(index_in(touch.block, gridDim));
  return text.str();
}

const char* told(Access kind) {
  switch (kind) {
    case Access::write: return "write";
    case Access::atomic: return "atomic operation";
    default: return "read";
  }
}

void check_race(Thread& thread, const Touch& touch, const char* earlier, Access kind, size_t size,
                const void* pc) {
  if (is_over(touch, thread)) return;
  m.earlier_pc = reinterpret_cast<const void*>(image.begin + touch.pc);
  fail(thread, pc, "data race: ", told(kind), " of ", size, " bytes, not ordered after ", earlier, " by ",
       told(touch));
}

void touch(Thread& thread, const Array& array, Element& element, Access kind, size_t size,
           const void* pc) {
  if (element.run != array.run) {
    element.run = array.run;
    element.writes.block = element.reads.block = element.atomics.block = Touch::kNone;
  }
  check_race(thread, element.writes, "a write", kind, size, pc);
  if (kind == Access::constant) {
    if (element.writes.block != Touch::kNone || element.atomics.block != Touch::kNone) {
      fail(thread, pc, "read through the read-only cache of ", size, " bytes that the kernel writes");
    }
  }
  if (kind != Access::atomic) {
    check_race(thread, element.atomics, "an atomic operation", kind, size, pc);
  }
  if (kind == Access::write || kind == Access::atomic) {
    check_race(thread, element.reads, "a read", kind, size, pc);
  }
  if (kind == Access::write) {
    // Whatever is not ordered after the earlier reads is not ordered after this write either.
    element.reads.block = element.atomics.block = Touch::kNone;
    add(element.writes, thread, pc);
  } else {
    add(kind == Access::atomic ? element.atomics : element.reads, thread, pc);
  }
}

// ---- arrays

Array* find(uintptr_t at) {
  const auto holds = [&](const Array& a) { return a.begin <= at && at < a.end; };
  if (m.last && holds(*m.last)) return m.last;
  for (Array& array : m.shared) {
    if (holds(array)) return m.last = &array;
  }
  const auto next = std::upper_bound(m.arrays.begin(), m.arrays.end(), at,
                                     [](uintptr_t x, const Array& a) { return x < a.begin; });
  if (next != m.arrays.begin() && holds(next[-1])) return m.last = &next[-1];
  return nullptr;
}

// How far outside which array an address lies, for a report.
std::string beside(uintptr_t at) {
  const Array* nearest = nullptr;
  intptr_t distance = 0;
  const auto look = [&](const Array& a) {
    const intptr_t past = at >= a.end ? at - a.end : -static_cast<intptr_t>(a.begin - at);
    if (!nearest || std::abs(past) < std::abs(distance)) nearest = &a, distance = past;
  };
  for (const Array& a : m.arrays) look(a);
  for (const Array& a : m.shared) look(a);
  if (!nearest) return "";
  const bool is_shared = nearest >= m.shared.data() && nearest < m.shared.data() + m.shared.size();
  std::ostringstream text;
  text << " (" << std::abs(distance) << " bytes " << (distance < 0 ? "before" : "past") << " the "
       << (is_shared ? "shared memory" : "array") << " of " << nearest->end - nearest->begin << " bytes)";
  return text.str();
}

}  // namespace

Saved save() {
  Saved saved;
  for (const Array& a : m.arrays) {
    const char* bytes = reinterpret_cast<const char*>(a.begin);
    saved.bytes.emplace_back(bytes, bytes + (a.end - a.begin));
    saved.initialized.push_back(a.initialized);
  }
  return saved;
}

void restore(const Saved& saved) {
  for (size_t i = 0; i < m.arrays.size(); ++i) {
    std::memcpy(reinterpret_cast<char*>(m.arrays[i].begin), saved.bytes[i].data(), saved.bytes[i].size());
    m.arrays[i].initialized = saved.initialized[i];
  }
}

std::string difference(const Saved& a, const Saved& b) {
  for (size_t i = 0; i < a.bytes.size(); ++i) {
    if (a.bytes[i] == b.bytes[i]) continue;
    const auto [x, y] = std::mismatch(a.bytes[i].begin(), a.bytes[i].end(), b.bytes[i].begin());
    std::ostringstream text;
    text << "the result depends on the order in which threads run: element "
         << (x - a.bytes[i].begin()) / m.arrays[i].element << " of an array of " << a.bytes[i].size()
         << " bytes";
    return text.str();
  }
  return "";
}

void access(const void* address, size_t size, size_t alignment, Access kind, const void* pc) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  // threadIdx and the like, constant tables, the counters of line coverage; a thread's own variables
  if (!m.current || at - image.begin < image.bytes || at - m.current->stack < kStack) return;
  Inside inside;
  Thread& thread = *inside.thread;
  if (at - reinterpret_cast<uintptr_t>(m.stacks) < kMaxThreads * kStack) {
    fail(thread, pc, told(kind), " of ", size, " bytes in another thread's local variables");
  }
  if (at % alignment != 0) {
    fail(thread, pc, "misaligned ", told(kind), " of ", size, " bytes: the address is no multiple of ", alignment);
  }
  if (++thread.accesses > kSpinning) {
    fail(thread, pc, "endless loop, or waiting by spinning: ", kSpinning, " accesses without a barrier");
  }
  Array* array = find(at);
  if (!array) {
    fail(thread, pc, "out of bounds: ", told(kind), " of ", size, " bytes", beside(at));
  }
  if (at + size > array->end) {
    fail(thread, pc, "out of bounds: ", told(kind), " of ", size, " bytes, the last ", at + size - array->end,
         " of them past the end of its array");
  }
  const size_t first = (at - array->begin) / array->element;
  const size_t end = (at - array->begin + size - 1) / array->element + 1;
  for (size_t i = first; i < end; ++i) {
    touch(thread, *array, array->elements[i], kind, size, pc);
    if (kind == Access::write) {
      array->initialized[i] = true;
    } else if (!array->initialized[i]) {
      fail(thread, pc, "uninitialized memory: ", told(kind), " of ", size, " bytes");
    }
  }
}

void add_array(const void* data, size_t bytes, size_t element, bool initialized) {
  if (bytes == 0) return;
  uintptr_t begin = reinterpret_cast<uintptr_t>(data), end = begin + bytes;
  // Views of one tensor that overlap are one array.
  for (size_t i = 0; i < m.arrays.size();) {
    const Array& old = m.arrays[i];
    if (old.begin < end && begin < old.end) {
      begin = std::min(begin, old.begin);
      end = std::max(end, old.end);
      element = std::min(element, old.element);
      initialized = initialized || old.initialized[0];
      m.arrays.erase(m.arrays.begin() + i);
    } else {
      ++i;
    }
  }
  const auto next = std::upper_bound(m.arrays.begin(), m.arrays.end(), begin,
                                     [](uintptr_t x, const Array& a) { return x < a.begin; });
  m.arrays.emplace(next, begin, end - begin, element, initialized);
  m.last = nullptr;
}

bool host_access(const void* address, size_t bytes, Access kind) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  Array* array = bytes == 0 ? nullptr : find(at);
  std::ostringstream text;
  if (bytes > 0 && (!array || at + bytes > array->end)) {
    text << "out of bounds: the host's " << told(kind) << " of " << bytes << " bytes" << beside(at);
  }
  const size_t element = array ? array->element : 1;
  const size_t first = array ? (at - array->begin) / element : 0;
  for (size_t i = first; i * element < first * element + bytes && text.str().empty(); ++i) {
    if (kind == Access::write) {
      array->initialized[i] = true;
    } else if (!array->initialized[i]) {
      text << "uninitialized memory: the host's read of " << bytes << " bytes";
    }
  }
  m.report = text.str();
  m.failed = !m.report.empty();
  m.pc = m.earlier_pc = nullptr;
  return !m.failed;
}

void forget_arrays() {
  m.arrays.clear();
  m.last = nullptr;
}

}  // namespace simt
