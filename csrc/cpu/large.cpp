#include "large.h"

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace modfast {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

class Blocks {
 public:
  void* take(int64_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (auto block = kept_.begin(); block != kept_.end(); ++block) {
        if (block->bytes == bytes) {
          void* data = block->data;
          kept_bytes_ -= bytes;
          kept_.erase(block);
          return data;
        }
      }
    }
    void* data = std::aligned_alloc(kHugePage, bytes);
    if (data == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    madvise(data, bytes, MADV_HUGEPAGE);  // a wish: refused where huge pages are off
#endif
    return data;
  }

  void give(void* data, int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_.push_back(Block{data, bytes});
    kept_bytes_ += bytes;
    while (kept_bytes_ > kKeptBytes) {
      std::free(kept_.front().data);
      kept_bytes_ -= kept_.front().bytes;
      kept_.pop_front();
    }
  }

 private:
  struct Block {
    void* data;
    int64_t bytes;
  };

  std::mutex mutex_;
  std::deque<Block> kept_;  // oldest first
  int64_t kept_bytes_ = 0;
};

Blocks& blocks() {
  // Never destroyed: tensors may outlive every static object.
  static Blocks* const instance = new Blocks();
  return *instance;
}

int64_t whole_pages(int64_t bytes) {
  return std::max(int64_t{1}, (bytes + kHugePage - 1) / kHugePage) * kHugePage;
}

}  // namespace

Scratch::Scratch(int64_t bytes) : bytes_(whole_pages(bytes)), data_(blocks().take(bytes_)) {}

Scratch::~Scratch() { blocks().give(data_, bytes_); }

Tensor large_like(const Tensor& like, int64_t bytes) {
  const int64_t rounded = whole_pages(bytes);
  void* data = blocks().take(rounded);
  return torch::stable::from_blob(data, like.sizes(), like.strides(), like.device(),
                                  like.scalar_type(),
                                  [rounded](void* block) { blocks().give(block, rounded); });
}

}  // namespace modfast
