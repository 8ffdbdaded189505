// Codes as columns, and counts of pairs of them: what joint_histogram and pairwise_information share.
#pragma once

#include <algorithm>

#include "../codes.h"
#include "device.h"
#include "pair_tiles.cuh"

namespace modfast {

// Both sides as columns of one type, uint8_t or, if wide, uint16_t.
struct SideColumns {
  Tensor x, y;
  Sides sides;
  int64_t stride;

  bool wide() const { return sides.x.wide || sides.y.wide; }

  template <class Code>
  Columns<Code> x_as() const {
    return {static_cast<const Code*>(x.data_ptr()), sides.x.n, sides.x.d, stride, sides.x.bins};
  }
  template <class Code>
  Columns<Code> y_as() const {
    return {static_cast<const Code*>(y.data_ptr()), sides.y.n, sides.y.d, stride, sides.y.bins};
  }
};

SideColumns make_columns(const char* op, const Tensor& beside, const Sides& sides,
                         cudaStream_t stream);
// Replaces the columns of y by its rows in another order, an array of n indices on the device.
void set_y(const char* op, const SideColumns& columns, const int64_t* order, cudaStream_t stream);

// f(Code{}) for the columns' type.
template <class F>
void with_columns(const SideColumns& columns, const F& f) {
  if (columns.wide()) {
    f(uint16_t{});
  } else {
    f(uint8_t{});
  }
}

// Dynamic shared memory that a tile may have, beside what the kernels have in static.
inline int64_t tile_bytes(const char* op) { return most_shared(op) - (8 << 10); }

// Tiles for whole tables or, where these are too large, chunks of whole values of y.
TileCut cut_tiles(const char* op, const Sides& sides);

inline int64_t n_tiles(const TileCut& cut, const Sides& sides) {
  return (sides.x.d + cut.pairs_x - 1) / cut.pairs_x *
         ((sides.y.d + cut.pairs_y - 1) / cut.pairs_y);
}
inline int64_t shared_bytes(const TileCut& cut) {
  return int64_t{cut.pairs()} * cut.cells * static_cast<int64_t>(sizeof(uint32_t));
}

// Among how many blocks each tile's samples must be shared to keep the device busy.
int64_t n_splits(const char* op, const TileCut& cut, const Sides& sides);

// Adds to counts [dx, dy, bins_x, bins_y].
void count_pairs(const char* op, const SideColumns& columns, unsigned long long* counts,
                 cudaStream_t stream);

}  // namespace modfast
