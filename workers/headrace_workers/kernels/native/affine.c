/* The linear layer of few-bit weights and floating-point inputs: `y = x @ ((code - zero) * scale).T + bias`.
 *
 * Codes less their zero are whole numbers, exact in fp32; a group's products are summed and then scaled, so nothing is
 * rounded but sums. Every answer is one chain of additions over the inputs in their order, so it is the same bits alone
 * and in company. For few rows codes are widened in registers, and an eighth of fp32's bytes is read; for many, a panel
 * of 64 outputs is widened once into the cache and serves all of them.
 */
#include "headrace.h"

#if defined(__x86_64__)
#include "vector.h"

#include <omp.h>

enum { PANEL = 64, ROWS = 6, DEPTH = 8 };
/* Up to so many rows widening the codes again for every six of them is cheaper than keeping a panel. */
enum { FEW_ROWS = 12 };
/* Below this many multiplications a second thread costs more than it brings. */
enum { WORTH_A_THREAD = 1 << 20 };

typedef struct {
    const float *x;
    int64_t x_stride, rows;
    float *y;
    int64_t y_stride;
} batch;

/* Where the codes of group `group` of a panel begin. */
HR_INLINE const uint8_t *codes_of(const hr_affine *layer, int64_t panel, int64_t group, const int order) {
    const int64_t groups = (layer->inputs + layer->group - 1) / layer->group;
    if (order == HR_BYTES)
        return (const uint8_t *)layer->codes + (panel * layer->inputs + group * layer->group) * PANEL;
    return (const uint8_t *)layer->codes +
           (panel * groups + group) * (hr_round_up(layer->group, DEPTH) / DEPTH) * PANEL * 4;
}

HR_INLINE const float *of_group(const float *values, const hr_affine *layer, int64_t panel, int64_t group) {
    return values + (panel * ((layer->inputs + layer->group - 1) / layer->group) + group) * PANEL;
}

/* The codes of `count` inputs of a group, input by input, less their zeros: `use(i, w)` for each. */
#define FOR_EACH_INPUT(codes, count, zero, order, use)                                                                 \
    if (order == HR_BYTES) {                                                                                           \
        for (int64_t i = 0; i < count; i++) {                                                                          \
            __m512 w[4];                                                                                               \
            widen_bytes(codes + i * PANEL, zero, w);                                                                   \
            use(i, w)                                                                                                  \
        }                                                                                                              \
    } else {                                                                                                           \
        for (int64_t first = 0; first < count; first += DEPTH) {                                                       \
            const uint8_t *words = codes + first * (PANEL / 2);                                                        \
            _Pragma("GCC unroll 8") for (int64_t i = 0; i < DEPTH; i++) {                                              \
                __m512 w[4];                                                                                           \
                if (first + i >= count) break;                                                                         \
                widen_nibbles(words, (int)i, zero, order, w);                                                          \
                use((first + i), w)                                                                                    \
            }                                                                                                          \
        }                                                                                                              \
    }

HR_AVX512 HR_INLINE void widen_bytes(const uint8_t *codes, const float *zero, __m512 w[4]) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + 16 * j)));
        w[j] = _mm512_sub_ps(_mm512_cvtepi32_ps(code), _mm512_loadu_ps(zero + 16 * j));
    }
}

/* A lookup reads only the lowest four bits of a word, so one shift brings each nibble where it is needed. */
HR_AVX512 HR_INLINE void widen_nibbles(const uint8_t *words, const int i, const float *zero, const int order,
                                       __m512 w[4]) {
    const float base = order == HR_MIDDLE_NIBBLES ? -8.0f : 0.0f;
    const __m512 numbers = _mm512_add_ps(_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                         hr_set(base));
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const __m512i word = _mm512_loadu_si512(words + 64 * j);
        w[j] = _mm512_permutexvar_ps(_mm512_srli_epi32(word, 4 * (unsigned)i), numbers);
        if (order == HR_NIBBLES) w[j] = _mm512_sub_ps(w[j], _mm512_loadu_ps(zero + 16 * j));
    }
}

HR_AVX512 HR_INLINE void add_products(const float *x, int64_t x_stride, const int rows, const __m512 w[4],
                                      __m512 sum[ROWS][4]) {
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        const __m512 value = hr_set(x[i * x_stride]);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) sum[i][j] = _mm512_fmadd_ps(value, w[j], sum[i][j]);
    }
}

HR_AVX512 HR_INLINE void clear(const int rows, __m512 sum[ROWS][4]) {
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) sum[i][j] = _mm512_setzero_ps();
}

/* total += sum * scale, at the end of a group. */
HR_AVX512 HR_INLINE void add_group(const float *scale, const int rows, __m512 sum[ROWS][4], float *total) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const __m512 s = _mm512_loadu_ps(scale + 16 * j);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            float *at = total + i * PANEL + 16 * j;
            _mm512_store_ps(at, _mm512_fmadd_ps(sum[i][j], s, _mm512_load_ps(at)));
        }
    }
}

/* A tile of totals becomes answers, but for the activation. */
HR_AVX512 HR_INLINE void store(const hr_affine *layer, int64_t panel, const int rows, const float *total, float *y,
                               int64_t y_stride) {
    const int64_t column = panel * PANEL;
    for (int j = 0; j < 4; j++) {
        const __mmask16 mask = hr_first(layer->outputs - column - 16 * j);
        const __m512 bias = _mm512_loadu_ps(layer->bias + column + 16 * j);
        for (int i = 0; i < rows; i++)
            _mm512_mask_storeu_ps(y + i * y_stride + column + 16 * j, mask,
                                  _mm512_add_ps(_mm512_load_ps(total + i * PANEL + 16 * j), bias));
    }
}

#define ADD_NARROW(i, w) add_products(x + (i), b->x_stride, rows, w, sum);

/* Rows x one panel, codes widened on the way. */
HR_AVX512 HR_INLINE void narrow(const hr_affine *layer, int64_t panel, const batch *b, int64_t row, const int order,
                                const int rows) {
    float total[ROWS * PANEL] __attribute__((aligned(64))) = {0};
    for (int64_t group = 0, first = 0; first < layer->inputs; group++, first += layer->group) {
        const int64_t count = hr_min(layer->group, layer->inputs - first);
        const uint8_t *codes = codes_of(layer, panel, group, order);
        const float *zero = of_group(layer->zero, layer, panel, group), *x = b->x + row * b->x_stride + first;
        __m512 sum[ROWS][4];
        clear(rows, sum);
        FOR_EACH_INPUT(codes, count, zero, order, ADD_NARROW)
        add_group(of_group(layer->scale, layer, panel, group), rows, sum, total);
    }
    store(layer, panel, rows, total, b->y + row * b->y_stride, b->y_stride);
}

#define STORE_WIDE(i, w)                                                                                               \
    _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) _mm512_store_ps(wide + (at + (i)) * PANEL + 16 * j, w[j]);

/* The codes of a panel, less their zeros, as floats: [k][64]. */
HR_AVX512 HR_INLINE void widen_panel(const hr_affine *layer, int64_t panel, const int order, float *wide) {
    for (int64_t group = 0, at = 0; at < layer->inputs; group++, at += layer->group) {
        const int64_t count = hr_min(layer->group, layer->inputs - at);
        const uint8_t *codes = codes_of(layer, panel, group, order);
        const float *zero = of_group(layer->zero, layer, panel, group);
        FOR_EACH_INPUT(codes, count, zero, order, STORE_WIDE)
    }
}

/* Rows x one panel that was widened before. */
HR_AVX512 HR_INLINE void broad(const hr_affine *layer, int64_t panel, const float *wide, const batch *b, int64_t row,
                               const int rows) {
    const float *x = b->x + row * b->x_stride;
    float total[ROWS * PANEL] __attribute__((aligned(64))) = {0};
    for (int64_t group = 0, first = 0; first < layer->inputs; group++, first += layer->group) {
        const int64_t last = hr_min(first + layer->group, layer->inputs);
        __m512 sum[ROWS][4];
        clear(rows, sum);
        for (int64_t at = first; at < last; at++) {
            __m512 w[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) w[j] = _mm512_load_ps(wide + at * PANEL + 16 * j);
            add_products(x + at, b->x_stride, rows, w, sum);
        }
        add_group(of_group(layer->scale, layer, panel, group), rows, sum, total);
    }
    store(layer, panel, rows, total, b->y + row * b->y_stride, b->y_stride);
}

#define WITH_ROWS(rows, call, ...)                                                                                     \
    switch (rows) {                                                                                                    \
    case 1: call(__VA_ARGS__, 1); break;                                                                               \
    case 2: call(__VA_ARGS__, 2); break;                                                                               \
    case 3: call(__VA_ARGS__, 3); break;                                                                               \
    case 4: call(__VA_ARGS__, 4); break;                                                                               \
    case 5: call(__VA_ARGS__, 5); break;                                                                               \
    default: call(__VA_ARGS__, ROWS); break;                                                                           \
    }

HR_AVX512 static void few_bytes(const hr_affine *layer, int64_t panel, const batch *b, int64_t row, int64_t rows) {
    WITH_ROWS(rows, narrow, layer, panel, b, row, HR_BYTES)
}

HR_AVX512 static void few_nibbles(const hr_affine *layer, int64_t panel, const batch *b, int64_t row, int64_t rows) {
    WITH_ROWS(rows, narrow, layer, panel, b, row, HR_NIBBLES)
}

HR_AVX512 static void few_middles(const hr_affine *layer, int64_t panel, const batch *b, int64_t row, int64_t rows) {
    WITH_ROWS(rows, narrow, layer, panel, b, row, HR_MIDDLE_NIBBLES)
}

HR_AVX512 static void few_rows(const hr_affine *layer, int64_t panel, const batch *b) {
    for (int64_t row = 0; row < b->rows; row += ROWS) {
        const int64_t rows = hr_min(b->rows - row, ROWS);
        switch (layer->order) {
        case HR_NIBBLES: few_nibbles(layer, panel, b, row, rows); break;
        case HR_MIDDLE_NIBBLES: few_middles(layer, panel, b, row, rows); break;
        default: few_bytes(layer, panel, b, row, rows); break;
        }
    }
}

HR_AVX512 static void many_rows(const hr_affine *layer, int64_t panel, const batch *b, float *wide) {
    switch (layer->order) {
    case HR_NIBBLES: widen_panel(layer, panel, HR_NIBBLES, wide); break;
    case HR_MIDDLE_NIBBLES: widen_panel(layer, panel, HR_MIDDLE_NIBBLES, wide); break;
    default: widen_panel(layer, panel, HR_BYTES, wide); break;
    }
    for (int64_t row = 0; row < b->rows; row += ROWS)
        WITH_ROWS(hr_min(b->rows - row, ROWS), broad, layer, panel, wide, b, row)
}

HR_AVX512 HR_INLINE void activate(const batch *b, int64_t first, int64_t last, const int activation) {
    for (int64_t row = 0; row < b->rows; row++)
        for (int64_t j = first; j < last; j += 16) {
            float *y = b->y + row * b->y_stride + j;
            const __mmask16 mask = hr_first(last - j);
            _mm512_mask_storeu_ps(y, mask, hr_activate(_mm512_maskz_loadu_ps(mask, y), activation));
        }
}

/* The layer's activation, over outputs [first, last) of all rows. */
HR_AVX512 static void finish(const hr_affine *layer, const batch *b, int64_t first, int64_t last) {
    switch (layer->activation) {
    case HR_RELU: activate(b, first, last, HR_RELU); break;
    case HR_GELU: activate(b, first, last, HR_GELU); break;
    case HR_GELU_TANH: activate(b, first, last, HR_GELU_TANH); break;
    case HR_SILU: activate(b, first, last, HR_SILU); break;
    default: break;
    }
}

/* Panels [first, last) of the layer for all rows, on the calling thread. */
HR_AVX512 static int run_panels(const hr_affine *layer, const batch *b, int64_t first, int64_t last) {
    float *wide = NULL;
    if (b->rows > FEW_ROWS && !(wide = hr_scratch(HR_SLOT_PANEL, (size_t)(layer->inputs * PANEL) * sizeof *wide))) return -1;
    for (int64_t panel = first; panel < last; panel++) {
        if (wide) many_rows(layer, panel, b, wide);
        else few_rows(layer, panel, b);
        finish(layer, b, panel * PANEL, hr_min((panel + 1) * PANEL, layer->outputs));
    }
    return 0;
}

int hr_affine_columns(const hr_affine *layer, const float *x, int64_t x_stride, int64_t rows, float *y,
                      int64_t y_stride, int64_t first, int64_t last) {
    const batch b = {x, x_stride, rows, y, y_stride};
    return rows ? run_panels(layer, &b, first / PANEL, hr_round_up(last, PANEL) / PANEL) : 0;
}

/* y = activation(x @ weight.T + bias) for `rows` rows. Strides are in floats. Returns 0, or -1 when memory is out. */
HR_EXPORT int hr_affine_run(const hr_affine *layer, const float *x, int64_t x_stride, int64_t rows, float *y,
                            int64_t y_stride, int threads) {
    const batch b = {x, x_stride, rows, y, y_stride};
    const int64_t panels = hr_round_up(layer->outputs, PANEL) / PANEL;
    if (rows == 0) return 0;
    if (threads <= 1 || rows * layer->outputs * layer->inputs < WORTH_A_THREAD) return run_panels(layer, &b, 0, panels);
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        const int64_t t = omp_get_thread_num(), n = omp_get_num_threads();
        failed |= run_panels(layer, &b, panels * t / n, panels * (t + 1) / n);
    }
    return failed ? -1 : 0;
}
#endif
