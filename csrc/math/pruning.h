// How a sample's loss moves with the pre-activation t of one unit.
//
// Where no ReLU after the unit switches, the logits are z + s (t - t0), and with p the class
// probabilities at t0 and r = s - s_target the cross-entropy is
//   loss(t) = loss(t0) + log sum p e^(r (t - t0)),
// the cumulant generating function of r under p. Its Taylor series in q = (t - t0) R, R the range of r,
// has cumulants over factorials as coefficients. They do not depend on the scale of the weights, and what
// kDegree terms leave out is at most about kRest |q|^(kDegree + 1). So a loss that is wanted at many t
// nearby takes no exponentials.
#pragma once

#include "portable.h"

namespace modfast {

constexpr int kDegree = 6;
// The largest |q|: for float the rest is 2e-8, under its rounding of a loss of 1, for double 6e-14.
constexpr float kReachFloat = 0.3f;
constexpr double kReachDouble = 0.05;

// series[k - 1] is the coefficient of q^k, of the mean and the central moments m2, m3, ... of r / R.
template <class V>
MODFAST_BOTH void cumulant_series(V mean, const V (&m)[kDegree + 1], V (&series)[kDegree]) {
  series[0] = mean;
  series[1] = m[2] * (1 / 2.f);
  series[2] = m[3] / 6.f;
  series[3] = (m[4] - 3.f * m[2] * m[2]) / 24.f;
  series[4] = (m[5] - 10.f * m[3] * m[2]) / 120.f;
  series[5] = (m[6] - 15.f * m[4] * m[2] - 10.f * m[3] * m[3] + 30.f * m[2] * m[2] * m[2]) / 720.f;
}

}  // namespace modfast
