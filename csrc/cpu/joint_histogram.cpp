// joint_histogram and binned_histogram on the CPU.
#include <atomic>
#include <mutex>
#include <vector>

#include "digitize.h"
#include "simd.h"

namespace modfast {

// Where the values of the next pairs lie, and their sizes.
struct Ahead {
  const char *x, *y;
  int64_t x_size, y_size;
};

struct PairKernels {
  int (*largest[2])(const void*, int64_t);  // by whether the codes are wide
  void (*cells[2][2])(const void*, const void*, int64_t, int, int, uint32_t*);
  void (*increment[2])(const uint32_t*, int64_t, uint32_t*, const Ahead&);
  void (*increment_halves)(const uint32_t*, int64_t, uint16_t*, uint32_t*, const Ahead&);
};

}  // namespace modfast

#define MODFAST_KERNELS "joint_histogram_kernels.h"
#include "for_each_level.h"

namespace modfast {
namespace {

constexpr const PairKernels* kTables[] = MODFAST_TABLES;

// Pairs that are counted at a time, and those that are not worth waking a thread for.
constexpr int64_t kPairBlock = kCodeBlock;
constexpr int64_t kPairGrain = 32768;
// Tables beyond this are shared instead of one for each thread.
constexpr int64_t kPrivateCells = int64_t{1} << 22;

// Adds pairs of codes to tables, several for small ones, and those to 64-bit counts.
class PairCounter {
 public:
  PairCounter(int bins_x, int bins_y)
      : kernels_(at_level(kTables)), bins_y_(bins_y), n_cells_(int64_t{bins_x} * bins_y) {
    // 8 tables of up to 1,024 cells, and 4 of up to 4,096, stay near the first-level cache.
    lanes_ = n_cells_ <= 1024 ? 8 : n_cells_ <= 4096 ? 4 : 1;
    if (lanes_ == 1) halves_.assign(n_cells_, 0);
    tables_.assign(n_cells_ * lanes_, 0);
  }

  // n <= kPairBlock
  void add(const void* x, bool wide_x, const void* y, bool wide_y, int64_t n,
           const Ahead& ahead) {
    alignas(64) uint32_t cells[kPairBlock];
    kernels_.cells[wide_x][wide_y](x, y, n, bins_y_, lanes_, cells);
    if (lanes_ == 1) {
      kernels_.increment_halves(cells, n, halves_.data(), tables_.data(), ahead);
    } else {
      kernels_.increment[lanes_ == 8](cells, n, tables_.data(), ahead);
    }
  }

  // Before any cell can have counted 2^32.
  void move_to(int64_t* counts) {
    for (int64_t i = 0; i < n_cells_ && lanes_ == 1; ++i) {
      counts[i] += (int64_t{tables_[i]} << 16) + halves_[i];
    }
    for (int64_t i = 0; i < n_cells_ * lanes_ && lanes_ > 1; ++i) counts[i / lanes_] += tables_[i];
    std::fill(tables_.begin(), tables_.end(), 0);
    std::fill(halves_.begin(), halves_.end(), 0);
  }

 private:
  const PairKernels& kernels_;
  int bins_y_;
  int64_t n_cells_;
  int lanes_;
  std::vector<uint32_t> tables_;  // of one table: carries out of halves_
  std::vector<uint16_t> halves_;
};

// Counts pairs [0, size): `add(counter, begin, end)` adds the pairs of a few blocks.
template <class Add>
void count_pairs(int64_t size, int64_t block, int bins_x, int bins_y, int64_t* counts,
                 const Add& add) {
  std::mutex mutex;
  const auto run = [&](int64_t first, int64_t last) {
    PairCounter counter(bins_x, bins_y);
    constexpr int64_t kUncollected = int64_t{1} << 31;
    int64_t uncollected = 0;
    for (int64_t b = first; b < last; ++b) {
      const int64_t end = std::min((b + 1) * block, size);
      if (uncollected + end - b * block > kUncollected) {
        const std::lock_guard<std::mutex> lock(mutex);
        counter.move_to(counts);
        uncollected = 0;
      }
      add(counter, b * block, end);
      uncollected += end - b * block;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    counter.move_to(counts);
  };
  const int64_t n_blocks = (size + block - 1) / block;
  const int64_t grain = std::max<int64_t>(1, kPairGrain / block);
  if (n_blocks <= grain || int64_t{bins_x} * bins_y > kPrivateCells) {
    run(0, n_blocks);
  } else {
    torch::stable::parallel_for(0, n_blocks, grain, run);
  }
}

const char* at(const Codes& codes, int64_t i) {
  return static_cast<const char*>(codes.data) + i * codes.width();
}

void count_aligned(const Codes& x, const Codes& y, int64_t* counts) {
  count_pairs(x.size(), kPairBlock, x.bins, y.bins, counts,
              [&](PairCounter& counter, int64_t begin, int64_t end) {
                counter.add(at(x, begin), x.wide, at(y, begin), y.wide, end - begin,
                            Ahead{at(x, end), at(y, end), x.width(), y.width()});
              });
}

// The sum over rows of the products of two histograms of the row.
void count_all(const Codes& x, const Codes& y, int64_t* counts) {
  std::mutex mutex;
  const int64_t n_cells = int64_t{x.bins} * y.bins;
  const auto run = [&](int64_t begin, int64_t end) {
    std::vector<int64_t> own(n_cells, 0), row_x(x.bins, 0), row_y(y.bins, 0);
    const auto add = [](const Codes& codes, int64_t i, std::vector<int64_t>& row) {
      std::fill(row.begin(), row.end(), 0);
      for (int64_t j = i * codes.d; j < (i + 1) * codes.d; ++j) {
        ++row[codes.wide ? static_cast<const int16_t*>(codes.data)[j]
                         : static_cast<const uint8_t*>(codes.data)[j]];
      }
    };
    for (int64_t i = begin; i < end; ++i) {
      add(x, i, row_x);
      add(y, i, row_y);
      for (int a = 0; a < x.bins; ++a) {
        if (row_x[a] == 0) continue;
        int64_t* to = &own[int64_t{a} * y.bins];
        for (int b = 0; b < y.bins; ++b) to[b] += row_x[a] * row_y[b];
      }
    }
    const std::lock_guard<std::mutex> lock(mutex);
    for (int64_t cell = 0; cell < n_cells; ++cell) counts[cell] += own[cell];
  };
  const int64_t grain = std::max<int64_t>(1, kPairGrain / std::max<int64_t>(1, x.d + y.d));
  if (x.n <= grain || n_cells > kPrivateCells) {
    run(0, x.n);
  } else {
    torch::stable::parallel_for(0, x.n, grain, run);
  }
}

void copy_column(const Codes& codes, int64_t column, void* out) {
  if (codes.wide) {
    const int16_t* from = static_cast<const int16_t*>(codes.data) + column;
    for (int64_t i = 0; i < codes.n; ++i) static_cast<int16_t*>(out)[i] = from[i * codes.d];
  } else {
    const uint8_t* from = static_cast<const uint8_t*>(codes.data) + column;
    for (int64_t i = 0; i < codes.n; ++i) static_cast<uint8_t*>(out)[i] = from[i * codes.d];
  }
}

void count_pairwise(const Codes& x, const Codes& y, int64_t* counts) {
  const int64_t n_cells = int64_t{x.bins} * y.bins;
  // Columns of y, one after the other.
  std::vector<char> columns(y.size() * y.width());
  torch::stable::parallel_for(0, y.d, std::max<int64_t>(1, kPairGrain / std::max<int64_t>(1, y.n)),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t j = begin; j < end; ++j) {
                                  copy_column(y, j, columns.data() + j * y.n * y.width());
                                }
                              });
  torch::stable::parallel_for(0, x.d, 1, [&](int64_t begin, int64_t end) {
    std::vector<char> column(x.n * x.width());
    PairCounter counter(x.bins, y.bins);
    for (int64_t i = begin; i < end; ++i) {
      copy_column(x, i, column.data());
      for (int64_t j = 0; j < y.d; ++j) {
        int64_t* to = counts + (i * y.d + j) * n_cells;
        const char* of_y = columns.data() + j * y.n * y.width();
        for (int64_t k = 0; k < x.n; k += kPairBlock) {
          const int64_t n = std::min(kPairBlock, x.n - k);
          const char* of_x = column.data() + k * x.width();
          counter.add(of_x, x.wide, of_y + k * y.width(), y.wide, n,
                      Ahead{of_x, of_y + k * y.width(), x.width(), y.width()});
          if ((k / kPairBlock + 1) % (int64_t{1} << 20) == 0) counter.move_to(to);
        }
        counter.move_to(to);
      }
    }
  });
}

Tensor joint_histogram(const Tensor& x_codes, const Tensor& y_codes, int64_t bins_x, int64_t bins_y,
                       const std::string& pairing) {
  constexpr const char* op = "joint_histogram";
  const Sides sides = read_sides(op, x_codes, y_codes, bins_x, bins_y);
  const auto& [x, y] = sides;
  check_codes(op, "x_codes", x);
  check_codes(op, "y_codes", y);
  const Pairing how = check_pairing(op, sides, pairing);
  Tensor counts = how == Pairing::pairwise
                      ? empty_beside(x_codes, {x.d, y.d, bins_x, bins_y}, aoti_torch_dtype_int64())
                      : empty_beside(x_codes, {bins_x, bins_y}, aoti_torch_dtype_int64());
  int64_t* out = static_cast<int64_t*>(counts.mutable_data_ptr());
  std::fill_n(out, counts.numel(), 0);
  switch (how) {
    case Pairing::aligned: count_aligned(x, y, out); break;
    case Pairing::all: count_all(x, y, out); break;
    case Pairing::pairwise: count_pairwise(x, y, out); break;
  }
  return counts;
}

std::tuple<Tensor, Tensor> binned_histogram(const Tensor& x, const Tensor& y, int64_t bins,
                                            const std::optional<Tensor>& range_x,
                                            const std::optional<Tensor>& range_y,
                                            const std::string& rule) {
  constexpr const char* op = "binned_histogram";
  const auto digitize_x = make_digitizer(op, "x", x, bins, range_x, false, rule);
  const auto digitize_y = make_digitizer(op, "y", y, bins, range_y, false, rule);
  const Matrix& values = digitize_x->values();
  check_same_shape(op, x, y, range_x, range_y);
  const int n_bins = static_cast<int>(bins);
  const bool wide = digitize_x->wide();
  Tensor counts = empty_beside(x, {bins, bins}, aoti_torch_dtype_int64());
  Tensor not_finite = empty_beside(x, {2}, aoti_torch_dtype_int64());
  int64_t* out = static_cast<int64_t*>(counts.mutable_data_ptr());
  int64_t* bad = static_cast<int64_t*>(not_finite.mutable_data_ptr());
  std::fill_n(out, bins * bins, 0);
  std::atomic<int64_t> bad_x{0}, bad_y{0};
  count_pairs(values.size(), kPairBlock, n_bins, n_bins, out,
              [&](PairCounter& counter, int64_t begin, int64_t end) {
                alignas(64) int16_t codes_x[kPairBlock], codes_y[kPairBlock];
                const int64_t more_x = digitize_x->codes(begin, end, codes_x, nullptr);
                const int64_t more_y = digitize_y->codes(begin, end, codes_y, nullptr);
                counter.add(codes_x, wide, codes_y, wide, end - begin,
                            Ahead{digitize_x->at(end), digitize_y->at(end), digitize_x->size(),
                                  digitize_y->size()});
                if (more_x > 0) bad_x += more_x;
                if (more_y > 0) bad_y += more_y;
              });
  bad[0] = bad_x;
  bad[1] = bad_y;
  return {counts, not_finite};
}

}  // namespace

void check_codes(const char* op, const char* name, const Codes& codes) {
  const auto largest = at_level(kTables).largest[codes.wide];
  std::atomic<int> most{0};
  torch::stable::parallel_for(0, codes.size(), 64 * kPairGrain, [&](int64_t begin, int64_t end) {
    const int own = largest(at(codes, begin), end - begin);
    int seen = most;
    while (own > seen && !most.compare_exchange_weak(seen, own)) {
    }
  });
  const int found = most;
  MODFAST_CHECK(found < codes.bins, op, name, " must lie in [0, ", codes.bins, "), got ",
                codes.wide ? static_cast<int16_t>(found) : found);
}

STABLE_TORCH_LIBRARY_IMPL(modfast, CPU, m) {
  m.impl("joint_histogram", TORCH_BOX(&joint_histogram));
  m.impl("binned_histogram", TORCH_BOX(&binned_histogram));
}

}  // namespace modfast
