// One element's update by SGD and by Adam, as torch.optim computes it.
#pragma once

#include <cmath>

#include "portable.h"

namespace modfast {

template <class C>
struct Sgd {
  C lr, momentum, dampening, weight_decay;
  bool nesterov, first;

  template <class D>
  Sgd<D> as() const {
    return Sgd<D>{static_cast<D>(lr),           static_cast<D>(momentum), static_cast<D>(dampening),
                  static_cast<D>(weight_decay), nesterov,                 first};
  }

  // `buffer` is read and written only with momentum; `first` sets it instead of reading it.
  template <bool kMomentum>
  MODFAST_BOTH C update(C w, C grad, C& buffer) const {
    C step = grad + weight_decay * w;
    if constexpr (kMomentum) {
      buffer = first ? step : momentum * buffer + (C(1) - dampening) * step;
      step = nesterov ? step + momentum * buffer : buffer;
    }
    return w - lr * step;
  }
};

template <class C>
struct Adam {
  C beta1, beta2, eps;
  C shrink;           // AdamW's decay of the weight, 1 otherwise
  C decay;            // Adam's decay through the gradient, 0 otherwise
  C step_size;        // lr / (1 - beta1^step)
  C root_correction;  // 1 / sqrt(1 - beta2^step)

  MODFAST_BOTH C update(C w, C grad, C& mean, C& square) const {
    grad += decay * w;
    mean += (C(1) - beta1) * (grad - mean);
    square = beta2 * square + (C(1) - beta2) * grad * grad;
    return shrink * w - step_size * mean / (std::sqrt(square) * root_correction + eps);
  }
};

// The options of an Adam step, and the number of the step from 1.
struct AdamStep {
  double lr, beta1, beta2, eps, weight_decay;
  bool decoupled;
  double step;

  template <class C>
  Adam<C> as() const {
    return Adam<C>{static_cast<C>(beta1),
                   static_cast<C>(beta2),
                   static_cast<C>(eps),
                   static_cast<C>(decoupled ? 1.0 - lr * weight_decay : 1.0),
                   static_cast<C>(decoupled ? 0.0 : weight_decay),
                   static_cast<C>(lr / (1.0 - std::pow(beta1, step))),
                   static_cast<C>(1.0 / std::sqrt(1.0 - std::pow(beta2, step)))};
  }
};

}  // namespace modfast
