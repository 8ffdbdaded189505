// Arguments of the operators on binned data, read from tensors and checked.
#pragma once

#include <optional>
#include <string>

#include "abi.h"

namespace modfast {

constexpr int64_t kMaxBins = 32767;
constexpr int64_t kMaxByteBins = 256;

// Values or codes [n, d], row-major.
struct Matrix {
  const void* data;
  int64_t n, d;

  int64_t size() const { return n * d; }
};

inline Matrix read_matrix(const char* op, const char* name, const Tensor& x) {
  MODFAST_CHECK(x.dim() == 2 && x.is_contiguous(), op, name, " must be a contiguous matrix");
  return Matrix{x.data_ptr(), x.size(0), x.size(1)};
}

inline int read_bins(const char* op, const char* name, int64_t bins) {
  MODFAST_CHECK(bins >= 2 && bins <= kMaxBins, op, name, " must be 2 to ", kMaxBins, ", got ", bins);
  return static_cast<int>(bins);
}

// uint8 codes, or int16 if wide.
struct Codes : Matrix {
  int bins;
  bool wide;

  int64_t width() const { return wide ? 2 : 1; }
};

inline Codes read_codes(const char* op, const char* name, const Tensor& codes, int64_t bins) {
  Codes c{};
  static_cast<Matrix&>(c) = read_matrix(op, name, codes);
  c.bins = read_bins(op, "bins", bins);
  c.wide = codes.scalar_type() == ScalarType::Short;
  MODFAST_CHECK(c.wide || codes.scalar_type() == ScalarType::Byte, op, name,
                " must be uint8 or int16, got ", torch::headeronly::toString(codes.scalar_type()));
  MODFAST_CHECK(c.wide || bins <= kMaxByteBins, op, name, " of uint8 hold ", kMaxByteBins,
                " bins, got ", bins);
  return c;
}

inline void check_same_rows(const char* op, const Tensor& x, const Tensor& y) {
  MODFAST_CHECK(x.size(0) == y.size(0) && same_device(x, y), op,
                "x and y must have as many rows on one device, got ", x.size(0), " and ", y.size(0));
}

// Values to digitize.
struct Values : Matrix {
  Dtype dtype;

  bool is_double() const { return dtype == Dtype::float64; }
  // The type of ranges and edges.
  ScalarType compute() const { return is_double() ? ScalarType::Double : ScalarType::Float; }
  int32_t compute_code() const {
    return is_double() ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
  }
};

inline Values read_values(const char* op, const char* name, const Tensor& x) {
  Values v{};
  static_cast<Matrix&>(v) = read_matrix(op, name, x);
  v.dtype = float_dtype(x, op, name, 0);
  return v;
}

inline int32_t code_dtype(bool wide) {
  return wide ? aoti_torch_dtype_int16() : aoti_torch_dtype_uint8();
}

// How many ranges `range` has, or will have where it is to be found.
inline int64_t read_range(const char* op, const Tensor& x, const Values& values,
                          const std::optional<Tensor>& range, bool per_column) {
  if (!range) return per_column ? values.d : 1;
  MODFAST_CHECK(range->dim() == 2 && range->size(1) == 2 && range->is_contiguous() &&
                    same_device(*range, x) && (range->size(0) == 1 || range->size(0) == values.d),
                op, "range must be a contiguous [1 or ", values.d, ", 2]");
  MODFAST_CHECK(range->scalar_type() == values.compute() || range->scalar_type() == ScalarType::Double,
                op, "range must be ", torch::headeronly::toString(values.compute()), " or Double");
  return range->size(0);
}

// Whether edges are made in double and rounded to the values' type.
inline bool is_wider(const std::optional<Tensor>& range, const Values& values) {
  return range && !values.is_double() && range->scalar_type() == ScalarType::Double;
}

// Whether the codes between edges are wide.
inline bool read_edges(const char* op, const Tensor& x, const Values& values, const Tensor& edges) {
  read_matrix(op, "edges", edges);
  MODFAST_CHECK(same_device(edges, x) && (edges.size(0) == 1 || edges.size(0) == values.d), op,
                "edges must be [1 or ", values.d, ", m], got ", edges.size(0), " rows");
  MODFAST_CHECK(edges.scalar_type() == values.compute(), op,
                "edges must be float32, or float64 for a float64 x");
  return read_bins(op, "edges + 1", edges.size(1) + 1) > kMaxByteBins;
}

inline void check_same_shape(const char* op, const Tensor& x, const Tensor& y,
                             const std::optional<Tensor>& range_x,
                             const std::optional<Tensor>& range_y) {
  const auto is_one = [](const std::optional<Tensor>& range) {
    return !range || range->size(0) == 1;
  };
  MODFAST_CHECK(x.size(0) == y.size(0) && x.size(1) == y.size(1) && same_device(x, y) &&
                    is_one(range_x) && is_one(range_y),
                op, "x and y must have one shape on one device, and each one range");
}

// Codes of both sides of pairs.
struct Sides {
  Codes x, y;
};

inline Sides read_sides(const char* op, const Tensor& x_codes, const Tensor& y_codes, int64_t bins_x,
                        int64_t bins_y) {
  const Sides sides{read_codes(op, "x_codes", x_codes, bins_x),
                    read_codes(op, "y_codes", y_codes, bins_y)};
  check_same_rows(op, x_codes, y_codes);
  return sides;
}

// What information is taken of: tables with fewer than 2^31 samples.
inline void check_total(const char* op, const Sides& sides) {
  MODFAST_CHECK(sides.x.n < int64_t{1} << 31, op, "x_codes must have fewer than 2^31 rows, got ",
                sides.x.n);
}

// Two values of information of the same counts differ by rounding less than this.
constexpr double kInformationRounding = 1e-12;

inline void check_nulls(const char* op, const Sides& sides, const Tensor& x_codes,
                        const Tensor& permutations, const Tensor& observed) {
  const auto [x, y] = sides;
  MODFAST_CHECK(permutations.scalar_type() == ScalarType::Long && permutations.dim() == 2 &&
                    permutations.is_contiguous() && permutations.size(1) == x.n &&
                    same_device(permutations, x_codes),
                op, "permutations must be contiguous int64 [p, ", x.n, "]");
  MODFAST_CHECK(observed.scalar_type() == ScalarType::Double && observed.dim() == 2 &&
                    observed.is_contiguous() && observed.size(0) == x.d &&
                    observed.size(1) == y.d && same_device(observed, x_codes),
                op, "observed must be contiguous float64 [", x.d, ", ", y.d, "]");
}

// The rules of digitize.
inline bool read_notebook(const char* op, const std::string& rule) {
  MODFAST_CHECK(rule == "uniform" || rule == "notebook", op,
                "rule must be uniform or notebook, got ", rule);
  return rule == "notebook";
}

enum class Pairing { aligned, all, pairwise };

inline Pairing read_pairing(const char* op, const std::string& pairing) {
  if (pairing == "aligned") return Pairing::aligned;
  if (pairing == "all") return Pairing::all;
  MODFAST_CHECK(pairing == "pairwise", op, "pairing must be aligned, all or pairwise, got ", pairing);
  return Pairing::pairwise;
}

inline Pairing check_pairing(const char* op, const Sides& sides, const std::string& pairing) {
  const Pairing how = read_pairing(op, pairing);
  MODFAST_CHECK(how != Pairing::aligned || sides.x.d == sides.y.d, op,
                "aligned codes must have as many columns, got ", sides.x.d, " and ", sides.y.d);
  return how;
}

enum class Correction { none, miller_madow, panzeri_treves };

inline Correction read_correction(const char* op, const std::optional<std::string>& correction) {
  if (!correction) return Correction::none;
  if (*correction == "miller-madow") return Correction::miller_madow;
  MODFAST_CHECK(*correction == "panzeri-treves", op,
                "correction must be miller-madow or panzeri-treves, got ", *correction);
  return Correction::panzeri_treves;
}

}  // namespace modfast
