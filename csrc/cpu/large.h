// Memory for large results that a training loop makes at every step, and for work on them.
#pragma once

#include "../abi.h"

namespace modfast {

// An uninitialized CPU tensor like `like`, of `bytes` bytes.
//
// The C library often returns large blocks to the system when they are freed, and the next step pays
// for fresh, zeroed pages: for a 64 MB gradient 3 times the time of computing it. These blocks lie in
// huge pages and are kept for the next call, up to kKeptBytes of them.
Tensor large_like(const Tensor& like, int64_t bytes);

// Memory for the time of a call, from the same kept blocks.
class Scratch {
 public:
  explicit Scratch(int64_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  int64_t bytes_;
  void* data_;
};

constexpr int64_t kLargeBytes = int64_t{1} << 20;
constexpr int64_t kKeptBytes = int64_t{256} << 20;

}  // namespace modfast
