/* AVX-512 arithmetic that several kernels share. Every lane is computed alike, wherever in a row it stands. */
#ifndef HEADRACE_VECTOR_H
#define HEADRACE_VECTOR_H

#include "headrace.h"

#include <immintrin.h>

#define HR_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")))
#define HR_AMX_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,amx-tile,amx-int8")))

/* Mask of the first `count` lanes; none for a negative count, all of them from 16 on. */
HR_AVX512 HR_INLINE __mmask16 hr_first(int64_t count) {
    return count >= 16 ? (__mmask16)0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
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

/* Both GELUs are relu(x) - h(|x|), where h is small, smooth and gone beyond 5.2. It is read off a table: 32 cubics in
 * the distance from the nearest multiple of 1/6, fitted to a largest error of 5e-7. No exp, no division, and a chain of
 * operations short enough for the processor to work on several values at a time. */
static const float hr_gelu_erf[4][32] = {
    {-2.49434677e-08f, 0.0723023191f, 0.12314681f, 0.154268563f, 0.16832827f, 0.168607011f, 0.158655375f,
     0.141951442f, 0.121615179f, 0.100211017f, 0.079650782f, 0.0611904189f, 0.0455003716f, 0.0327820368f,
     0.0229024626f, 0.0155241666f, 0.0102143344f, 0.00652589882f, 0.00404966949f, 0.00244142907f, 0.0014301819f,
     0.000814186817f, 0.000450499152f, 0.000242294496f, 0.000126679981f, 6.43897656e-05f, 3.18196107e-05f,
     1.52884331e-05f, 7.14231328e-06f, 3.24442567e-06f, 1.43308762e-06f, 6.15572446e-07f},
    {0.0833349302f, 0.0613738522f, 0.040607892f, 0.0220842361f, 0.00658796122f, -0.00543294661f, -0.0138858473f,
     -0.0189987328f, -0.0212448016f, -0.0212448761f, -0.0196675062f, -0.017143473f, -0.0142053366f,
     -0.0112556787f, -0.00856153853f, -0.00626853062f, -0.00442649564f, -0.00301900669f, -0.00199094112f,
     -0.00127062644f, -0.000785308308f, -0.00047028999f, -0.000273017999f, -0.000153702131f, -8.39398563e-05f,
     -4.44807156e-05f, -2.28764784e-05f, -1.14210316e-05f, -5.53596965e-06f, -2.60566412e-06f, -1.19106573e-06f,
     -5.28601049e-07f},
    {-0.0110977162f, -0.0107650664f, -0.00989068393f, -0.00855060481f, -0.00689886743f, -0.00511267316f,
     -0.00336458511f, -0.00179838412f, -0.000513160951f, 0.000442758697f, 0.00106842362f, 0.00139988773f,
     0.00149627717f, 0.00142568559f, 0.00125349837f, 0.00103455957f, 0.000809410645f, 0.000603996334f,
     0.000431656779f, 0.000296307262f, 0.000195780594f, 0.000124715283f, 7.66893718e-05f, 4.55665941e-05f,
     2.61819223e-05f, 1.45574513e-05f, 7.83673659e-06f, 4.08649339e-06f, 2.06491336e-06f, 1.01142552e-06f,
     4.80366907e-07f, 2.20594657e-07f},
    {5.1207553e-05f, 0.000200515584f, 0.000376621931f, 0.000508272089f, 0.000583130168f, 0.000598183775f,
     0.000559340289f, 0.000479394483f, 0.000374824507f, 0.000262464251f, 0.000156678696f, 6.75803603e-05f,
     4.33455568e-07f, -4.39093346e-05f, -6.78915385e-05f, -7.58746974e-05f, -7.28330488e-05f, -6.34056923e-05f,
     -5.12943989e-05f, -3.90722671e-05f, -2.82477795e-05f, -1.9484296e-05f, -1.28689971e-05f, -8.16033389e-06f,
     -4.97776409e-06f, -2.92542768e-06f, -1.65844085e-06f, -9.07803269e-07f, -4.80191034e-07f, -2.45616718e-07f,
     -1.21553853e-07f, -6.03459824e-08f}};
static const float hr_gelu_tanh[4][32] = {
    {-2.50650061e-08f, 0.072302565f, 0.123150565f, 0.154285789f, 0.168375388f, 0.168701723f, 0.158808127f,
     0.142156914f, 0.121848054f, 0.100428633f, 0.0798025876f, 0.0612311848f, 0.0454024151f, 0.032542374f,
     0.0225427784f, 0.0150842723f, 0.00974194147f, 0.00606615422f, 0.00363736739f, 0.00209729047f,
     0.0011610915f, 0.000616181351f, 0.000312932796f, 0.000151822635f, 7.02407779e-05f, 3.09328825e-05f,
     1.2942859e-05f, 5.13583564e-06f, 1.92907351e-06f, 6.84578879e-07f, 2.29092535e-07f, 7.21718507e-08f},
    {0.0833349377f, 0.0613748394f, 0.0406151153f, 0.0221051071f, 0.00662714243f, -0.00537812803f,
     -0.0138272839f, -0.0189553089f, -0.0212364364f, -0.0212851427f, -0.0197579488f, -0.0172721036f,
     -0.0143499104f, -0.0113902893f, -0.00866388902f, -0.00632528029f, -0.00443522027f, -0.00298678153f,
     -0.00193069538f, -0.00119689759f, -0.000710767461f, -0.000403770362f, -0.000219091235f, -0.000113371076f,
     -5.58518623e-05f, -2.61504993e-05f, -1.16161336e-05f, -4.88655451e-06f, -1.94318591e-06f, -7.29121382e-07f,
     -2.57665675e-07f, -8.55187139e-08f},
    {-0.0110977944f, -0.0107635697f, -0.00988570414f, -0.00854222476f, -0.00688972371f, -0.00510717509f,
     -0.00336709921f, -0.00181112892f, -0.000534800405f, 0.000417054369f, 0.00104540191f, 0.00138581719f,
     0.00149479136f, 0.00143674191f, 0.00127374125f, 0.00105875183f, 0.000832234102f, 0.000621508283f,
     0.000442004763f, 0.000299649371f, 0.000193663029f, 0.000119264543f, 6.99229859e-05f, 3.89824454e-05f,
     2.06384193e-05f, 1.03610901e-05f, 4.92472554e-06f, 2.21261053e-06f, 9.38108997e-07f, 3.74706048e-07f,
     1.40756612e-07f, 4.93618373e-08f},
    {5.14592757e-05f, 0.000201425166f, 0.000377913675f, 0.000509101723f, 0.000582707406f, 0.000596175785f,
     0.000556125713f, 0.000475989887f, 0.000372497627f, 0.000262189918f, 0.000158714014f, 7.13630579e-05f,
     4.83311305e-06f, -4.01332727e-05f, -6.56470365e-05f, -7.54858847e-05f, -7.40537653e-05f, -6.56083066e-05f,
     -5.37557753e-05f, -4.1205305e-05f, -2.97238767e-05f, -2.02378924e-05f, -1.3022338e-05f, -7.92130959e-06f,
     -4.55342752e-06f, -2.47165485e-06f, -1.26562247e-06f, -6.10615132e-07f, -2.77205544e-07f, -1.18246902e-07f,
     -4.73241002e-08f, -1.8600284e-08f}};

HR_AVX512 HR_INLINE __m512 hr_of_32(const float *table, __m512i index) {
    return _mm512_permutex2var_ps(_mm512_loadu_ps(table), index, _mm512_loadu_ps(table + 16));
}

HR_AVX512 HR_INLINE __m512 hr_gelu_of(__m512 x, const float (*table)[32]) {
    /* min and max give their second operand where one is NaN: x comes last, so that NaN stays NaN */
    const __m512 u = _mm512_min_ps(hr_set(31.4f), _mm512_mul_ps(hr_set(6.0f), _mm512_abs_ps(x)));
    /* adding 1.5 * 2**23 leaves the nearest integer in the low bits, and the lookup reads the lowest five */
    const __m512 shifted = _mm512_add_ps(u, hr_set(12582912.0f));
    const __m512 r = _mm512_sub_ps(u, _mm512_sub_ps(shifted, hr_set(12582912.0f)));
    const __m512i index = _mm512_castps_si512(shifted);
    __m512 h = _mm512_fmadd_ps(hr_of_32(table[3], index), r, hr_of_32(table[2], index));
    h = _mm512_fmadd_ps(h, r, hr_of_32(table[1], index));
    h = _mm512_fmadd_ps(h, r, hr_of_32(table[0], index));
    return _mm512_sub_ps(_mm512_max_ps(_mm512_setzero_ps(), x), h);
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
