// wiring_sums on the CPU: rows first, then columns by blocks of inputs.
#include "wiring_sums.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include "../abi.h"
#include "../math/number.h"
#include "parallel.h"
#include "simd.h"

#define MODFAST_KERNELS "wiring_sums_kernels.h"
#include "for_each_level.h"

namespace modfast {
namespace {

constexpr const WiringKernels* kTables[] = MODFAST_TABLES;
constexpr const char* kOp = "wiring_sums";
// Multiplications that are not worth waking a thread for: they take some 50 µs.
constexpr int64_t kGrain = int64_t{1} << 18;
// A logarithm or exponential in multiplications.
constexpr int64_t kLog = 4;
// Of the right factor's numbers at a time: they stay in the second-level cache, 512 KB.
constexpr int64_t kRight = int64_t{1} << 16;

int64_t blocks_of(int64_t n, int64_t block) { return (n + block - 1) / block; }
int64_t padded(int64_t n) { return blocks_of(n, kPad) * kPad; }

const double* doubles(const Tensor& t, const char* name, int64_t n) {
  MODFAST_CHECK(t.scalar_type() == ScalarType::Double && t.is_cpu() && t.is_contiguous() && t.numel() == n,
                kOp, name, " must be contiguous float64 of ", n, " numbers, got ", t.numel());
  return static_cast<const double*>(t.data_ptr());
}

// A layer, see modfast/reference.py. Names: g, o, a for a group, output and input, t for a tap, c and k
// for kinds of in- and out-positions.
class WiringSums {
 public:
  WiringSums(const Tensor& weight, const std::optional<Tensor>& scale, const Tensor& sources,
             const Tensor& n_in, const Tensor& n_out, const std::string& norm) {
    MODFAST_CHECK(weight.is_cpu() && weight.dim() == 4 && weight.is_contiguous(), kOp,
                  "weight must be contiguous [groups, outputs, inputs, taps], got ", weight.dim(),
                  " dimensions");
    groups_ = weight.size(0);
    outputs_ = weight.size(1);
    inputs_ = weight.size(2);
    taps_ = weight.size(3);
    dtype_ = static_cast<int>(float_dtype(weight, kOp, "weight", 0));
    weight_ = static_cast<const char*>(weight.data_ptr());
    element_ = static_cast<int64_t>(weight.element_size());
    scale_ = scale ? doubles(*scale, "scale", groups_ * outputs_) : nullptr;
    n_sources_ = n_in.numel();
    n_kinds_ = n_out.numel();
    n_in_ = doubles(n_in, "n_in", n_sources_);
    n_out_ = doubles(n_out, "n_out", n_kinds_);
    MODFAST_CHECK(sources.scalar_type() == ScalarType::Long && sources.is_cpu() && sources.is_contiguous() &&
                      sources.numel() == taps_ * n_kinds_,
                  kOp, "sources must be contiguous int64 [", taps_, ", ", n_kinds_, "]");
    sources_ = static_cast<const int64_t*>(sources.data_ptr());
    for (int64_t i = 0; i < taps_ * n_kinds_; ++i) {
      MODFAST_CHECK(sources_[i] >= 0 && sources_[i] <= n_sources_, kOp, "sources must be from 0 to ",
                    n_sources_, ", got ", sources_[i]);
    }
    const bool softmax = norm == "softmax", sigmoid = norm == "sigmoid";
    MODFAST_CHECK(softmax || sigmoid || norm == "linear", kOp,
                  "norm must be linear, softmax or sigmoid, got ", norm);
    norm_ = static_cast<int>(softmax ? WiringNorm::softmax : sigmoid ? WiringNorm::sigmoid : WiringNorm::linear);
    absent_ = softmax ? 1.0 : sigmoid ? 0.5 : 0.0;
  }

  void compute(double blocks, double ins, double outs, double* sums) {
    sum_connections();
    const double entropy = sum_rows(blocks, outs);
    multiply();
    if (absent_ > 0.0) add_absent(blocks, ins);
    double total = 0.0, log_total = 0.0;
    for (int64_t i = 0; i < groups_ * outputs_; ++i) {
      for (int64_t k = 0; k < n_kinds_; ++k) {
        const double column = ins * columns_[i * n_kinds_ + k];
        total += n_out_[k] * column;
        if (column > 0.0) log_total += n_out_[k] * column * std::log(column);
      }
    }
    sums[0] = blocks * ins * entropy;
    sums[1] = blocks * outs * total;
    sums[2] = blocks * outs * log_total;
  }

 private:
  // Rows of a group's weights from input a on.
  WiringRows rows(int64_t g, int64_t o, int64_t n_rows, int64_t first, int64_t n_cols) const {
    const int64_t stride = inputs_ * taps_;
    return WiringRows{weight_ + ((g * outputs_ + o) * stride + first) * element_, n_rows, n_cols, stride,
                      scale_ == nullptr ? nullptr : scale_ + g * outputs_ + o};
  }

  // Sums over a group's outputs for each of its inputs and taps.
  void sum_connections() {
    const int64_t n_cols = inputs_ * taps_, n_segments = blocks_of(n_cols, kSegment);
    stride_ = padded(n_cols);
    totals_.assign(groups_ * stride_, 0.0);
    terms_.assign(groups_ * stride_, 0.0);
    const auto sum = at_level(kTables).sum[norm_][dtype_];
    const int64_t cost = kLog * outputs_ * std::min(n_cols, kSegment);
    for_ranges(groups_ * n_segments, cost, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t g = i / n_segments, first = i % n_segments * kSegment, at = g * stride_ + first;
        sum(rows(g, 0, outputs_, first, std::min(kSegment, n_cols - first)), totals_.data() + at,
            terms_.data() + at);
      }
    });
  }

  // The reciprocal sums of all rows, and the sum of their entropies.
  double sum_rows(double blocks, double outs) {
    std::vector<double> n_absent(n_sources_);
    std::vector<std::vector<int64_t>> taps(n_sources_);
    double n_out = 0.0;
    for (int64_t k = 0; k < n_kinds_; ++k) n_out += n_out_[k];
    for (int64_t t = 0; t < taps_; ++t) {
      for (int64_t k = 0; k < n_kinds_; ++k) {
        const int64_t c = sources_[t * n_kinds_ + k];
        if (c < n_sources_ && (taps[c].empty() || taps[c].back() != t)) taps[c].push_back(t);
      }
    }
    const double width = outs * static_cast<double>(outputs_);
    for (int64_t c = 0; c < n_sources_; ++c) {
      n_absent[c] = width * (blocks * static_cast<double>(groups_) * n_out - static_cast<double>(taps[c].size()));
    }
    reciprocals_.resize(groups_ * inputs_ * n_sources_);
    std::vector<double> entropies(groups_ * inputs_);
    for_ranges(groups_ * inputs_, n_sources_ * (taps_ + kLog), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t at = i / inputs_ * stride_ + i % inputs_ * taps_;
        for (int64_t c = 0; c < n_sources_; ++c) {
          double total = 0.0, terms = 0.0;
          for (const int64_t t : taps[c]) {
            total += totals_[at + t];
            terms += terms_[at + t];
          }
          total = outs * total + absent_ * n_absent[c];
          terms = outs * terms;
          if (absent_ > 0.0) terms += absent_ * std::log(absent_) * n_absent[c];
          // A row may be all zeros. It stays so, and has no entropy.
          const bool nothing = total == 0.0;
          reciprocals_[i * n_sources_ + c] = nothing ? 0.0 : 1.0 / total;
          entropies[i] += nothing ? 0.0 : n_in_[c] * (std::log(total) - terms / total);
        }
      }
    });
    double entropy = 0.0;
    for (const double each : entropies) entropy += each;
    return entropy;
  }

  // The columns' connections, each times the reciprocal sum of its row.
  void multiply() {
    columns_.assign(groups_ * outputs_ * n_kinds_, 0.0);
    const auto kernel = at_level(kTables).multiply[norm_][dtype_];
    const int64_t of_input = std::max<int64_t>(1, taps_ * n_kinds_);
    const int64_t n_inputs = std::clamp<int64_t>(kRight / of_input, 1, std::max<int64_t>(1, inputs_));
    const int64_t stride = padded(n_inputs * taps_), n_tiles = blocks_of(outputs_, kMostRows);
    const int64_t cost = kMostRows * inputs_ * (of_input + kLog * taps_);
    for_ranges(groups_ * n_tiles, cost, kGrain, [&](int64_t begin, int64_t end) {
      std::vector<double> right(stride * n_kinds_);
      // All tiles of a group that are in the range at once: they share the right factor.
      for (int64_t i = begin, after; i < end; i = after) {
        const int64_t g = i / n_tiles;
        after = std::min(end, (g + 1) * n_tiles);
        for (int64_t a = 0; a < inputs_; a += n_inputs) {
          const int64_t n = std::min(n_inputs, inputs_ - a);
          for (int64_t k = 0; k < n_kinds_; ++k) gather(g, a, n, k, right.data() + k * stride, stride);
          for (int64_t tile = i; tile < after; ++tile) {
            const int64_t o = tile % n_tiles * kMostRows;
            kernel(rows(g, o, std::min(kMostRows, outputs_ - o), a * taps_, n * taps_), right.data(), stride,
                   n_kinds_, columns_.data() + (g * outputs_ + o) * n_kinds_);
          }
        }
      }
    });
  }

  // The reciprocal sums of the rows that an out-position of kind k is connected to.
  void gather(int64_t g, int64_t a, int64_t n, int64_t k, double* to, int64_t stride) const {
    const double* from = reciprocals_.data() + (g * inputs_ + a) * n_sources_;
    double* const end = to + stride;
    for (int64_t i = 0; i < n; ++i, from += n_sources_) {
      for (int64_t t = 0; t < taps_; ++t) {
        const int64_t c = sources_[t * n_kinds_ + k];
        *to++ = c < n_sources_ ? from[c] : 0.0;
      }
    }
    std::fill(to, end, 0.0);
  }

  // The in-units that a column is not connected to, in its group and in all others.
  void add_absent(double blocks, double ins) {
    std::vector<double> unreached(n_kinds_ * n_sources_), own(n_sources_);
    for (int64_t k = 0; k < n_kinds_; ++k) {
      double* of_kind = unreached.data() + k * n_sources_;
      std::copy(n_in_, n_in_ + n_sources_, of_kind);
      for (int64_t t = 0; t < taps_; ++t) {
        const int64_t c = sources_[t * n_kinds_ + k];
        if (c < n_sources_) of_kind[c] -= 1.0;
      }
    }
    std::vector<double> of_groups(groups_ * n_sources_), wholes(groups_);
    double whole = 0.0;
    for (int64_t g = 0; g < groups_; ++g) {
      double* sums = of_groups.data() + g * n_sources_;
      const double* from = reciprocals_.data() + g * inputs_ * n_sources_;
      for (int64_t i = 0; i < inputs_ * n_sources_; ++i) sums[i % n_sources_] += from[i];
      for (int64_t c = 0; c < n_sources_; ++c) wholes[g] += sums[c] * n_in_[c];
      whole += wholes[g];
    }
    for (int64_t g = 0; g < groups_; ++g) {
      for (int64_t k = 0; k < n_kinds_; ++k) {
        double sum = blocks * whole - wholes[g];
        for (int64_t c = 0; c < n_sources_; ++c) {
          sum += of_groups[g * n_sources_ + c] * unreached[k * n_sources_ + c];
        }
        for (int64_t o = 0; o < outputs_; ++o) {
          columns_[(g * outputs_ + o) * n_kinds_ + k] += absent_ * sum;
        }
      }
    }
  }

  int64_t groups_, outputs_, inputs_, taps_, n_sources_, n_kinds_, element_, stride_ = 0;
  int dtype_, norm_;
  const char* weight_;
  const double *scale_, *n_in_, *n_out_;
  const int64_t* sources_;
  double absent_;
  std::vector<double> totals_, terms_, reciprocals_, columns_;
};

Tensor wiring_sums(const Tensor& weight, std::optional<Tensor> scale, const Tensor& sources,
                   const Tensor& n_in, const Tensor& n_out, std::string norm, int64_t blocks, int64_t ins,
                   int64_t outs) {
  WiringSums layer(weight, scale, sources, n_in, n_out, norm);
  Tensor sums = empty_beside(weight, {3}, aoti_torch_dtype_float64());
  layer.compute(static_cast<double>(blocks), static_cast<double>(ins), static_cast<double>(outs),
                static_cast<double*>(sums.data_ptr()));
  return sums;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(modfast, CPU, m) { m.impl("wiring_sums", TORCH_BOX(&wiring_sums)); }

}  // namespace modfast
