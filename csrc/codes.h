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

enum class Correction { none, miller_madow, panzeri_treves };

inline Correction read_correction(const char* op, const std::optional<std::string>& correction) {
  if (!correction) return Correction::none;
  if (*correction == "miller-madow") return Correction::miller_madow;
  MODFAST_CHECK(*correction == "panzeri-treves", op,
                "correction must be miller-madow or panzeri-treves, got ", *correction);
  return Correction::panzeri_treves;
}

}  // namespace modfast
