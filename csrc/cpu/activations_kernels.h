// Activation functions of whole arrays; compiled per SIMD level. Include after lanes_kernels.h.

// erfc z = t exp(-z^2 + h(t)) for z >= 0, with t = 2 / (2 + z): h as Chebyshev series in 2t - 1, by
// interpolation in 60 digits. The rest is below 1e-16; of the first kErfFloat terms, below 1e-8.
constexpr double kErf[] = {
      -0.65132685989085472, 0.64196979235649026, 0.019476473204185836, -0.0095615147868086316,
      -0.00094659534448203687, 0.00036683949785276145, 4.2523324806907772e-5,
      -2.0278578112534243e-5, -1.6242900046470255e-6, 1.3036558355805232e-6, 1.5626441722066143e-8,
      -8.5238095914926543e-8, 6.5290544390988515e-9, 5.0593434955514689e-9,
      -9.9136415649303309e-10, -2.2736512229318359e-10, 9.6467911020155268e-11,
      2.3940380830391147e-12, -6.8860275264975534e-12, 8.9448792730907257e-13,
      3.1309213993429581e-13, -1.1270822361367252e-13, 3.8109052551892321e-16,
      7.106097613609237e-15, -1.5230282014571043e-15, -9.457494571291234e-17,
      1.210237189224279e-16};
constexpr int kErfFloat = 12;

template <class T>
MODFAST_LANE Lanes<T> erfc_up(Lanes<T> z) {
  using V = Lanes<T>;
  constexpr int n = sizeof(T) == sizeof(float) ? kErfFloat : sizeof(kErf) / sizeof(kErf[0]);
  const V t = 2 / (2 + z), u = 2 * t - 1;
  V next{}, sum{};
  for (int i = n - 1; i > 0; --i) {
    const V before = sum;
    sum = 2 * u * sum - next + static_cast<T>(kErf[i]);
    next = before;
  }
  return t * exp_down<T>(u * sum - next + static_cast<T>(kErf[0]) - z * z);
}

// 1 / (1 + e^-x), by e^-|x|, which cannot overflow.
template <class T>
MODFAST_LANE Lanes<T> sigmoid(Lanes<T> x) {
  const Lanes<T> e = exp_down<T>(-larger(x, -x));
  return (x < 0 ? e : splat(T(1))) / (1 + e);
}

template <class T>
MODFAST_LANE Lanes<T> activation(Activation kind, Lanes<T> x) {
  switch (kind) {
    case Activation::relu: return larger(x, Lanes<T>{});
    case Activation::tanh: return 2 * sigmoid<T>(2 * x) - 1;
    case Activation::sigmoid: return sigmoid<T>(x);
    case Activation::silu: return x * sigmoid<T>(x);
    case Activation::gelu: {
      const Lanes<T> half = erfc_up<T>(larger(x, -x) * T(0.70710678118654752)) / 2;
      return x * (x < 0 ? half : 1 - half);
    }
    // x (1 + tanh y) / 2 = x sigmoid(2y)
    case Activation::gelu_tanh:
      return x * sigmoid<T>(T(1.5957691216057308) * (x + T(0.044715) * x * x * x));
    default: return x;
  }
}

// n: a multiple of kLanes. `out` may be `in`.
template <class T>
void activate(Activation kind, const T* in, T* out, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    store_lanes(out + i, activation<T>(kind, load_lanes(in + i)));
  }
}
