// digitize and digitize_edges on the CPU.
#include "digitize.h"

#include <cmath>
#include <limits>
#include <mutex>
#include <vector>

#include "../notebook_edges.h"
#include "digitize_tables.h"
#include "simd.h"

#define MODFAST_KERNELS "digitize_kernels.h"
#include "for_each_level.h"

namespace modfast {
namespace {

constexpr const DigitizeTables* kTables[] = MODFAST_TABLES;

// Values that are not worth waking a thread for.
constexpr int64_t kGrain = 32768;
// Up to this many edges, to compare with all of them is faster than to search.
constexpr int kFewEdges = 128;
// Values of short rows that are compared at a time.
constexpr int64_t kShortRow = 256;

template <class C>
const DigitizeKernels<C>& kernels_for() {
  const DigitizeTables& tables = at_level(kTables);
  if constexpr (std::is_same_v<C, float>) {
    return tables.singles;
  } else {
    return tables.doubles;
  }
}

// f(first value, end) on ranges of whole blocks, in parallel.
template <class F>
void for_each_block(int64_t size, int64_t block, const F& f) {
  const int64_t n_blocks = (size + block - 1) / block;
  const auto run = [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) f(b * block, std::min((b + 1) * block, size));
  };
  const int64_t grain = std::max<int64_t>(1, kGrain / block);
  if (n_blocks <= grain) {
    run(0, n_blocks);
  } else {
    torch::stable::parallel_for(0, n_blocks, grain, run);
  }
}

// n values from i, in `buffer` if they must be widened.
template <class C>
const C* numbers(const Matrix& x, Dtype dtype, int64_t i, int64_t n, C* buffer) {
  if constexpr (std::is_same_v<C, double>) {
    return static_cast<const double*>(x.data) + i;
  } else {
    if (dtype == Dtype::float32) return static_cast<const float*>(x.data) + i;
    const DigitizeTables& tables = at_level(kTables);
    const auto widen = dtype == Dtype::bfloat16 ? tables.widen_bfloat16 : tables.widen_float16;
    widen(static_cast<const uint16_t*>(x.data) + i, n, buffer);
    return buffer;
  }
}

// C: the type to compute with.
template <class C>
class DigitizerOf : public Digitizer {
 public:
  DigitizerOf(const char* op, const Tensor& x, const Values& values, int bins,
              const std::optional<Tensor>& range, bool per_column, bool notebook)
      : Digitizer(values, bins, notebook, range ? range->size(0) > 1 : per_column),
        dtype_(values.dtype) {
    const int64_t n_ranges = read_range(op, x, values, range, per_column);
    range_ = empty_beside(x, {n_ranges, 2}, values.compute_code());
    C* limits = static_cast<C*>(range_.mutable_data_ptr());
    if (is_wider(range, values)) {
      const double* wide = static_cast<const double*>(range->data_ptr());
      std::copy_n(wide, 2 * n_ranges, limits);
      set_rules(n_ranges, limits, wide);
      return;
    }
    if (range) {
      std::copy_n(static_cast<const C*>(range->data_ptr()), 2 * n_ranges, limits);
    } else {
      find_limits(n_ranges, limits);
    }
    set_rules(n_ranges, limits, nullptr);
  }

  int64_t codes(int64_t begin, int64_t end, void* out, int64_t* not_finite) const override {
    int64_t total = 0;
    alignas(64) C buffer[kCodeBlock];
    for (int64_t i = begin; i < end;) {
      const int64_t n = std::min(end - i, run_length(i));
      const C* x = numbers(i, n, buffer);
      const int64_t done = i - begin;
      const int64_t bad = wide() ? run(x, i, n, static_cast<int16_t*>(out) + done)
                                 : run(x, i, n, static_cast<uint8_t*>(out) + done);
      total += bad;
      for (int64_t j = 0; bad > 0 && not_finite != nullptr && j < n; ++j) {
        if (!is_number(x[j])) ++not_finite[(i + j) % values_.d];
      }
      i += n;
    }
    return total;
  }

  int64_t size() const override {
    return dtype_ == Dtype::float64 ? 8 : dtype_ == Dtype::float32 ? 4 : 2;
  }

 private:
  static bool is_number(C x) { return x - x == 0; }

  // Values from i that a kernel takes at a time: the rules of each are at i % period.
  int64_t run_length(int64_t i) const {
    return per_column_ ? std::min(kCodeBlock, period() - i % period()) : kCodeBlock;
  }
  int64_t period() const { return static_cast<int64_t>(lo_.size()); }

  const C* numbers(int64_t i, int64_t n, C* buffer) const {
    return modfast::numbers(values_, dtype_, i, n, buffer);
  }

  void find_limits(int64_t n_ranges, C* limits) {
    constexpr C inf = std::numeric_limits<C>::infinity();
    const DigitizeKernels<C>& kernels = kernels_for<C>();
    // Short rows are read several at a time.
    const int64_t width = per_column_ ? block_ : 1;
    std::vector<C> lowest(width, inf), highest(width, -inf);
    std::mutex mutex;
    const int64_t n_blocks = (values_.size() + block_ - 1) / block_;
    torch::stable::parallel_for(
        0, n_blocks, std::max<int64_t>(1, kGrain / block_), [&](int64_t first, int64_t last) {
          std::vector<C> lo(width, inf), hi(width, -inf);
          alignas(64) C buffer[kCodeBlock];
          const int64_t end = std::min(last * block_, values_.size());
          for (int64_t i = first * block_; i < end;) {
            const int64_t at = per_column_ ? i % block_ : 0;
            const int64_t n = std::min({end - i, kCodeBlock, per_column_ ? block_ - at : end - i});
            const C* x = numbers(i, n, buffer);
            per_column_ ? kernels.extend_each(x, n, &lo[at], &hi[at])
                        : kernels.extend(x, n, &lo[0], &hi[0]);
            i += n;
          }
          const std::lock_guard<std::mutex> lock(mutex);
          for (int64_t i = 0; i < width; ++i) {
            lowest[i] = std::min(lowest[i], lo[i]);
            highest[i] = std::max(highest[i], hi[i]);
          }
        });
    for (int64_t r = 0; r < n_ranges; ++r) {
      C lo = inf, hi = -inf;
      for (int64_t i = r; i < width; i += n_ranges) {
        lo = std::min(lo, lowest[i]);
        hi = std::max(hi, highest[i]);
      }
      limits[2 * r] = lo <= hi ? lo : 0;  // nothing finite: 0
      limits[2 * r + 1] = lo <= hi ? hi : 0;
    }
  }

  // `wide`: the limits in double, where the edges are to be made of these.
  void set_rules(int64_t n_ranges, const C* limits, const double* wide) {
    const double epsilon = dtype_ == Dtype::bfloat16 ? 0x1p-7 : dtype_ == Dtype::float16 ? 0x1p-10 : 0;
    direct_ = !notebook_;
    rules_.reserve(n_ranges);
    for (int64_t r = 0; r < n_ranges; ++r) {
      UniformBins<C> rule = UniformBins<C>::of(limits[2 * r], limits[2 * r + 1], bins_);
      const C largest = std::max(std::fabs(rule.lo), std::fabs(rule.hi));
      // As in UniformBins, of edges that are rounded to 16 bits.
      if (wide != nullptr) rule.direct = rule.direct && largest * 16 * epsilon <= rule.width;
      rules_.push_back(rule);
      direct_ = direct_ && rule.direct;
    }
    const int64_t entries = per_column_ ? block_ : 1;
    for (int64_t i = 0; i < entries && n_ranges > 0; ++i) {
      const int64_t r = i % n_ranges;
      lo_.push_back(rules_[r].lo);
      hi_.push_back(rules_[r].hi);
      width_.push_back(rules_[r].width);
      scale_.push_back(rules_[r].scale);
      if (wide == nullptr) continue;
      start_.push_back(wide[2 * r]);
      step_.push_back(bin_width(wide[2 * r], wide[2 * r + 1], bins_));
    }
    if (direct_) return;
    tabled_ = notebook_ || wide != nullptr;
    if (wide != nullptr) {
      const std::vector<float> made = wide_thresholds(wide, n_ranges, bins_, dtype_);
      thresholds_.assign(made.begin(), made.end());
    } else if (notebook_) {
      thresholds_ = notebook_thresholds(limits, n_ranges, bins_);
    }
    if (tabled_) return look_up(n_ranges, wide != nullptr);
    for (int64_t r = 0; r < n_ranges; ++r) {
      const UniformBins<C>& rule = rules_[r];
      for (int i = 1; i < bins_; ++i) {
        thresholds_.push_back(bin_edge(rule.lo, rule.hi, rule.width, bins_, i));
      }
    }
  }

  void look_up(int64_t n_ranges, bool wide) {
    // Edges made in double may be equal: what lies below the first is not raised to it.
    for (int64_t r = 0; r < n_ranges && wide; ++r) {
      rules_[r].lo = thresholds_[r * bins_] = -std::numeric_limits<C>::infinity();
      rules_[r].hi = thresholds_[r * bins_ + bins_ - 1];
    }
    if (n_ranges == 1 && !per_column_ && !wide) {
      table_rule_ = NotebookBins<C>::of(rules_[0].lo, rules_[0].hi, bins_);
      direct_ = table_rule_.direct(thresholds_.data(), bins_);
    }
  }

  template <class Code>
  int64_t run(const C* x, int64_t i, int64_t n, Code* out) const {
    if (!direct_) return search(x, i, n, out);
    const DigitizeKernels<C>& kernels = kernels_for<C>();
    const int64_t at = per_column_ ? i % period() : 0;
    if constexpr (sizeof(C) == 4) {
      if (!start_.empty()) {
        const DigitizeTables& all = at_level(kTables);
        const WideKernels& wide = dtype_ == Dtype::bfloat16  ? all.wide_bfloat16
                                  : dtype_ == Dtype::float16 ? all.wide_float16
                                                             : all.wide_singles;
        const WideRules rules{&lo_[at],    &hi_[at],   &scale_[at],
                              &start_[at], &step_[at], per_column_};
        if constexpr (sizeof(Code) == 1) {
          return wide.bytes(x, n, rules, bins_, out);
        } else {
          return wide.wide(x, n, rules, bins_, out);
        }
      }
    }
    if constexpr (sizeof(Code) == 1) {
      if (tabled_) return kernels.notebook_bytes(x, n, table_rule_, &thresholds_[0], bins_, out);
      return per_column_ ? kernels.uniform_each_bytes(x, n, &lo_[at], &hi_[at], &width_[at],
                                                      &scale_[at], bins_, out)
                         : kernels.uniform_bytes(x, n, rules_[0], bins_, out);
    } else {
      if (tabled_) return kernels.notebook_wide(x, n, table_rule_, &thresholds_[0], bins_, out);
      return per_column_ ? kernels.uniform_each_wide(x, n, &lo_[at], &hi_[at], &width_[at],
                                                     &scale_[at], bins_, out)
                         : kernels.uniform_wide(x, n, rules_[0], bins_, out);
    }
  }

  template <class Code>
  int64_t search(const C* x, int64_t i, int64_t n, Code* out) const {
    const int n_thresholds = tabled_ ? bins_ : bins_ - 1;
    int64_t bad = 0;
    for (int64_t j = 0; j < n; ++j) {
      const int64_t r = per_column_ ? (i + j) % values_.d : 0;
      const UniformBins<C>& rule = rules_[r];
      const C value = std::min(std::max(x[j], rule.lo), rule.hi);
      int code = count_thresholds(&thresholds_[r * n_thresholds], n_thresholds, value);
      if (tabled_) {
        code = notebook_code(code, bins_);
      } else if (rule.lo == rule.hi) {
        code = 0;
      }
      out[j] = static_cast<Code>(is_number(x[j]) ? code : 0);
      bad += !is_number(x[j]);
    }
    return bad;
  }

  Dtype dtype_;
  bool tabled_ = false;  // by thresholds that are in memory
  bool direct_;  // codes by multiplication; else by search among thresholds
  std::vector<UniformBins<C>> rules_;
  NotebookBins<C> table_rule_{};
  std::vector<C> lo_, hi_, width_, scale_;  // the rules of each value of a block
  std::vector<C> thresholds_;
  std::vector<double> start_, step_;  // of edges made in double
};

std::tuple<Tensor, Tensor, Tensor> digitize(const Tensor& x, int64_t bins,
                                            const std::optional<Tensor>& range, bool per_column,
                                            const std::string& rule) {
  constexpr const char* op = "digitize";
  const auto digitizer = make_digitizer(op, "x", x, bins, range, per_column, rule);
  const Matrix& values = digitizer->values();
  const int64_t width = digitizer->wide() ? 2 : 1;
  Tensor codes = empty_beside(x, {values.n, values.d}, code_dtype(width == 2));
  Tensor not_finite = empty_beside(x, {values.d}, aoti_torch_dtype_int64());
  char* out = static_cast<char*>(codes.mutable_data_ptr());
  int64_t* bad = static_cast<int64_t*>(not_finite.mutable_data_ptr());
  std::fill_n(bad, values.d, 0);
  std::mutex mutex;
  for_each_block(values.size(), digitizer->block(), [&](int64_t begin, int64_t end) {
    if (digitizer->codes(begin, end, out + begin * width, nullptr) == 0) return;
    const std::lock_guard<std::mutex> lock(mutex);
    digitizer->codes(begin, end, out + begin * width, bad);
  });
  return {codes, digitizer->range(), not_finite};
}

template <class C, class Code>
void search_edges(const Values& x, const Tensor& edges, Code* out) {
  const C* first = static_cast<const C*>(edges.data_ptr());
  const int n_edges = static_cast<int>(edges.size(1));
  const int64_t stride = edges.size(0) > 1 ? n_edges : 0;
  const bool few = n_edges <= kFewEdges;
  // Values at a time, of whole rows where columns have their own edges; and these, edge by edge.
  const int64_t d = std::max<int64_t>(x.d, 1);
  const int64_t run = stride == 0 ? kCodeBlock : d >= kShortRow ? d : kShortRow / d * d;
  std::vector<C> apart;
  for (int k = 0; k < n_edges && few && stride != 0; ++k) {
    for (int64_t i = 0; i < run; ++i) apart.push_back(first[i % d * stride + k]);
  }
  const auto& kernels = kernels_for<C>();
  for_each_block(x.size(), run, [&](int64_t begin, int64_t end) {
    std::vector<C> buffer(run);
    const C* values = numbers(x, x.dtype, begin, end - begin, buffer.data());
    if (few) {
      const C* e = stride == 0 ? first : apart.data();
      const int64_t apart_by = stride == 0 ? 0 : run;
      if constexpr (sizeof(Code) == 1) {
        kernels.below_bytes(values, end - begin, e, n_edges, apart_by, out + begin);
      } else {
        kernels.below_wide(values, end - begin, e, n_edges, apart_by, out + begin);
      }
      return;
    }
    for (int64_t i = begin; i < end; ++i) {
      out[i] = static_cast<Code>(
          count_thresholds(first + i % d * stride, n_edges, values[i - begin]));
    }
  });
}

Tensor digitize_edges(const Tensor& x, const Tensor& edges) {
  constexpr const char* op = "digitize_edges";
  const Values values = read_values(op, "x", x);
  const bool wide = read_edges(op, x, values, edges);
  Tensor codes = empty_beside(x, {values.n, values.d}, code_dtype(wide));
  const auto write = [&](auto* out) {
    values.is_double() ? search_edges<double>(values, edges, out)
                       : search_edges<float>(values, edges, out);
  };
  wide ? write(static_cast<int16_t*>(codes.mutable_data_ptr()))
       : write(static_cast<uint8_t*>(codes.mutable_data_ptr()));
  return codes;
}

}  // namespace

std::unique_ptr<Digitizer> make_digitizer(const char* op, const char* name, const Tensor& x,
                                          int64_t bins, const std::optional<Tensor>& range,
                                          bool per_column, const std::string& rule) {
  const Values values = read_values(op, name, x);
  const int n_bins = read_bins(op, "bins", bins);
  const bool notebook = read_notebook(op, rule);
  if (values.is_double()) {
    return std::make_unique<DigitizerOf<double>>(op, x, values, n_bins, range, per_column,
                                                 notebook);
  }
  return std::make_unique<DigitizerOf<float>>(op, x, values, n_bins, range, per_column,
                                              notebook);
}

STABLE_TORCH_LIBRARY_IMPL(modfast, CPU, m) {
  m.impl("digitize", TORCH_BOX(&digitize));
  m.impl("digitize_edges", TORCH_BOX(&digitize_edges));
}

}  // namespace modfast
