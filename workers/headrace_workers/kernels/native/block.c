/* A whole post-norm transformer block in one call: attention, both projections, both norms, the feed-forward.
 *
 * What lies between the steps stays in the processor's caches: the feed-forward's wide middle is never written to
 * memory, and Python is entered once a block instead of twenty times.
 */
#include "headrace.h"

#if defined(__x86_64__)
#include "vector.h"

#include <omp.h>

/* Rows that go from attention to output together: their middle (rows x 1536 floats, say) fits a second-level cache. */
enum { ROWS_TOGETHER = 64 };

HR_AVX512 HR_INLINE __m512 load_sum(const float *x, const float *y, int64_t j, __mmask16 mask) {
    return _mm512_add_ps(_mm512_maskz_loadu_ps(mask, x + j), _mm512_maskz_loadu_ps(mask, y + j));
}

/* out = norm(x + residual), over n values; `out` may be `x`. */
HR_AVX512 static void add_and_norm(const float *x, const float *residual, int64_t n, const hr_norm *norm, float *out) {
    __m512 sum = _mm512_setzero_ps(), squares = sum;
    for (int64_t j = 0; j < n; j += 16) {
        __m512 v = load_sum(x, residual, j, hr_first(n - j));
        _mm512_mask_storeu_ps(out + j, hr_first(n - j), v);
        sum = _mm512_add_ps(sum, v);
    }
    const float mean = _mm512_reduce_add_ps(sum) / (float)n;
    for (int64_t j = 0; j < n; j += 16) {
        const __mmask16 mask = hr_first(n - j);
        __m512 v = _mm512_maskz_sub_ps(mask, _mm512_maskz_loadu_ps(mask, out + j), hr_set(mean));
        squares = _mm512_fmadd_ps(v, v, squares);
    }
    const float inverse = 1.0f / __builtin_sqrtf(_mm512_reduce_add_ps(squares) / (float)n + norm->eps);
    for (int64_t j = 0; j < n; j += 16) {
        const __mmask16 mask = hr_first(n - j);
        __m512 v = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, out + j), hr_set(mean));
        v = _mm512_mul_ps(_mm512_mul_ps(v, hr_set(inverse)), _mm512_maskz_loadu_ps(mask, norm->weight + j));
        _mm512_mask_storeu_ps(out + j, mask, _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, norm->bias + j)));
    }
}

/* Floats from row to row of a scratch matrix: an odd number of cache lines, so that rows do not share cache sets. */
static int64_t scratch_stride(int64_t columns) { return (hr_round_up(columns, 16) / 16 | 1) * 16; }

/* Rows from mixed values (`context`) to the block's output; x is the block's input. */
HR_AVX512 static int after_attention(const hr_block *b, const float *context, int64_t context_stride, const float *x,
                                     int64_t rows, float *y, enum hr_isa isa) {
    const int64_t width = b->out.outputs, stride = scratch_stride(width), wide = scratch_stride(b->up.outputs);
    float *hidden = hr_scratch(HR_SLOT_ROWS, (size_t)(ROWS_TOGETHER * (stride + wide)) * sizeof *hidden);
    if (!hidden) return -1;
    float *middle = hidden + ROWS_TOGETHER * stride;
    if (hr_linear_rows(&b->out, context, context_stride, rows, hidden, stride, isa)) return -1;
    for (int64_t i = 0; i < rows; i++)
        add_and_norm(hidden + i * stride, x + i * width, width, &b->attention_norm, hidden + i * stride);
    if (hr_linear_rows(&b->up, hidden, stride, rows, middle, wide, isa)) return -1;
    if (hr_linear_rows(&b->down, middle, wide, rows, y, width, isa)) return -1;
    for (int64_t i = 0; i < rows; i++)
        add_and_norm(y + i * width, hidden + i * stride, width, &b->output_norm, y + i * width);
    return 0;
}

/* y = block(x) for `tokens` rows of packed sequences, both [tokens, width] without gaps; they must not overlap.
 * Returns 0, or -1 when memory is out. */
HR_EXPORT int hr_block_run(const hr_block *b, const float *x, int64_t tokens, const int32_t *starts, int64_t sequences,
                           float *y, int isa, int threads) {
    const int64_t width = b->out.outputs, inner = b->heads * b->head_dim, stride = scratch_stride(3 * inner);
    float *qkv = hr_scratch(HR_SLOT_SHARED, (size_t)(tokens * stride) * sizeof *qkv);
    if (!qkv || hr_linear_run(&b->qkv, x, width, tokens, qkv, stride, isa, threads)) return -1;
    hr_attention a = {qkv, qkv + inner, qkv + 2 * inner, qkv, stride, stride, stride, stride,
                      starts, sequences, b->heads, b->head_dim, -1, b->scale};
    if (hr_attention_run(&a, threads)) return -1;
    const int64_t even = hr_round_up((tokens + threads - 1) / threads, 16), step = hr_min(even, ROWS_TOGETHER);
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) reduction(| : failed) if (threads > 1)
    for (int64_t row = 0; row < tokens; row += step)
        failed |= after_attention(b, qkv + row * stride, stride, x + row * width, hr_min(step, tokens - row),
                                  y + row * width, (enum hr_isa)isa);
    return failed ? -1 : 0;
}
#endif
