/* One pass through a Llama-shaped decoder in one call: rows of many sequences in, logits out, keys and values in pages.
 *
 * Threads are started once a pass and meet at barriers. With few rows they share the outputs of every product, because
 * fetching the weights is what takes time; with many, each takes rows of its own through a layer. Either way a row's
 * answer is computed in one order that depends on its position alone, so it is the same bits alone and in company, in
 * a prompt however cut, and on however many threads.
 */
#define _GNU_SOURCE /* for placing.h */
#include "headrace.h"

#include <stdint.h>

#if defined(__x86_64__)
#include "decoder_attention.h"
#include "meeting.h"
#include "placing.h"
#include "sharing.h"
#include "vector.h"

#include <omp.h>

/* Up to so many rows each thread normalizes all of them for itself, which takes less time than to meet. */
enum { FEW_ROWS = 4 };
/* Up to so many rows AMX is slower than VNNI, which waits for weights with more of them on their way. */
enum { TOO_FEW_FOR_TILES = 2 };
/* From so many rows a thread on, each thread takes rows of its own. */
enum { OWN_ROWS = 48 };
/* Rows that go through the feed-forward together: their middle stays in the second-level cache. */
enum { ROWS_TOGETHER = 128 };
/* Rows of any layer that are quantized together at least, where there are as many. */
enum { FEWEST_TOGETHER = HR_LINES_TOGETHER / 2 };
/* Rows of a sequence that are one unit of attention, where there are many. */
enum { ATTENTION_ROWS = 32 };

/* So many pieces of a product for each thread are enough to divide it evenly; fewer are cut once more by rows, */
enum { PIECES = 8 };
/* as long as each piece keeps so many lines of int8, which is what fetching its weights is worth. */
enum { LEAST_LINES = 24 };

/* What all threads of a pass see. */
typedef struct {
    const hr_decoder *model;
    const hr_decoder_step *step;
    int64_t rows, qkv_stride;
    int *missing;             /* whether some thread got no memory */
    hr_meeting *meeting;
    hr_shared *shared;        /* for each product of a pass whose outputs are shared, for each block of its rows */
    float *x, *normed, *qkv, *delta, *wide, *gated, *last;
    int32_t *bests;           /* [wanted_rows, threads] */
    enum hr_isa isa;
} pass;

/* One thread's view of it. `x` and `normed` may be its own copies; the others begin at row `base`. */
typedef struct {
    const pass *all;
    int64_t t, n, first, last, base;
    int by_rows, few;
    float *x, *normed, *delta, *wide, *gated;
    hr_shared *shared;        /* the next one: threads come to all of them in the same order */
    int failed;
} worker;

/* What is done with rows [row, row + rows) x outputs [first, last) of a product as soon as they are there. */
typedef void (*tile_use)(worker *w, const hr_layer *layer, int64_t row, int64_t rows, int64_t first, int64_t last);

/* Floats from row to row of a matrix between layers: an odd number of cache lines, so that rows do not share sets. */
static int64_t stride_of(int64_t columns) { return (hr_round_up(columns, 16) / 16 | 1) * 16; }

/* Everybody waits for everybody. */
static void meet_all(const worker *w) { hr_meet(w->all->meeting, (int)w->n); }

/* The same, unless each has rows of its own. */
static void meet(const worker *w) {
    if (!w->by_rows) meet_all(w);
}

static int64_t outputs_of(const hr_layer *layer) { return layer->few_bit ? layer->affine.outputs : layer->int8.outputs; }

static enum hr_isa isa_for(const worker *w, int64_t rows) { return rows <= TOO_FEW_FOR_TILES ? HR_VNNI : w->all->isa; }

/* A product on its way: y = layer(x), and what is done with its answers. */
typedef struct {
    const hr_layer *layer;
    const float *x;
    int64_t x_stride, rows;
    float *y;
    int64_t y_stride;
    tile_use then;            /* NULL: nothing */
} product;

static void use_tile(worker *w, const product *p, int64_t row, int64_t rows, int64_t first, int64_t last) {
    if (p->then) p->then(w, p->layer, row, rows, first, last);
}

/* All of it, on this thread. */
static void multiply_alone(worker *w, const product *p) {
    const int64_t outputs = outputs_of(p->layer);
    w->failed |= p->layer->few_bit
                     ? hr_affine_columns(&p->layer->affine, p->x, p->x_stride, p->rows, p->y, p->y_stride, 0, outputs)
                     : hr_linear_rows(&p->layer->int8, p->x, p->x_stride, p->rows, p->y, p->y_stride, w->all->isa);
    use_tile(w, p, 0, p->rows, 0, outputs);
}

/* This thread's part of a few-bit product: panels of outputs for all rows. */
static void share_affine(worker *w, const product *p) {
    const int64_t outputs = outputs_of(p->layer);
    hr_shared *shared = w->shared++;
    for (int64_t from, to; hr_take(shared, (outputs + 63) / 64, w->n, &from, &to);) {
        const int64_t first = from * 64, last = hr_min(to * 64, outputs);
        w->failed |= hr_affine_columns(&p->layer->affine, p->x, p->x_stride, p->rows, p->y, p->y_stride, first, last);
        use_tile(w, p, 0, p->rows, first, last);
    }
}

/* Into how many parts `rows` are cut for each column. */
static int64_t parts_of(const worker *w, const hr_linear *layer, enum hr_isa isa, int64_t rows, int64_t columns) {
    const int64_t lines = layer->fine ? 2 * rows : rows;
    int64_t parts = 1;
    while (isa == HR_VNNI && columns * parts < PIECES * w->n && lines >= 2 * LEAST_LINES * parts) parts *= 2;
    return parts;
}

/* This thread's part of rows [row, row + rows) of an int8 product, which every thread quantizes for itself: that takes
 * less time than to meet. */
static void share_block(worker *w, const product *p, int64_t row, int64_t rows) {
    const hr_linear *layer = &p->layer->int8;
    const enum hr_isa isa = isa_for(w, rows);
    const int64_t unit = isa == HR_AMX ? 32 : 64, columns = (layer->outputs + unit - 1) / unit;
    const int64_t parts = parts_of(w, layer, isa, rows, columns), step = hr_round_up((rows + parts - 1) / parts, 6);
    hr_shared *shared = w->shared++;
    hr_quantized q;
    if (hr_quantize(layer, p->x + row * p->x_stride, p->x_stride, rows, isa, &q)) {
        w->failed = -1;
        return;
    }
    for (int64_t from, to; hr_take(shared, columns * parts, w->n, &from, &to);)
        for (int64_t at = from, end; at < to; at = end) {
            end = parts > 1 ? at + 1 : to;
            const int64_t first = at / parts * unit, last = hr_min((end + parts - 1) / parts * unit, layer->outputs);
            const int64_t top = hr_min(at % parts * step, rows), here = hr_min(step, rows - top);
            hr_multiply(&q, top, here, first, last, p->y + (row + top) * p->y_stride, p->y_stride);
            use_tile(w, p, row + top, here, first, last);
        }
}

/* This thread's part of a product. */
static void multiply(worker *w, const product *p) {
    if (w->by_rows) {
        multiply_alone(w, p);
    } else if (p->layer->few_bit) {
        share_affine(w, p);
    } else {
        const int64_t together = hr_rows_together(&p->layer->int8);
        for (int64_t row = 0; row < p->rows; row += together) share_block(w, p, row, hr_min(together, p->rows - row));
    }
}

/* out = x / rms(x) * weight, over n values. */
HR_AVX512 static void rms_norm(const float *x, int64_t n, const float *weight, float eps, float *out) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t j = 0; j < n; j += 16) {
        const __m512 v = _mm512_maskz_loadu_ps(hr_first(n - j), x + j);
        squares = _mm512_fmadd_ps(v, v, squares);
    }
    const __m512 inverse = hr_set(1.0f / __builtin_sqrtf(_mm512_reduce_add_ps(squares) / (float)n + eps));
    for (int64_t j = 0; j < n; j += 16) {
        const __mmask16 mask = hr_first(n - j);
        const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + j), inverse);
        _mm512_mask_storeu_ps(out + j, mask, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, weight + j)));
    }
}

HR_AVX512 static void add(float *x, const float *delta, int64_t n) {
    for (int64_t j = 0; j < n; j += 16) {
        const __mmask16 mask = hr_first(n - j);
        const __m512 v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, x + j), _mm512_maskz_loadu_ps(mask, delta + j));
        _mm512_mask_storeu_ps(x + j, mask, v);
    }
}

/* Rows [first, last) that are this thread's: x += delta, normed = norm(x). */
static void add_and_norm(worker *w, int64_t first, int64_t last, const float *weight) {
    const hr_decoder *m = w->all->model;
    for (int64_t row = first; row < last; row++) {
        float *x = w->x + row * m->width;
        add(x, w->delta + (row - w->base) * m->width, m->width);
        rms_norm(x, m->width, weight, m->eps, w->normed + row * m->width);
    }
    if (!w->few) meet(w);
}

/* gated = silu(gate) * up, for pairs of 16 of the columns. */
HR_AVX512 static void gate(worker *w, const hr_layer *up, int64_t row, int64_t rows, int64_t first, int64_t last) {
    const int64_t outputs = outputs_of(up), wide = stride_of(outputs), narrow = stride_of(outputs / 2);
    for (int64_t end = row + rows; row < end; row++) {
        const float *in = w->wide + row * wide;
        float *out = w->gated + row * narrow;
        for (int64_t j = first; j < last; j += 32)
            _mm512_storeu_ps(out + j / 2, _mm512_mul_ps(hr_silu(_mm512_loadu_ps(in + j)), _mm512_loadu_ps(in + j + 16)));
    }
}

HR_AVX512 static void embed_row(const hr_decoder *m, int64_t token, float *out) {
    for (int64_t j = 0; j < m->width; j += 16) {
        const __mmask16 mask = hr_first(m->width - j);
        __m512 v;
        if (m->table_codes) {
            const __m128i codes = _mm_maskz_loadu_epi8(mask, m->table_codes + token * m->width + j);
            v = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)), hr_set(m->table_scale[token]));
        } else {
            v = _mm512_maskz_loadu_ps(mask, m->table + token * m->width + j);
        }
        _mm512_mask_storeu_ps(out + j, mask, v);
    }
}

static void embed(worker *w, const float *weight) {
    const hr_decoder *m = w->all->model;
    for (int64_t row = w->first; row < w->last; row++) {
        embed_row(m, w->all->step->tokens[row], w->x + row * m->width);
        rms_norm(w->x + row * m->width, m->width, weight, m->eps, w->normed + row * m->width);
    }
    if (!w->few) meet(w);
}

/* Pairs of values half a head apart turn by their position's angles. */
HR_AVX512 static void rotate(float *x, int64_t half, const float *cosines, const float *sines) {
    for (int64_t j = 0; j < half; j += 16) {
        const __mmask16 mask = hr_first(half - j);
        const __m512 a = _mm512_maskz_loadu_ps(mask, x + j), b = _mm512_maskz_loadu_ps(mask, x + half + j);
        const __m512 c = _mm512_maskz_loadu_ps(mask, cosines + j), s = _mm512_maskz_loadu_ps(mask, sines + j);
        _mm512_mask_storeu_ps(x + j, mask, _mm512_fnmadd_ps(b, s, _mm512_mul_ps(a, c)));
        _mm512_mask_storeu_ps(x + half + j, mask, _mm512_fmadd_ps(a, s, _mm512_mul_ps(b, c)));
    }
}

static void norm_and_rotate(const hr_decoder *m, const float *norm, int64_t position, float *x) {
    const int64_t half = m->head_dim / 2;
    if (norm) rms_norm(x, m->head_dim, norm, m->eps, x);
    rotate(x, half, m->cosines + position * half, m->sines + position * half);
}

/* Halves of a page that belong to one head of keys and values. */
static int64_t head_page(const hr_decoder *m) { return 2 * m->head_dim * HR_PAGE; }

/* The row of a sequence becomes ready for attention: queries turned, keys and values of the head in their page. */
static void store_row(const pass *p, const hr_decoder_layer *layer, int64_t s, int64_t row, int64_t kv_head) {
    const hr_decoder *m = p->model;
    const int64_t position = p->step->positions[s] + row - p->step->starts[s], group = layer->heads / layer->kv_heads;
    const int64_t page = p->step->pages[s * p->step->page_stride + position / HR_PAGE];
    float *q = p->qkv + row * p->qkv_stride + kv_head * group * m->head_dim;
    float *k = p->qkv + row * p->qkv_stride + (layer->heads + kv_head) * m->head_dim;
    for (int64_t h = 0; h < group; h++) norm_and_rotate(m, layer->query_norm, position, q + h * m->head_dim);
    norm_and_rotate(m, layer->key_norm, position, k);
    hr_cache_row(layer->cache + (page * layer->kv_heads + kv_head) * head_page(m), position % HR_PAGE, m->head_dim, k,
                 k + layer->kv_heads * m->head_dim);
}

/* Rows [first, last) of a sequence attend with the heads that share `kv_head`. */
static int attend(const pass *p, const hr_decoder_layer *layer, int64_t s, int64_t first, int64_t last,
                  int64_t kv_head) {
    const hr_decoder *m = p->model;
    const hr_decoder_step *step = p->step;
    const int64_t group = layer->heads / layer->kv_heads;
    const hr_paged_rows rows = {
        .q = p->qkv + first * p->qkv_stride + kv_head * group * m->head_dim,
        .stride = p->qkv_stride, .rows = last - first, .group = group, .head_dim = m->head_dim,
        .position = step->positions[s] + first - step->starts[s], .window = layer->window, .scale = m->scale,
        .pages = step->pages + s * step->page_stride, .cache = layer->cache + kv_head * head_page(m),
        .page_stride = layer->kv_heads * head_page(m)};
    return hr_attend_paged(&rows);
}

/* Rows of this thread's own are made ready for attention. */
static void store_own_rows(const worker *w, const hr_decoder_layer *layer) {
    const hr_decoder_step *step = w->all->step;
    for (int64_t s = 0; s < step->sequences; s++) {
        const int64_t from = step->starts[s], to = step->starts[s + 1];
        for (int64_t row = from > w->first ? from : w->first; row < hr_min(to, w->last); row++)
            for (int64_t head = 0; head < layer->kv_heads; head++)
                store_row(w->all, layer, s, row, head);
    }
}

/* Few rows: a sequence and a head of keys are one unit, which stores and attends. */
static void attend_sequences(worker *w, const hr_decoder_layer *layer) {
    const pass *p = w->all;
    const int64_t heads = layer->kv_heads;
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t unit = 0; unit < p->step->sequences * heads; unit++) {
        const int64_t s = unit / heads, first = p->step->starts[s], last = p->step->starts[s + 1];
        for (int64_t row = first; row < last; row++) store_row(p, layer, s, row, unit % heads);
        w->failed |= attend(p, layer, s, first, last, unit % heads);
    }
    meet_all(w);
}

/* Many rows: all are stored before any attends. A unit is a few rows of a sequence, and a head of keys. */
static void attend_blocks(worker *w, const hr_decoder_layer *layer) {
    const pass *p = w->all;
    const int64_t heads = layer->kv_heads;
    store_own_rows(w, layer);
    meet_all(w);
    for (int64_t s = 0; s < p->step->sequences; s++) {
        const int64_t first = p->step->starts[s], last = p->step->starts[s + 1];
        const int64_t blocks = (last - first + ATTENTION_ROWS - 1) / ATTENTION_ROWS;
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t unit = 0; unit < blocks * heads; unit++) {
            const int64_t row = last - (unit / heads + 1) * ATTENTION_ROWS;
            w->failed |= attend(p, layer, s, row > first ? row : first, row + ATTENTION_ROWS, unit % heads);
        }
    }
    meet_all(w);
}

/* Rows from mixed values to the next layer's normed input. */
static void after_attention(worker *w, const hr_decoder_layer *layer, int64_t first, int64_t rows, const float *norm) {
    const pass *p = w->all;
    const hr_decoder *m = p->model;
    const int64_t mine = w->by_rows ? first : w->first, mine_last = w->by_rows ? first + rows : w->last;
    const int64_t wide = stride_of(2 * layer->middle), narrow = stride_of(layer->middle), width = m->width;
    const product out = {&layer->out, p->qkv + first * p->qkv_stride, p->qkv_stride, rows, w->delta, width, NULL};
    const product up = {&layer->up, w->normed + first * width, width, rows, w->wide, wide, gate};
    const product down = {&layer->down, w->gated, narrow, rows, w->delta, width, NULL};
    w->base = first;
    multiply(w, &out);
    meet(w);
    add_and_norm(w, mine, mine_last, layer->feed_forward_norm);
    multiply(w, &up);
    meet(w);
    multiply(w, &down);
    meet(w);
    add_and_norm(w, mine, mine_last, norm);
}

static void run_layer(worker *w, const hr_decoder_layer *layer, const float *next_norm) {
    const pass *p = w->all;
    const int64_t width = p->model->width, first = w->by_rows ? w->first : 0, last = w->by_rows ? w->last : p->rows;
    const product qkv = {&layer->qkv, w->normed + first * width, width, last - first, p->qkv + first * p->qkv_stride,
                         p->qkv_stride, NULL};
    multiply(w, &qkv);
    meet(w);
    if (w->by_rows) attend_blocks(w, layer);
    else attend_sequences(w, layer);
    const int64_t together = w->by_rows ? ROWS_TOGETHER : p->rows;
    for (int64_t row = first; row < last; row += together)
        after_attention(w, layer, row, hr_min(together, last - row), next_norm);
}

/* Where the first of the largest values [first, last) is, or the first that is no number; -1 if there are none. */
HR_AVX512 static int32_t best_of(const float *values, int64_t first, int64_t last) {
    const __m512 least = hr_set(-__builtin_inff());
    __m512 most = least;
    __mmask16 odd = 0;
    for (int64_t j = first; j < last; j += 16) {
        const __m512 v = _mm512_mask_loadu_ps(least, hr_first(last - j), values + j);
        odd |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        most = _mm512_max_ps(most, v);
    }
    const __m512 top = hr_set(_mm512_reduce_max_ps(most));
    for (int64_t j = first; j < last; j += 16) {
        const __m512 v = _mm512_mask_loadu_ps(least, hr_first(last - j), values + j);
        const __mmask16 found = odd ? _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q) : _mm512_cmp_ps_mask(v, top, _CMP_EQ_OQ);
        if (found & hr_first(last - j)) return (int32_t)(j + __builtin_ctz(found));
    }
    return -1;
}

/* Which of two places of a row has what comes first: the first NaN, else the first of the largest. Negative: none. */
static int32_t better(const float *row, int32_t a, int32_t b) {
    if (a < 0 || b < 0) return a < 0 ? b : a;
    const int a_odd = row[a] != row[a], b_odd = row[b] != row[b];
    if (a_odd != b_odd) return a_odd ? a : b;
    if (a_odd || row[a] == row[b]) return a < b ? a : b;
    return row[a] > row[b] ? a : b;
}

/* This thread looks through the logits that it has just written. */
static void note_best(worker *w, const hr_layer *head, int64_t row, int64_t rows, int64_t first, int64_t last) {
    const hr_decoder_step *step = w->all->step;
    (void)head;
    for (int64_t i = row; i < row + rows; i++) {
        const float *logits = step->logits + i * step->logits_stride;
        int32_t *best = w->all->bests + i * w->n + w->t;
        *best = better(logits, *best, best_of(logits, first, last));
    }
}

/* The best token of each wanted row, of those that each thread has found. */
static void find_best(const worker *w) {
    const hr_decoder_step *step = w->all->step;
    for (int64_t i = w->t ? step->wanted_rows : 0; i < step->wanted_rows; i++) {
        const int32_t *found = w->all->bests + i * w->n;
        step->best[i] = found[0];
        for (int64_t t = 1; t < w->n; t++)
            step->best[i] = better(step->logits + i * step->logits_stride, step->best[i], found[t]);
    }
}

/* Logits of the wanted rows: their outputs are shared, however many rows there are. */
static void run_head(worker *w) {
    const pass *p = w->all;
    const hr_decoder *m = p->model;
    const int64_t wanted = p->step->wanted_rows, first = wanted * w->t / w->n, last = wanted * (w->t + 1) / w->n;
    const product logits = {&m->head, p->last, m->width, wanted, p->step->logits, p->step->logits_stride, note_best};
    meet_all(w);
    for (int64_t i = first; i < last; i++)
        __builtin_memcpy(p->last + i * m->width, w->normed + p->step->wanted[i] * m->width, (size_t)m->width * 4);
    for (int64_t i = 0; i < wanted; i++) p->bests[i * w->n + w->t] = -1;
    meet_all(w);
    w->by_rows = 0;
    multiply(w, &logits);
    meet_all(w);
}

/* Floats between buffers that start cache lines of their own. */
static int64_t room(int64_t rows, int64_t columns) { return hr_round_up(rows * columns, 16); }

static int64_t block_room(const hr_decoder *m, int64_t rows) {
    return room(rows, m->width) + rows * (stride_of(2 * m->most_middle) + stride_of(m->most_middle));
}

static void use_block(const hr_decoder *m, int64_t rows, float *memory, float **delta, float **wide, float **gated) {
    *delta = memory;
    *wide = *delta + room(rows, m->width);
    *gated = *wide + rows * stride_of(2 * m->most_middle);
}

/* This thread's part of a pass, with memory of its own where it needs some. */
static int prepare(worker *w, const pass *p) {
    const hr_decoder *m = p->model;
    w->t = omp_get_thread_num();
    w->n = omp_get_num_threads();
    w->by_rows = p->rows >= OWN_ROWS * w->n;
    w->few = p->rows <= FEW_ROWS;
    w->first = w->few ? 0 : p->rows * w->t / w->n;
    w->last = w->few ? p->rows : p->rows * (w->t + 1) / w->n;
    w->shared = p->shared;
    w->x = p->x, w->normed = p->normed, w->delta = p->delta, w->wide = p->wide, w->gated = p->gated;
    if (!w->few && !w->by_rows) return 0;
    const int64_t copies = room(p->rows, m->width), block = block_room(m, ROWS_TOGETHER);
    float *own = hr_scratch(HR_SLOT_ROWS, (size_t)(w->few ? 2 * copies : block) * sizeof *own);
    if (!own) return -1;
    if (w->few) w->x = own, w->normed = own + copies;
    else use_block(m, ROWS_TOGETHER, own, &w->delta, &w->wide, &w->gated);
    return 0;
}

static void run_layers(worker *w) {
    const hr_decoder *m = w->all->model;
    embed(w, m->layers[0].attention_norm);
    for (int64_t i = 0; i < m->depth; i++)
        run_layer(w, m->layers + i, i + 1 < m->depth ? m->layers[i + 1].attention_norm : m->final_norm);
    run_head(w);
    find_best(w);
}

static int run_worker(const pass *p) {
    worker w = {.all = p};
    hr_place place;
    hr_take_place(&place, omp_get_thread_num(), omp_get_num_threads());
    const int missing = prepare(&w, p);
    /* all leave together: who stays behind would wait at a barrier for ever */
#pragma omp atomic
    *p->missing |= missing;
    meet_all(&w);
    if (!*p->missing) run_layers(&w);
    hr_leave_place(&place);
    return *p->missing ? -1 : w.failed;
}

/* How many products, or blocks of their rows, a pass may share. */
static int64_t shared_products(const hr_decoder *m, int64_t rows, int64_t wanted) {
    return 4 * m->depth * ((rows + FEWEST_TOGETHER - 1) / FEWEST_TOGETHER) + (wanted + FEWEST_TOGETHER - 1) / FEWEST_TOGETHER;
}

/* Compute a step. Everything that `step` names must exist: nothing is checked here. Returns 0, or -1 when memory is
 * out, and then the pages of the step's rows hold nothing. */
HR_EXPORT int hr_decoder_run(const hr_decoder *m, const hr_decoder_step *step, int isa, int threads) {
    const int64_t rows = step->starts[step->sequences], block = hr_min(rows, OWN_ROWS * threads);
    const int64_t stride = stride_of(m->most_qkv), copies = room(rows, m->width);
    const int64_t wanted = room(step->wanted_rows, m->width), bests = room(step->wanted_rows, threads);
    const int64_t floats = 2 * copies + room(rows, stride) + wanted + bests + block_room(m, block);
    const size_t counters = (size_t)shared_products(m, block, step->wanted_rows) * sizeof(hr_shared);
    hr_shared *shared = hr_scratch(HR_SLOT_STEP, counters + (size_t)floats * sizeof(float));
    if (!shared) return -1;
    float *memory = (float *)((char *)shared + counters);
    __builtin_memset(shared, 0, counters);
    int failed = 0, missing = 0;
    hr_meeting meeting = {0};
    pass p = {.model = m, .step = step, .rows = rows, .qkv_stride = stride, .missing = &missing,
              .meeting = &meeting, .shared = shared, .isa = (enum hr_isa)isa};
    p.x = memory;
    p.normed = p.x + copies;
    p.qkv = p.normed + copies;
    p.last = p.qkv + room(rows, stride);
    p.bests = (int32_t *)(p.last + wanted);
    use_block(m, block, p.last + wanted + bests, &p.delta, &p.wide, &p.gated);
#pragma omp parallel num_threads(threads) reduction(| : failed)
    failed |= run_worker(&p);
    return failed ? -1 : 0;
}
#endif
