// Greedy pruning where the unit is a class, so that its logit moves all losses; compiled per SIMD level.
// Include after pruning_layers_kernels.h.

// By itself, so that its constants take no registers from the loop over factors.
__attribute__((noinline)) Lanes<double> log_of_product(Lanes<double> product) { return log_up<double>(product); }

// The losses of a tile, if the unit is a class: to the tile's sums, from softplus(x) = log(1 + e^x) for n
// vectors x_of(i). A sum of logarithms is that of a product, and a factor is kept less 1, so that it keeps its
// digits: (1 + a) (1 + b) - 1 = a + b + a b.
template <class T, class F>
MODFAST_LANE void sum_class(Pruning<T>& p, int64_t tile, int64_t n, const F& x_of) {
  // From `far` on softplus(x) is x. The product of 4 such factors is still a T; of 16 in each of `products`,
  // it is below 2^924.
  constexpr T lowest = Numbers<T>::lowest, far = sizeof(T) == sizeof(float) ? 20 : 40;
  Lanes<double> sums[2] = {load_lanes(p.constants.data() + tile * kSumLanes)}, all = splat(1.0);
  for (int64_t i = 0; i < n;) {
    Lanes<double> products[2] = {splat(1.0), splat(1.0)};
    for (const int64_t end = n - i < 16 ? n : i + 16; i < end;) {
      Lanes<T> product{};
      for (const int64_t last = end - i < 4 ? end : i + 4; i < last; ++i) {
        const Lanes<T> x = x_of(i);
        if (bits_above<T>(x, splat(far)) != 0) add_wide<T>(sums, larger(x - far, Lanes<T>{}));
        const Lanes<T> e = exp_near<T>(smaller(larger(x, splat(lowest)), splat(far)));
        product += e + product * e;
      }
      const Wide<T> wide = widen(product);
      for (int k = 0; k < Wide<T>::n; ++k) products[k] += products[k] * wide.part[k];
    }
    if (bits_above<double>(all, splat(0x1p99)) != 0) {
      sums[0] += log_of_product(all);
      all = splat(1.0);
    }
    all *= products[0] * products[1];
  }
  sums[0] += log_of_product(all);
  store_sums(p, tile, sums);
}

// Of a class as unit: the loss is softplus(t - o) + o - z_target, with o the log-sum-exp of the others'
// logits z; softplus(o - t) if it is the target.
template <class T>
MODFAST_LANE void open_class(Pruning<T>& p, int64_t row, int64_t tile) {
  constexpr int64_t n_lanes = kLanes<T>;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const int64_t n_classes = p.layers[0].n_out;
  Lanes<double> constants[2] = {};
  for_each_block(p, tile, [&](int64_t b) {
    const Mask<T> targets = targets_of(p, b), is_target = is_class<T>(targets, row);
    const T* logits = p.layers[0].values.data() + b * n_classes * n_lanes;
    const auto z = [&](int64_t c) { return load_lanes(logits + c * n_lanes); };
    Lanes<T> largest = splat(-infinity), total{}, own{};
    for (int64_t c = 0; c < n_classes; ++c) largest = c == row ? largest : larger(largest, z(c));
    for (int64_t c = 0; c < n_classes; ++c) {
      if (c == row) continue;
      const Lanes<T> d = z(c) - largest;
      total += exp_down<T>(d);
      own = is_class<T>(targets, c) ? d : own;
    }
    const Lanes<T> above = n_classes == 1 ? Lanes<T>{} : log_up<T>(total);
    const Mask<T> none = targets < 0;  // past the last sample: a loss of 0
    T* block = p.fields.data() + b * kPruningFields * n_lanes;
    store_lanes(block + kCenter * n_lanes, none ? splat(infinity) : largest + above);
    store_lanes(block + kScale * n_lanes, is_target ? splat(T(-1)) : splat(T(1)));
    add_wide<T>(constants, is_target | none ? Lanes<T>{} : above - own);
  });
  store_lanes(p.constants.data() + tile * kSumLanes, constants[0] + constants[1]);
  const int64_t first = blocks_before(p, tile);
  sum_class(p, tile, blocks_before(p, tile + 1) - first, [&](int64_t i) {
    const T* block = p.fields.data() + (first + i) * kPruningFields * n_lanes;
    const auto field = [&](int k) { return load_lanes(block + k * n_lanes); };
    return (field(kNow + p.side[first + i]) - field(kCenter)) * field(kScale);
  });
}

// What a trial does to one tile if the unit is a class: the sums are of the losses. By itself, as sum_class
// needs the registers.
template <class T>
__attribute__((noinline)) void try_class(Pruning<T>& p, PruningVisit<T> visit, int64_t tile) {
  constexpr int64_t n_lanes = kLanes<T>, stride = kPruningFields * n_lanes;
  const int64_t* entries = p.entries(visit.column, tile);
  const T* inputs = p.columns.value.data() + entries[0] * n_lanes;
  T* const fields = p.fields.data() + tile * p.tile_blocks * stride;
  int32_t* const sides = p.side.data() + tile * p.tile_blocks;
  sum_class(p, tile, entries[1] - entries[0], [=](int64_t i) {
    T* const block = fields + i * stride;
    const int32_t before = sides[i], side = sides[i] = 1 - before;
    const Lanes<T> now = load_lanes(block + (kNow + before) * n_lanes);
    const Lanes<T> moved = now - load_lanes(inputs + i * n_lanes) * visit.weight;
    store_lanes(block + (kNow + side) * n_lanes, moved);
    return (moved - load_lanes(block + kCenter * n_lanes)) * load_lanes(block + kScale * n_lanes);
  });
}
