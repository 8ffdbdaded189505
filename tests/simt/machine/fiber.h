// A stack to run on, and switching between two of them.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)

// Saves what a call must preserve, and goes on where `to` was saved. ucontext would ask the kernel
// for the signal mask each time, which costs twelve times as much.
extern "C" void simt_switch(void** from, void* to);
namespace simt {

class Fiber {
 public:
  // `main` must not return.
  void start(char* stack, size_t size, void (*main)()) {
    void** top = reinterpret_cast<void**>(stack + size);
    *--top = nullptr;  // where a return address would be, so that the stack is aligned as in a call
    *--top = reinterpret_cast<void*>(main);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    top_ = top;
  }
  void switch_to(Fiber& other) { simt_switch(&top_, other.top_); }

 private:
  void* top_ = nullptr;
};

}  // namespace simt

#else

#include <ucontext.h>

namespace simt {

class Fiber {
 public:
  void start(char* stack, size_t size, void (*main)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = size;
    context_.uc_link = nullptr;
    makecontext(&context_, main, 0);
  }
  void switch_to(Fiber& other) { swapcontext(&context_, &other.context_); }

 private:
  ucontext_t context_;
};

}  // namespace simt

#endif
