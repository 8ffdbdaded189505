// pairwise_information and permuted_information on the CPU.
#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "../math/information.h"
#include "digitize.h"
#include "pair_counts.h"

namespace modfast {
namespace {

// Counts up to this are looked up; larger ones take a logarithm each.
constexpr int64_t kMaxLogs = int64_t{1} << 17;
constexpr int64_t kGrain = 65536;
// Tables with more cells are not held: the pairs are sorted.
constexpr int64_t kMaxCells = int64_t{1} << 22;

// n log n for tables of `total` samples.
class Logs {
 public:
  explicit Logs(int64_t total) : total_(total), shift_(log_shift(total)) {
    static std::mutex mutex;
    static std::map<int, std::shared_ptr<const std::vector<int64_t>>> kept;  // by shift
    const std::lock_guard<std::mutex> lock(mutex);
    auto& table = kept[shift_];
    const int64_t size = std::min(total, kMaxLogs) + 1;
    if (!table || static_cast<int64_t>(table->size()) < size) {
      auto longer = std::make_shared<std::vector<int64_t>>(size);
      for (int64_t n = 0; n < size; ++n) (*longer)[n] = n_log_n(n, shift_);
      table = std::move(longer);
    }
    table_ = table;
    all_ = (*this)(total);
    unit_ = std::ldexp(1.0, -shift_);
  }

  int64_t operator()(int64_t n) const {
    return n < static_cast<int64_t>(table_->size()) ? (*table_)[n] : n_log_n(n, shift_);
  }

  const int64_t* table() const { return table_->data(); }
  bool complete() const { return static_cast<int64_t>(table_->size()) > total_; }
  double information(int64_t cells, int64_t rows, int64_t cols) const {
    return modfast::information(cells, rows, cols, all_, unit_, total_);
  }

 private:
  int64_t total_;
  int shift_;
  std::shared_ptr<const std::vector<int64_t>> table_;
  int64_t all_;
  double unit_;
};

// A column's counts, their sum of n log n, and what its bins say of bias.
struct Marginal {
  int64_t logs = 0;
  int64_t n_filled = 0;
  double n_relevant = 0.0;
};

Marginal marginal_of(const int64_t* counts, int bins, const Logs& log, Correction correction) {
  Marginal m;
  std::vector<int64_t> filled;
  for (int a = 0; a < bins; ++a) {
    m.logs += log(counts[a]);
    if (counts[a] > 0) filled.push_back(counts[a]);
  }
  m.n_filled = static_cast<int64_t>(filled.size());
  if (correction == Correction::panzeri_treves) {
    m.n_relevant = relevant_bins(filled.data(), static_cast<int>(filled.size()), bins);
  }
  return m;
}

void add_column(const Codes& codes, int64_t column, std::vector<int64_t>& counts) {
  counts.assign(codes.bins, 0);
  for (int64_t i = 0; i < codes.n; ++i) {
    const int64_t at = i * codes.d + column;
    ++counts[codes.wide ? static_cast<const int16_t*>(codes.data)[at]
                        : static_cast<const uint8_t*>(codes.data)[at]];
  }
}

std::vector<Marginal> marginals(const Codes& codes, const Logs& log, Correction correction) {
  std::vector<Marginal> result(codes.d);
  torch::stable::parallel_for(0, codes.d, std::max<int64_t>(1, kGrain / codes.n),
                              [&](int64_t begin, int64_t end) {
                                std::vector<int64_t> counts;
                                for (int64_t j = begin; j < end; ++j) {
                                  add_column(codes, j, counts);
                                  result[j] = marginal_of(counts.data(), codes.bins, log, correction);
                                }
                              });
  return result;
}

// Bias from the filled cells of a table, given one value of y after the other.
class Bias {
 public:
  Bias(Correction correction, int bins_x, int64_t total)
      : correction_(correction), bins_x_(bins_x), total_(total) {}

  void start() {
    n_cells_ = 0;
    given_ = 0.0;
  }
  void add(int64_t n) {
    if (n > 0) filled_.push_back(n);
  }
  void end_of_y() {
    if (filled_.empty()) return;
    n_cells_ += static_cast<int64_t>(filled_.size());
    if (correction_ == Correction::panzeri_treves) {
      given_ += relevant_bins(filled_.data(), static_cast<int>(filled_.size()), bins_x_) - 1.0;
    }
    filled_.clear();
  }
  double value(const Marginal& x, const Marginal& y) const {
    if (correction_ == Correction::miller_madow) {
      return miller_madow(n_cells_, x.n_filled, y.n_filled, total_);
    }
    return (given_ - (x.n_relevant - 1.0)) / (2.0 * static_cast<double>(total_));
  }

 private:
  Correction correction_;
  int bins_x_;
  int64_t total_, n_cells_ = 0;
  double given_ = 0.0;
  std::vector<int64_t> filled_;
};

// What is asked of the pairs of two sides.
struct Task {
  const Codes& x;
  const Codes& y;
  Correction correction;
  const Logs& log;
  std::vector<Marginal>& of_x;
  std::vector<Marginal>& of_y;
  double* information;  // [dx, dy]
  double* bias;         // [dx, dy], if a correction is asked for
};

// Takes the counts of one column of `lists` with a chunk of those of the other side; `swapped` says
// that `lists` is y.
void emit(const Task& task, bool swapped, const PairCounts& found) {
  const Codes& lists = swapped ? task.y : task.x;
  const Codes& rows = swapped ? task.x : task.y;
  const auto cell = [&](int a, int b, int j) {
    return found.counts[a * found.row_bits + b * found.n_cols + j];
  };
  int64_t sums[kMaxRowBits];
  if (task.log.complete()) {
    pair_count_kernels().sum_logs(found.counts, lists.bins, rows.bins, found.n_cols,
                                  task.log.table(), sums);
  } else {
    for (int j = 0; j < found.n_cols; ++j) {
      sums[j] = 0;
      for (int a = 0; a < lists.bins; ++a) {
        for (int b = 0; b < rows.bins; ++b) sums[j] += task.log(cell(a, b, j));
      }
    }
  }
  Bias bias(task.correction, task.x.bins, task.x.n);
  for (int j = 0; j < found.n_cols; ++j) {
    const int64_t i_x = swapped ? found.b + j : found.a, i_y = swapped ? found.a : found.b + j;
    const Marginal &x = task.of_x[i_x], &y = task.of_y[i_y];
    task.information[i_x * task.y.d + i_y] = task.log.information(sums[j], x.logs, y.logs);
    if (task.correction == Correction::none) continue;
    bias.start();
    for (int b = 0; b < task.y.bins; ++b) {
      for (int a = 0; a < task.x.bins; ++a) bias.add(swapped ? cell(b, a, j) : cell(a, b, j));
      bias.end_of_y();
    }
    task.bias[i_x * task.y.d + i_y] = bias.value(x, y);
  }
}

int64_t code_at(const Codes& codes, int64_t i) {
  return codes.wide ? static_cast<const int16_t*>(codes.data)[i]
                    : static_cast<const uint8_t*>(codes.data)[i];
}

// Pair by pair, with a table of one pair or, where that is too large, by sorting.
void by_pairs(const Task& task, const int64_t* order) {
  const int64_t n = task.x.n, bins_x = task.x.bins;
  const int64_t n_cells = bins_x * task.y.bins;
  const bool sorted = n_cells > kMaxCells;
  torch::stable::parallel_for(0, task.x.d, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> table(sorted ? 0 : n_cells, 0);
    std::vector<uint32_t> of_x(n), cells(n);  // y's code times bins_x plus x's
    Bias bias(task.correction, task.x.bins, n);
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t k = 0; k < n; ++k) {
        of_x[k] = static_cast<uint32_t>(code_at(task.x, k * task.x.d + i));
      }
      for (int64_t j = 0; j < task.y.d; ++j) {
        for (int64_t k = 0; k < n; ++k) {
          const int64_t row = order ? order[k] : k;
          cells[k] = static_cast<uint32_t>(code_at(task.y, row * task.y.d + j) * bins_x + of_x[k]);
        }
        int64_t sum = 0;
        bias.start();
        if (sorted) {
          std::sort(cells.begin(), cells.end());
          for (int64_t k = 0, next; k < n; k = next) {
            for (next = k + 1; next < n && cells[next] == cells[k];) ++next;
            sum += task.log(next - k);
            bias.add(next - k);
            if (next == n || cells[next] / bins_x != cells[k] / bins_x) bias.end_of_y();
          }
        } else {
          for (const uint32_t cell : cells) ++table[cell];
          if (task.correction == Correction::none && n < n_cells) {
            for (const uint32_t cell : cells) {
              sum += table[cell] > 0 ? task.log(table[cell]) : 0;
              table[cell] = 0;
            }
          } else {
            for (int64_t cell = 0; cell < n_cells; ++cell) {
              sum += table[cell] > 0 ? task.log(table[cell]) : 0;
              if (task.correction == Correction::none) continue;
              bias.add(table[cell]);
              if ((cell + 1) % bins_x == 0) bias.end_of_y();
            }
            std::fill(table.begin(), table.end(), 0);
          }
        }
        const int64_t at = i * task.y.d + j;
        task.information[at] = task.log.information(sum, task.of_x[i].logs, task.of_y[j].logs);
        if (task.correction != Correction::none) {
          task.bias[at] = bias.value(task.of_x[i], task.of_y[j]);
        }
      }
    }
  });
}

// Counts all pairs by rows of bits, of y or, swapped, of x.
void by_bits(const Task& task, bool swapped, const int64_t* order, BitRows& rows, uint8_t* columns) {
  const Codes& lists = swapped ? task.y : task.x;
  transpose(lists, order, columns);
  rows.count(
      columns, lists.d, lists.bins,
      [&](bool listed, int64_t column, const int64_t* counts) {
        const bool is_y = listed == swapped;
        (is_y ? task.of_y : task.of_x)[column] =
            marginal_of(counts, is_y ? task.y.bins : task.x.bins, task.log, task.correction);
      },
      [&](const PairCounts& found) { emit(task, swapped, found); });
}

// Cycles of a sample, roughly, as measured, with `lists` as the side that is listed. Without
// three-operand logic and masks the adders take longer.
double cost(const Codes& lists, const Codes& rows) {
  const int64_t row_bits = pair_count_kernels().row_bits;
  if (lists.wide || rows.wide || rows.bins > row_bits) return 1e300;
  const double chunk = static_cast<double>(row_bits / rows.bins);
  const double n_chunks = std::ceil(static_cast<double>(rows.d) / chunk);
  const double cells = static_cast<double>(lists.bins) * rows.bins / static_cast<double>(lists.n);
  const double l = static_cast<double>(lists.d), r = static_cast<double>(rows.d);
  const double slow = row_bits == kMaxRowBits ? 1.0 : row_bits == 256 ? 1.7 : 3.0;
  return l * (4.0 + 2.0 * slow * n_chunks) + 4.0 * r + 2.0 * slow * cells * l * r;
}

double cost_by_pairs(const Codes& x, const Codes& y) {
  return 6.0 * static_cast<double>(x.d) * static_cast<double>(y.d);
}

Sides read_checked_sides(const char* op, const Tensor& x_codes, const Tensor& y_codes,
                         int64_t bins_x, int64_t bins_y) {
  const Sides sides = read_sides(op, x_codes, y_codes, bins_x, bins_y);
  check_total(op, sides);
  check_codes(op, "x_codes", sides.x);
  check_codes(op, "y_codes", sides.y);
  return sides;
}

std::tuple<Tensor, Tensor> pairwise_information(const Tensor& x_codes, const Tensor& y_codes,
                                                int64_t bins_x, int64_t bins_y,
                                                const std::optional<std::string>& correction) {
  constexpr const char* op = "pairwise_information";
  const Sides sides = read_checked_sides(op, x_codes, y_codes, bins_x, bins_y);
  const auto& [x, y] = sides;
  const Correction how = read_correction(op, correction);
  Tensor information = empty_beside(x_codes, {x.d, y.d}, aoti_torch_dtype_float64());
  Tensor bias = empty_beside(x_codes, {x.d, y.d}, aoti_torch_dtype_float64());
  double* out = static_cast<double*>(information.mutable_data_ptr());
  double* bias_out = static_cast<double*>(bias.mutable_data_ptr());
  std::fill_n(bias_out, x.d * y.d, 0.0);
  if (x.n == 0) {
    std::fill_n(out, x.d * y.d, 0.0);
    return {information, bias};
  }
  const Logs log(x.n);
  std::vector<Marginal> of_x(x.d), of_y(y.d);
  const Task task{x, y, how, log, of_x, of_y, out, bias_out};
  const double straight = cost(x, y), swapped = cost(y, x);
  if (cost_by_pairs(x, y) < std::min(straight, swapped)) {
    of_x = marginals(x, log, how);
    of_y = marginals(y, log, how);
    by_pairs(task, nullptr);
  } else {
    const bool swap = swapped < straight;
    BitRows rows(swap ? x : y);
    Scratch columns((swap ? y : x).size());
    by_bits(task, swap, nullptr, rows, columns.as<uint8_t>());
  }
  return {information, bias};
}

std::tuple<Tensor, Tensor, Tensor> permuted_information(const Tensor& x_codes,
                                                        const Tensor& y_codes, int64_t bins_x,
                                                        int64_t bins_y, const Tensor& permutations,
                                                        const Tensor& observed) {
  constexpr const char* op = "permuted_information";
  const Sides sides = read_checked_sides(op, x_codes, y_codes, bins_x, bins_y);
  const auto& [x, y] = sides;
  check_nulls(op, sides, x_codes, permutations, observed);
  const int64_t* orders = static_cast<const int64_t*>(permutations.data_ptr());
  for (int64_t i = 0; i < permutations.numel(); ++i) {
    MODFAST_CHECK(orders[i] >= 0 && orders[i] < x.n, op, "permutations must lie in [0, ", x.n,
                  "), got ", orders[i]);
  }
  const double* least = static_cast<const double*>(observed.data_ptr());
  const int64_t n_pairs = x.d * y.d, n_orders = permutations.size(0);
  Tensor at_least = empty_beside(x_codes, {x.d, y.d}, aoti_torch_dtype_int64());
  Tensor mean = empty_beside(x_codes, {x.d, y.d}, aoti_torch_dtype_float64());
  Tensor m2 = empty_beside(x_codes, {x.d, y.d}, aoti_torch_dtype_float64());
  int64_t* reached = static_cast<int64_t*>(at_least.mutable_data_ptr());
  double* means = static_cast<double*>(mean.mutable_data_ptr());
  double* squares = static_cast<double*>(m2.mutable_data_ptr());
  std::fill_n(reached, n_pairs, 0);
  std::fill_n(means, n_pairs, 0.0);
  std::fill_n(squares, n_pairs, 0.0);
  if (n_pairs == 0) return {at_least, mean, m2};
  if (x.n == 0) {  // every null is 0
    for (int64_t i = 0; i < n_pairs; ++i) reached[i] = 0.0 >= least[i] - kInformationRounding ? n_orders : 0;
    return {at_least, mean, m2};
  }
  const Logs log(x.n);
  std::vector<Marginal> of_x = marginals(x, log, Correction::none);
  std::vector<Marginal> of_y = marginals(y, log, Correction::none);
  std::vector<double> nulls(n_pairs);
  const Task task{x, y, Correction::none, log, of_x, of_y, nulls.data(), nullptr};
  const bool bits = cost(y, x) <= cost_by_pairs(x, y);
  // x's rows of bits stay; y's lists change with each order.
  std::unique_ptr<BitRows> rows = bits ? std::make_unique<BitRows>(x) : nullptr;
  Scratch columns(y.size());
  for (int64_t p = 0; p < n_orders; ++p) {
    const int64_t* order = orders + p * x.n;
    if (bits) {
      by_bits(task, true, order, *rows, columns.as<uint8_t>());
    } else {
      by_pairs(task, order);
    }
    for (int64_t i = 0; i < n_pairs; ++i) {
      reached[i] += nulls[i] >= least[i] - kInformationRounding;
      const double off = nulls[i] - means[i];
      means[i] += off / static_cast<double>(p + 1);
      squares[i] += off * (nulls[i] - means[i]);
    }
  }
  return {at_least, mean, m2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(modfast, CPU, m) {
  m.impl("pairwise_information", TORCH_BOX(&pairwise_information));
  m.impl("permuted_information", TORCH_BOX(&permuted_information));
}

}  // namespace modfast
