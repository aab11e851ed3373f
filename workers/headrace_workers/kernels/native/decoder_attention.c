/* Attention over keys and values in pages of fp16.
 *
 * A page has its keys transposed, so that sixteen keys are the lanes of a vector and a score is one chain of additions
 * over the head's values in their order. Everything about a row is computed key by key from the first page it may look
 * at; what it may not see counts as an exact zero. So the rows beside it, of its prompt or of other heads, share its
 * loads and change none of its bits.
 */
#include "decoder_attention.h"

#if defined(__x86_64__)
#include "vector.h"

/* Lines (a row's query of one head) computed together, and vectors of values. */
enum { LINES = 6, VECTORS = 4 };

HR_AVX512 void hr_cache_row(uint16_t *page, int64_t slot, int64_t head_dim, const float *key, const float *value) {
    uint16_t *values = page + (HR_PAGE + slot) * head_dim;
    for (int64_t d = 0; d < head_dim; d += 16) {
        uint16_t halves[16];
        _mm256_storeu_si256((__m256i *)halves, _mm512_cvtps_ph(_mm512_loadu_ps(key + d), _MM_FROUND_TO_NEAREST_INT));
        for (int64_t i = 0; i < 16; i++) page[(d + i) * HR_PAGE + slot] = halves[i];
        _mm256_storeu_si256((__m256i *)(values + d),
                            _mm512_cvtps_ph(_mm512_loadu_ps(value + d), _MM_FROUND_TO_NEAREST_INT));
    }
}

/* A few lines, and the keys that some of them look at: those of pages [first_page, ...) before `last`. */
typedef struct {
    const hr_paged_rows *rows;
    int64_t first_page, last;
    int64_t position[LINES];
    float *q;                 /* [LINES][head_dim], scaled */
    float *weights;           /* [LINES][padded] */
    int64_t padded;
    float *out[LINES];
} block;

HR_AVX512 HR_INLINE __m512 widened(const uint16_t *halves) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)halves));
}

HR_AVX512 HR_INLINE const uint16_t *page_of(const block *b, int64_t page) {
    return b->rows->cache + b->rows->pages[page] * b->rows->page_stride;
}

/* Scores of one page's keys. */
HR_AVX512 HR_INLINE void score_page(const block *b, const int lines, int64_t page) {
    const uint16_t *keys = page_of(b, page);
    const int64_t head_dim = b->rows->head_dim;
    const float *q = b->q;
    __m512 sum[LINES][2];
#pragma GCC unroll 6
    for (int i = 0; i < lines; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    for (int64_t d = 0; d < head_dim; d++) {
        const __m512 left = widened(keys + d * HR_PAGE), right = widened(keys + d * HR_PAGE + 16);
#pragma GCC unroll 6
        for (int i = 0; i < lines; i++) {
            const __m512 value = hr_set(q[i * head_dim + d]);
            sum[i][0] = _mm512_fmadd_ps(value, left, sum[i][0]);
            sum[i][1] = _mm512_fmadd_ps(value, right, sum[i][1]);
        }
    }
    float *at = b->weights + (page - b->first_page) * HR_PAGE;
#pragma GCC unroll 6
    for (int i = 0; i < lines; i++) {
        _mm512_store_ps(at + i * b->padded, sum[i][0]);
        _mm512_store_ps(at + i * b->padded + 16, sum[i][1]);
    }
}

/* Which of keys j .. j + 15 a line looks at. */
HR_AVX512 HR_INLINE __mmask16 seen(const block *b, int line, int64_t j) {
    const int64_t ends = b->position[line] + 1, window = b->rows->window;
    const __mmask16 before = hr_first(ends - j);
    return window ? before & (__mmask16)~hr_first(ends - window - j) : before;
}

/* Scores -> exp(score - line's highest), zero where it does not look, and 1 / their sum. */
HR_AVX512 HR_INLINE void softmax(const block *b, const int lines, float inverse[LINES]) {
    const int64_t first = b->first_page * HR_PAGE;
    __m512 highest[LINES], sum[LINES];
#pragma GCC unroll 6
    for (int i = 0; i < lines; i++) {
        highest[i] = hr_set(-__builtin_inff());
        sum[i] = _mm512_setzero_ps();
    }
    for (int64_t j = first; j < b->last; j += 16)
#pragma GCC unroll 6
        for (int i = 0; i < lines; i++)
            highest[i] = _mm512_mask_max_ps(highest[i], seen(b, i, j), highest[i],
                                            _mm512_load_ps(b->weights + i * b->padded + j - first));
#pragma GCC unroll 6
    for (int i = 0; i < lines; i++) highest[i] = hr_set(_mm512_reduce_max_ps(highest[i]));
    for (int64_t j = first; j < b->last; j += 16)
#pragma GCC unroll 6
        for (int i = 0; i < lines; i++) {
            float *w = b->weights + i * b->padded + j - first;
            const __m512 e = _mm512_maskz_mov_ps(seen(b, i, j), hr_exp(_mm512_sub_ps(_mm512_load_ps(w), highest[i])));
            sum[i] = _mm512_add_ps(sum[i], e);
            _mm512_store_ps(w, e);
        }
#pragma GCC unroll 6
    for (int i = 0; i < lines; i++) inverse[i] = 1.0f / _mm512_reduce_add_ps(sum[i]);
}

/* Columns of the answers: values weighted and summed, key after key. */
HR_AVX512 HR_INLINE void mix_columns(const block *b, const int lines, const int vectors, int64_t column,
                                     const float *inverse) {
    const int64_t head_dim = b->rows->head_dim, padded = b->padded;
    __m512 sum[LINES][VECTORS];
#pragma GCC unroll 6
    for (int i = 0; i < lines; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) sum[i][j] = _mm512_setzero_ps();
    for (int64_t page = b->first_page; page * HR_PAGE < b->last; page++) {
        const uint16_t *values = page_of(b, page) + HR_PAGE * head_dim + column;
        const float *weights = b->weights + (page - b->first_page) * HR_PAGE;
        const int64_t keys = hr_min(HR_PAGE, b->last - page * HR_PAGE);
        for (int64_t k = 0; k < keys; k++) {
            __m512 right[VECTORS];
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) right[j] = widened(values + k * head_dim + 16 * j);
#pragma GCC unroll 6
            for (int i = 0; i < lines; i++) {
                const __m512 left = hr_set(weights[i * padded + k]);
#pragma GCC unroll 4
                for (int j = 0; j < vectors; j++) sum[i][j] = _mm512_fmadd_ps(left, right[j], sum[i][j]);
            }
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < lines; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++)
            _mm512_storeu_ps(b->out[i] + column + 16 * j, _mm512_mul_ps(sum[i][j], hr_set(inverse[i])));
}

HR_AVX512 HR_INLINE void attend_lines(const block *b, const int lines) {
    float inverse[LINES];
    const int64_t head_dim = b->rows->head_dim;
    for (int64_t page = b->first_page; page * HR_PAGE < b->last; page++) score_page(b, lines, page);
    softmax(b, lines, inverse);
    int64_t column = 0;
    for (; column + 64 <= head_dim; column += 64) mix_columns(b, lines, 4, column, inverse);
    for (; column + 32 <= head_dim; column += 32) mix_columns(b, lines, 2, column, inverse);
    for (; column < head_dim; column += 16) mix_columns(b, lines, 1, column, inverse);
}

HR_AVX512 static void attend_block(const block *b, int64_t lines) {
    switch (lines) {
    case 1: attend_lines(b, 1); break;
    case 2: attend_lines(b, 2); break;
    case 3: attend_lines(b, 3); break;
    case 4: attend_lines(b, 4); break;
    case 5: attend_lines(b, 5); break;
    default: attend_lines(b, LINES); break;
    }
}

/* Line number `line` of the rows becomes line `i` of a block: its query scaled, its place for the answer. */
HR_AVX512 static void take_line(block *b, int64_t i, int64_t line) {
    const hr_paged_rows *r = b->rows;
    float *q = r->q + line / r->group * r->stride + line % r->group * r->head_dim;
    b->position[i] = r->position + line / r->group;
    b->out[i] = q;
    for (int64_t d = 0; d < r->head_dim; d += 16)
        _mm512_store_ps(b->q + i * r->head_dim + d, _mm512_mul_ps(_mm512_loadu_ps(q + d), hr_set(r->scale)));
}

HR_AVX512 int hr_attend_paged(const hr_paged_rows *r) {
    const int64_t lines = r->rows * r->group, most = hr_round_up(r->position + r->rows, HR_PAGE);
    float *memory = hr_scratch(HR_SLOT_ATTENTION, (size_t)(LINES * (r->head_dim + most)) * sizeof *memory);
    if (!memory) return -1;
    for (int64_t line = 0, here; line < lines; line += here) {
        /* even blocks: 8 lines are four and four, not six and two */
        const int64_t blocks = (lines - line + LINES - 1) / LINES;
        here = (lines - line + blocks - 1) / blocks;
        block b = {.rows = r, .q = memory, .weights = memory + LINES * r->head_dim};
        for (int64_t i = 0; i < here; i++) take_line(&b, i, line + i);
        b.last = b.position[here - 1] + 1;
        b.first_page = r->window && b.position[0] >= r->window ? (b.position[0] + 1 - r->window) / HR_PAGE : 0;
        b.padded = hr_round_up(b.last, HR_PAGE) - b.first_page * HR_PAGE;
        attend_block(&b, here);
    }
    return 0;
}
#endif
