// Values to codes, block by block: what digitize and binned_histogram share.
#pragma once

#include <algorithm>
#include <memory>

#include "../codes.h"

namespace modfast {

// Values at a time: numbers and codes of a block stay in the first-level cache.
constexpr int64_t kCodeBlock = 2048;

// Digitizes one tensor. Its ranges are found, or read, on construction.
class Digitizer {
 public:
  virtual ~Digitizer() = default;

  // Codes of the values [begin, end), as bytes or, if wide, 16-bit numbers. `begin` and `end` are
  // multiples of block() or the end of all. Returns how many values are NaN or infinite, and adds
  // those of each column to `not_finite` [d], unless it is null.
  virtual int64_t codes(int64_t begin, int64_t end, void* out, int64_t* not_finite) const = 0;

  // Where value i is stored, and the bytes of each.
  const char* at(int64_t i) const { return static_cast<const char*>(values_.data) + i * size(); }
  virtual int64_t size() const = 0;

  const Matrix& values() const { return values_; }
  const Tensor& range() const { return range_; }
  bool wide() const { return bins_ > kMaxByteBins; }
  // Whole rows, or any values where all columns have one range.
  int64_t block() const { return block_; }

 protected:
  Digitizer(const Matrix& values, int bins, bool notebook, bool per_column)
      : values_(values), bins_(bins), notebook_(notebook), per_column_(per_column && values.d > 1) {
    const int64_t d = std::max<int64_t>(values.d, 1);
    if (per_column_) block_ = d >= kCodeBlock ? d : kCodeBlock / d * d;
  }

  Matrix values_;
  int bins_;
  bool notebook_, per_column_;
  int64_t block_ = kCodeBlock;
  Tensor range_;
};

// `per_column` says which ranges to find where none is given.
std::unique_ptr<Digitizer> make_digitizer(const char* op, const char* name, const Tensor& x,
                                          int64_t bins, const std::optional<Tensor>& range,
                                          bool per_column, const std::string& rule);

// Refuses codes out of range.
void check_codes(const char* op, const char* name, const Codes& codes);

}  // namespace modfast
