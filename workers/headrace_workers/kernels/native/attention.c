/* Attention over packed sequences: every token attends to its own sequence, and padding is never computed.
 *
 * A (sequence, head) pair is one unit of work. Its answer is computed from its own tokens in one fixed order, so it is
 * the same bits whatever else is in the batch and however many threads there are.
 */
#include "headrace.h"

#if defined(__x86_64__)
#include "vector.h"

#include <omp.h>

enum { ROWS = 6, VECTORS = 4 };
/* Below this many multiplications a second thread costs more than it brings. */
enum { WORTH_A_THREAD = 1 << 19 };

/* 16 rows of 16 floats, transposed in registers. */
HR_AVX512 HR_INLINE void transpose_16(__m512 r[16]) {
    __m512 t[16];
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        __m512 a = _mm512_unpacklo_ps(r[i], r[i + 1]), b = _mm512_unpackhi_ps(r[i], r[i + 1]);
        __m512 c = _mm512_unpacklo_ps(r[i + 2], r[i + 3]), d = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
        t[i] = _mm512_shuffle_ps(a, c, 0x44);
        t[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
        t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
        t[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512 a = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88), b = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd);
        __m512 c = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88), d = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xdd);
        r[i] = _mm512_shuffle_f32x4(a, c, 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
        r[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
        r[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
}

/* [length, head_dim] keys -> [head_dim, padded], the padding zero. */
HR_AVX512 static void transpose_keys(const float *k, int64_t stride, int64_t length, int64_t padded, int64_t head_dim,
                                     float *out) {
    for (int64_t j = 0; j < padded; j += 16)
        for (int64_t d = 0; d < head_dim; d += 16) {
            __m512 r[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                r[i] = j + i < length ? _mm512_loadu_ps(k + (j + i) * stride + d) : _mm512_setzero_ps();
            transpose_16(r);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) _mm512_store_ps(out + (d + i) * padded + j, r[i]);
        }
}

/* c[rows, 16 * vectors] = a[rows, depth] @ b[depth, ...]: sums over depth in order, one multiply-add each. */
HR_AVX512 HR_INLINE void small_product(const int rows, const int vectors, int64_t depth, const float *a,
                                       int64_t a_stride, const float *b, int64_t b_stride, __m512 c[ROWS][VECTORS]) {
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) c[i][j] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k++) {
        __m512 right[VECTORS];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) right[j] = _mm512_loadu_ps(b + k * b_stride + 16 * j);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            __m512 left = hr_set(a[i * a_stride + k]);
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) c[i][j] = _mm512_fmadd_ps(left, right[j], c[i][j]);
        }
    }
}

typedef struct {
    const float *q, *v;       /* this head's first row */
    float *out;
    int64_t q_stride, v_stride, out_stride, length, padded, head_dim, window;
    float scale;
    const float *keys;        /* [head_dim, padded] */
    float *weights;           /* [ROWS, padded] */
} pair;

HR_AVX512 HR_INLINE void score_columns(const pair *p, const int rows, const int vectors, int64_t row, int64_t column) {
    __m512 c[ROWS][VECTORS];
    small_product(rows, vectors, p->head_dim, p->q + row * p->q_stride, p->q_stride, p->keys + column, p->padded, c);
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++)
            _mm512_store_ps(p->weights + i * p->padded + column + 16 * j, _mm512_mul_ps(c[i][j], hr_set(p->scale)));
}

/* The keys that some of a few rows look at; the first is a multiple of 16. */
typedef struct {
    int64_t row, first, last;
} span;

HR_AVX512 HR_INLINE void score_rows(const pair *p, const int rows, const span *s) {
    int64_t column = s->first;
    for (; column + 64 <= hr_round_up(s->last, 16); column += 64) score_columns(p, rows, 4, s->row, column);
    switch ((s->last - column + 15) / 16) {
    case 1: score_columns(p, rows, 1, s->row, column); break;
    case 2: score_columns(p, rows, 2, s->row, column); break;
    case 3: score_columns(p, rows, 3, s->row, column); break;
    default: break;
    }
}

/* Which of keys j .. j + 15 the row looks at. */
HR_AVX512 HR_INLINE __mmask16 seen(const pair *p, int64_t row, int64_t j) {
    const __mmask16 real = hr_first(p->length - j);
    if (p->window < 0) return real;
    return real & hr_first(row + p->window + 1 - j) & (__mmask16)~hr_first(row - p->window - j);
}

/* Scores -> exp(score - row's highest), zero where a row does not look, and 1 / their sum. The rows go side by side:
 * one row alone would wait for its own reductions most of the time. */
HR_AVX512 HR_INLINE void softmax_rows(const pair *p, const int rows, const span *s, float inverse[ROWS]) {
    __m512 highest[ROWS], sum[ROWS];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        highest[i] = hr_set(-__builtin_inff());
        sum[i] = _mm512_setzero_ps();
    }
    for (int64_t j = s->first; j < s->last; j += 16)
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++)
            highest[i] = _mm512_mask_max_ps(highest[i], seen(p, s->row + i, j), highest[i],
                                            _mm512_load_ps(p->weights + i * p->padded + j));
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) highest[i] = hr_set(_mm512_reduce_max_ps(highest[i]));
    for (int64_t j = s->first; j < s->last; j += 16)
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            float *w = p->weights + i * p->padded + j;
            __m512 e = hr_exp(_mm512_sub_ps(_mm512_load_ps(w), highest[i]));
            e = _mm512_maskz_mov_ps(seen(p, s->row + i, j), e);
            sum[i] = _mm512_add_ps(sum[i], e);
            _mm512_store_ps(w, e);
        }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) inverse[i] = 1.0f / _mm512_reduce_add_ps(sum[i]);
}

HR_AVX512 HR_INLINE void mix_columns(const pair *p, const int rows, const int vectors, const span *s, int64_t column,
                                     const float *inverse) {
    __m512 c[ROWS][VECTORS];
    small_product(rows, vectors, s->last - s->first, p->weights + s->first, p->padded,
                  p->v + s->first * p->v_stride + column, p->v_stride, c);
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++)
            _mm512_storeu_ps(p->out + (s->row + i) * p->out_stride + column + 16 * j,
                             _mm512_mul_ps(c[i][j], hr_set(inverse[i])));
}

HR_AVX512 HR_INLINE void attend_rows(const pair *p, const int rows, int64_t row) {
    float inverse[ROWS];
    span s = {row, 0, p->length};
    if (p->window >= 0) {
        if (row > p->window) s.first = (row - p->window) / 16 * 16;
        s.last = hr_min(p->length, row + rows + p->window);
    }
    score_rows(p, rows, &s);
    softmax_rows(p, rows, &s, inverse);
    int64_t column = 0;
    for (; column + 64 <= p->head_dim; column += 64) mix_columns(p, rows, 4, &s, column, inverse);
    for (; column + 32 <= p->head_dim; column += 32) mix_columns(p, rows, 2, &s, column, inverse);
    for (; column < p->head_dim; column += 16) mix_columns(p, rows, 1, &s, column, inverse);
}

/* `out` may be `q` itself: a row of q is read for the last time before its row of out is written. */
HR_AVX512 static void attend_pair(const pair *p) {
    for (int64_t row = 0, rows; row < p->length; row += rows) {
        /* even blocks: 25 rows are five times five, not four times six and a lonely one */
        const int64_t left = p->length - row, blocks = (left + ROWS - 1) / ROWS;
        rows = (left + blocks - 1) / blocks;
        switch (rows) {
        case 1: attend_rows(p, 1, row); break;
        case 2: attend_rows(p, 2, row); break;
        case 3: attend_rows(p, 3, row); break;
        case 4: attend_rows(p, 4, row); break;
        case 5: attend_rows(p, 5, row); break;
        default: attend_rows(p, ROWS, row); break;
        }
    }
}

static int64_t longest(const hr_attention *a) {
    int64_t most = 0;
    for (int64_t s = 0; s < a->sequences; s++)
        if (a->starts[s + 1] - a->starts[s] > most) most = a->starts[s + 1] - a->starts[s];
    return most;
}

/* Pairs [first, last), numbered sequence * heads + head, of sequences no longer than `most`. Returns 0, or -1 when
 * memory is out. */
HR_AVX512 static int attend_pairs(const hr_attention *a, int64_t most, int64_t first, int64_t last) {
    const int64_t room = hr_round_up(most, 16) * (a->head_dim + ROWS);
    float *scratch = hr_scratch(HR_SLOT_ATTENTION, (size_t)room * sizeof *scratch);
    if (!scratch) return -1;
    for (int64_t at = first; at < last; at++) {
        const int64_t sequence = at / a->heads, head = at % a->heads * a->head_dim, start = a->starts[sequence];
        const int64_t length = a->starts[sequence + 1] - start, padded = hr_round_up(length, 16);
        pair p = {.q = a->q + start * a->q_stride + head, .v = a->v + start * a->v_stride + head,
                  .out = a->out + start * a->out_stride + head, .q_stride = a->q_stride, .v_stride = a->v_stride,
                  .out_stride = a->out_stride, .length = length, .padded = padded, .head_dim = a->head_dim,
                  .window = a->window, .scale = a->scale, .keys = scratch, .weights = scratch + a->head_dim * padded};
        transpose_keys(a->k + start * a->k_stride + head, a->k_stride, length, padded, a->head_dim, scratch);
        attend_pair(&p);
    }
    return 0;
}

/* head_dim must be a multiple of 16. `out` may be `q`. Returns 0, or -1 when memory is out. */
HR_EXPORT int hr_attention_run(const hr_attention *a, int threads) {
    const int64_t pairs = a->sequences * a->heads, rows = a->starts[a->sequences], most = longest(a);
    if (threads <= 1 || rows * most * a->heads * a->head_dim < WORTH_A_THREAD) return attend_pairs(a, most, 0, pairs);
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4) reduction(| : failed)
    for (int64_t at = 0; at < pairs; at++) failed |= attend_pairs(a, most, at, at + 1);
    return failed ? -1 : 0;
}
#endif
