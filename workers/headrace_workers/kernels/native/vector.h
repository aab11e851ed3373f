/* AVX-512 arithmetic that several kernels share. Every lane is computed alike, wherever in a row it stands. */
#ifndef HEADRACE_VECTOR_H
#define HEADRACE_VECTOR_H

#include "headrace.h"

#include <immintrin.h>

#define HR_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")))
#define HR_AMX_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,amx-tile,amx-int8")))

/* Mask of the first `count` lanes; all of them from 16 on. */
HR_AVX512 HR_INLINE __mmask16 hr_first(int64_t count) {
    return count >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << count) - 1);
}

HR_AVX512 HR_INLINE __m512 hr_set(float value) { return _mm512_set1_ps(value); }

/* e**x to 2 ulp; 0 below -87.3, largest float above 88.7. NaN goes through. */
HR_AVX512 HR_INLINE __m512 hr_exp(__m512 x) {
    x = _mm512_min_ps(hr_set(88.7f), _mm512_max_ps(hr_set(-87.3f), x));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, hr_set(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, hr_set(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, hr_set(-2.12194440e-4f), r);
    __m512 p = hr_set(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, hr_set(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, hr_set(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, hr_set(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, hr_set(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, hr_set(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, hr_set(1.0f)));
    return _mm512_scalef_ps(p, n);
}

/* Both GELUs are relu(x) - h(|x|) with h smooth, small and gone beyond 5.25: h is (1 - u) * q(u) with u = |x| mapped
 * from [0, 5.25] to [-1, 1] and q of degree 13, fitted to a largest error of 7e-7 without exp or division. */
enum { HR_GELU_DEGREE = 13 };
static const float hr_gelu_erf[HR_GELU_DEGREE + 1] = {
    0.011373176239430904f, -0.06492944806814194f, 0.14940856397151947f, -0.14174163341522217f, -0.05878855660557747f,
    0.2999839186668396f, -0.2825773358345032f, -0.030007289722561836f, 0.26710253953933716f, -0.130913645029068f,
    -0.10282734036445618f, 0.0858977884054184f, 0.016350770369172096f, -0.018248148262500763f};
static const float hr_gelu_tanh[HR_GELU_DEGREE + 1] = {
    0.010904081165790558f, -0.06572806090116501f, 0.15452921390533447f, -0.13970516622066498f, -0.08056160062551498f,
    0.30249491333961487f, -0.2335086315870285f, -0.043795593082904816f, 0.20342852175235748f, -0.11508384346961975f,
    -0.05760209262371063f, 0.0808740109205246f, 0.002782645169645548f, -0.019083883613348007f};

HR_AVX512 HR_INLINE __m512 hr_gelu_of(__m512 x, const float *q) {
    /* min and max give their second operand where one is NaN: x stays last, so that NaN stays NaN */
    __m512 a = _mm512_min_ps(hr_set(5.25f), _mm512_abs_ps(x));
    __m512 u = _mm512_fmsub_ps(a, hr_set(2.0f / 5.25f), hr_set(1.0f));
    __m512 p = hr_set(q[HR_GELU_DEGREE]);
#pragma GCC unroll 13
    for (int i = HR_GELU_DEGREE - 1; i >= 0; i--) p = _mm512_fmadd_ps(p, u, hr_set(q[i]));
    __m512 rest = _mm512_fnmadd_ps(p, u, p);
    return _mm512_sub_ps(_mm512_max_ps(_mm512_setzero_ps(), x), rest);
}

HR_AVX512 HR_INLINE __m512 hr_silu(__m512 x) {
    __m512 e = hr_exp(_mm512_sub_ps(_mm512_setzero_ps(), x));
    return _mm512_div_ps(x, _mm512_add_ps(e, hr_set(1.0f)));
}

HR_AVX512 HR_INLINE __m512 hr_activate(__m512 x, const int activation) {
    switch (activation) {
    case HR_RELU: return _mm512_max_ps(_mm512_setzero_ps(), x);
    case HR_GELU: return hr_gelu_of(x, hr_gelu_erf);
    case HR_GELU_TANH: return hr_gelu_of(x, hr_gelu_tanh);
    case HR_SILU: return hr_silu(x);
    default: return x;
    }
}

#endif
