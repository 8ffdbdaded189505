// How a sample's loss moves with the output t of one unit, which is 0 where its pre-activation is less.
//
// Where no later ReLU switches, the logits are z + s (t - t0), and with p the class probabilities at t0 and r = s - s_target the cross-entropy is
//   loss(t) = loss(t0) + log sum p e^(r (t - t0)),
// the cumulant generating function of r under p. Its Taylor series in q = (t - t0) R, R the range of r,
// has cumulants over factorials as coefficients, which do not depend on the scale of the weights. So a
// loss that is wanted at many t nearby takes no exponentials.
#pragma once

#include "portable.h"

namespace modfast {

constexpr int kDegree = 6;

// How far a series may be used, |q| <= reach, for what it leaves out to be at most 2e-8 in float, which
// is under the rounding of a loss of 1, and 6e-14 in double. A series of two classes leaves out about
// 8e-5 |q|^7, which gives `any`. With little probability e on classes other than the target it holds
// further: for |q| <= d in the complex plane sum p (e^(r q) - 1) is at most e (e^d + 1). With d up to
// log(0.4 / e), but at most 7, where (e^d / d^7) is least, that is below 1/2, and by Cauchy's estimate
// a q of d of_radius (0.4 / (e e^d))^(1/7) leaves out no more.
template <class T>
struct SeriesReach;
template <>
struct SeriesReach<float> {
  static constexpr float any = 0.3f, of_radius = 0.083f;
};
template <>
struct SeriesReach<double> {
  static constexpr double any = 0.05, of_radius = 0.0138;
};
// log(0.4 / e) counts up to this, and e^(kMostSurety / 7).
constexpr float kMostSurety = 15.0f;
constexpr double kMostGrowth = 8.5238;

// The reach of a sample whose probability of classes other than the target is `wrong`. F has the functions
// of V, a T or several, and `all`, a V of one number.
template <class F, class T, class V>
MODFAST_BOTH V series_reach(V wrong) {
  constexpr T most = kMostSurety, least = T(0.4f) / T(5e6f);
  const V surety = F::smaller(F::log(T(0.4f) / F::larger(wrong, F::all(least))), F::all(most));
  const V radius = F::smaller(surety, F::all(T(kDegree + 1)));
  const V growth = F::exp((surety - radius - most) / T(kDegree + 1)) * T(kMostGrowth);
  return F::larger(F::all(SeriesReach<T>::any), radius * growth * SeriesReach<T>::of_radius);
}

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
