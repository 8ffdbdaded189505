// Codes as columns, and counts of pairs of them.
#include "pair_tiles.h"

namespace modfast {
namespace {

// Samples that are worth a block.
constexpr int64_t kSplit = 4096;

void transpose(const char* op, const Codes& codes, const int64_t* order, bool wide, int64_t stride,
               const Tensor& to, cudaStream_t stream) {
  const int64_t tiles = stride / kColumnPad * ((codes.d + 31) / 32);
  void* out = to.mutable_data_ptr();
  if (codes.wide) {
    launch(op, &to_columns<uint16_t, uint16_t>, tiles, stream,
           static_cast<const uint16_t*>(codes.data), order, codes.n, codes.d, stride, codes.bins,
           static_cast<uint16_t*>(out));
  } else if (wide) {
    launch(op, &to_columns<uint8_t, uint16_t>, tiles, stream,
           static_cast<const uint8_t*>(codes.data), order, codes.n, codes.d, stride, codes.bins,
           static_cast<uint16_t*>(out));
  } else {
    launch(op, &to_columns<uint8_t, uint8_t>, tiles, stream, static_cast<const uint8_t*>(codes.data),
           order, codes.n, codes.d, stride, codes.bins, static_cast<uint8_t*>(out));
  }
}

int up_to(int64_t n) {
  int power = 1;
  while (power < n && power < 16) power *= 2;
  return power;
}

}  // namespace

SideColumns make_columns(const char* op, const Tensor& beside, const Sides& sides,
                         cudaStream_t stream) {
  const int64_t stride = (sides.x.n + kColumnPad - 1) / kColumnPad * kColumnPad;
  const bool wide = sides.x.wide || sides.y.wide;
  const Tensor x = empty_beside(beside, {sides.x.d, stride}, code_dtype(wide));
  const Tensor y = empty_beside(beside, {sides.y.d, stride}, code_dtype(wide));
  transpose(op, sides.x, nullptr, wide, stride, x, stream);
  transpose(op, sides.y, nullptr, wide, stride, y, stream);
  return {x, y, sides, stride};
}

void set_y(const char* op, const SideColumns& columns, const int64_t* order, cudaStream_t stream) {
  transpose(op, columns.sides.y, order, columns.wide(), columns.stride, columns.y, stream);
}

TileCut cut_tiles(const char* op, const Sides& sides) {
  const int64_t most = tile_bytes(op);
  TileCut cut{up_to(sides.x.d), up_to(sides.y.d), 0};
  const int64_t cells = int64_t{sides.x.bins} * sides.y.bins;
  const int64_t table = cells * static_cast<int64_t>(sizeof(uint32_t));
  // Two blocks a multiprocessor.
  while (cut.pairs() > 1 && cut.pairs() * table > most / 2) {
    int& longer = cut.pairs_x > cut.pairs_y ? cut.pairs_x : cut.pairs_y;
    longer /= 2;
  }
  const int64_t column = int64_t{sides.x.bins} * static_cast<int64_t>(sizeof(uint32_t));
  MODFAST_CHECK(column <= most, op, "bins_x must be at most ",
                most / static_cast<int64_t>(sizeof(uint32_t)), " on this device, got ", sides.x.bins);
  cut.cells = static_cast<int>(table <= most ? cells : most / column * sides.x.bins);
  return cut;
}

int64_t n_splits(const char* op, const TileCut& cut, const Sides& sides) {
  const int64_t wanted = 4 * multiprocessors(op) / std::max<int64_t>(1, n_tiles(cut, sides));
  return std::clamp<int64_t>(std::min(wanted, sides.x.n / kSplit), 1, 1 << 16);
}

void count_pairs(const char* op, const SideColumns& columns, unsigned long long* counts,
                 cudaStream_t stream) {
  const TileCut cut = cut_tiles(op, columns.sides);
  const int64_t splits = n_splits(op, cut, columns.sides);
  with_columns(columns, [&](auto code) {
    using Code = decltype(code);
    launch(op, &count_tiles<Code>, Blocks(n_tiles(cut, columns.sides) * splits, shared_bytes(cut)),
           stream, columns.x_as<Code>(), columns.y_as<Code>(), cut, splits, counts);
  });
}

}  // namespace modfast
