// Checks that always say which argument is wrong, and how.
#pragma once

#include <sstream>
#include <stdexcept>

namespace modfast {

template <class... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << "modfast::" << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace modfast

// The message's parts are only put together on failure.
#define MODFAST_CHECK(condition, op, ...)        \
  do {                                           \
    if (!(condition)) [[unlikely]] {             \
      ::modfast::fail(op, __VA_ARGS__);          \
    }                                            \
  } while (false)
