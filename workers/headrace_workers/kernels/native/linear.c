/* The int8 linear layer: each row is quantized by its own largest value or by a calibrated range, multiplied in
 * integers and scaled back.
 *
 * Integer sums are exact in any order, and everything else is done lane by lane in one fixed order, so a row's answer
 * is the same bits on AMX and on VNNI, alone and in company, on one thread and on many.
 */
#include "headrace.h"

#include <string.h>

HR_EXPORT void hr_pack(const int8_t *weight, int64_t outputs, int64_t inputs, int8_t *packed, int32_t *offset) {
    int64_t kp = hr_round_up(inputs, 64), np = hr_round_up(outputs, 64);
    memset(packed, 0, (size_t)(kp * np));
    memset(offset, 0, (size_t)np * sizeof *offset);
    for (int64_t n = 0; n < outputs; n++) {
        int8_t *column = packed + n / 16 * kp * 16 + n % 16 * 4;
        int32_t sum = 0;
        for (int64_t k = 0; k < inputs; k++) {
            int8_t w = weight[n * inputs + k];
            column[k / 4 * 64 + k % 4] = w;
            sum += w;
        }
        offset[n] = -128 * sum;
    }
}

#if defined(__x86_64__)
#include "vector.h"

#include <omp.h>

/* Below this many multiplications a second thread costs more than it brings. */
enum { WORTH_A_THREAD = 1 << 21 };
/* How many times finer the steps of a row's second line are: what rounding leaves is at most half a step. */
#define FINER 254.0f
/* Beside the activations: rows of two lines, and no activation behind them. */
enum { FINE = -1 };
/* Answers of this many bytes leave the caches before anyone reads them. AMX is faster than they can be fetched for
 * writing, so it writes past the caches; VNNI is not, and gains nothing. */
enum { TOO_LARGE_FOR_CACHES = 1 << 20 };

/* Bits of |x| order like integers, and NaN above infinity above all numbers: one maximum finds both. */
HR_AVX512 HR_INLINE __m512i magnitude(__m512 x) {
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}

HR_AVX512 static float largest_magnitude(const float *x, int64_t k) {
    __m512i m0 = _mm512_setzero_si512(), m1 = m0, m2 = m0, m3 = m0;
    int64_t j = 0;
    for (; j + 64 <= k; j += 64) {
        m0 = _mm512_max_epi32(m0, magnitude(_mm512_loadu_ps(x + j)));
        m1 = _mm512_max_epi32(m1, magnitude(_mm512_loadu_ps(x + j + 16)));
        m2 = _mm512_max_epi32(m2, magnitude(_mm512_loadu_ps(x + j + 32)));
        m3 = _mm512_max_epi32(m3, magnitude(_mm512_loadu_ps(x + j + 48)));
    }
    for (; j < k; j += 16) m0 = _mm512_max_epi32(m0, magnitude(_mm512_maskz_loadu_ps(hr_first(k - j), x + j)));
    m0 = _mm512_max_epi32(_mm512_max_epi32(m0, m1), _mm512_max_epi32(m2, m3));
    union { int bits; float value; } largest = {.bits = _mm512_reduce_max_epi32(m0)};
    return largest.value;
}

HR_AVX512 HR_INLINE __m512i rounded(__m512 x, __m512 inverse) { return _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)); }

/* 16 values of x, of which only the first `left` are read. */
HR_AVX512 HR_INLINE __m512 load_16(const float *x, int64_t left) {
    return left <= 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(hr_first(left), x);
}

/* 64 numbers to int8; what lies beyond its range goes to its ends. */
HR_AVX512 HR_INLINE __m512i packed_64(const __m512i v[4]) {
    /* packing works within 128-bit lanes; the permutation puts its fours back in order */
    __m512i low = _mm512_packs_epi32(v[0], v[1]), high = _mm512_packs_epi32(v[2], v[3]);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high));
}

/* 64 quantized values of x, of which only the first `left` are read. */
HR_AVX512 HR_INLINE __m512i quantized_64(const float *x, int64_t left, __m512 inverse) {
    __m512i v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) v[i] = rounded(load_16(x + 16 * i, left - 16 * i), inverse);
    return packed_64(v);
}

/* One row to int8 (plus 128 where `flip` says so: VNNI multiplies u8 by s8). Returns the row's scale; NaN for a row
 * that holds NaN or infinity, whose values then count as zero. */
HR_AVX512 static float quantize_row(const float *x, int64_t k, int64_t kp, uint8_t *out, __m512i flip) {
    float largest = largest_magnitude(x, k);
    if (!(largest <= __FLT_MAX__)) {
        for (int64_t j = 0; j < kp; j += 64) _mm512_store_si512(out + j, flip);
        return __builtin_nanf("");
    }
    float scale = largest / 127.0f;
    if (!(scale > 1e-20f)) scale = 1e-20f;
    __m512 inverse = hr_set(1.0f / scale);
    int64_t j = 0;
    for (; j + 64 <= k; j += 64) _mm512_store_si512(out + j, _mm512_xor_si512(flip, quantized_64(x + j, 64, inverse)));
    if (j < k) _mm512_store_si512(out + j, _mm512_xor_si512(flip, quantized_64(x + j, k - j, inverse)));
    return scale;
}

/* As above, by the layer's calibrated range: what lies outside of it is cut off. Padding needs no zeros, as its weights
 * have them. Numbers are bounded before they are converted, because a conversion that overflows is the smallest int. */
HR_AVX512 static float quantize_row_by_range(const hr_linear *layer, const float *x, int64_t kp, uint8_t *out,
                                             __m512i flip) {
    enum { NAN_OR_INFINITE = 0x01 | 0x80 | 0x08 | 0x10 };
    const __m512 inverse = hr_set(1.0f / layer->input_scale), most = hr_set(65536.0f), least = hr_set(-65536.0f);
    const __m512i zero = _mm512_set1_epi32(layer->input_zero);
    __mmask16 unusable = 0;
    for (int64_t j = 0; j < kp; j += 64) {
        __m512i v[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const __m512 part = load_16(x + j + 16 * i, layer->inputs - j - 16 * i);
            unusable |= _mm512_fpclass_ps_mask(part, NAN_OR_INFINITE);
            const __m512 scaled = _mm512_min_ps(most, _mm512_max_ps(least, _mm512_mul_ps(part, inverse)));
            v[i] = _mm512_add_epi32(_mm512_cvtps_epi32(scaled), zero);
        }
        _mm512_store_si512(out + j, _mm512_xor_si512(flip, packed_64(v)));
    }
    return unusable ? __builtin_nanf("") : layer->input_scale;
}

/* int32 sum -> answer. The order of these operations is the torch fallback's. */
HR_AVX512 HR_INLINE __m512 finish(__m512i sum, __m512 row_scale, __m512 scale, __m512 bias, const int activation) {
    __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(row_scale, scale));
    return hr_activate(_mm512_add_ps(y, bias), activation);
}

/* One row in two lines: to int8, and what that left to int8 in steps FINER times as fine, so that a row has about
 * sixteen bits. Returns the scale of the finer steps. */
HR_AVX512 static float quantize_row_finely(const float *x, int64_t k, int64_t kp, uint8_t *out, __m512i flip) {
    const float scale = quantize_row(x, k, kp, out, flip);
    if (!(scale <= __FLT_MAX__)) {
        for (int64_t j = 0; j < kp; j += 64) _mm512_store_si512(out + kp + j, flip);
        return scale;
    }
    const __m512 step = hr_set(scale), inverse = hr_set(1.0f / scale), finer = hr_set(FINER / scale);
    for (int64_t j = 0; j < kp; j += 64) {
        __m512i v[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const __m512 part = load_16(x + j + 16 * i, k - j - 16 * i);
            v[i] = rounded(_mm512_fnmadd_ps(_mm512_cvtepi32_ps(rounded(part, inverse)), step, part), finer);
        }
        _mm512_store_si512(out + kp + j, _mm512_xor_si512(flip, packed_64(v)));
    }
    return scale / FINER;
}

typedef struct {
    const hr_linear *layer;
    const uint8_t *q;      /* quantized rows, kp bytes each; two lines a row where the layer is fine */
    const float *row_scale;
    int64_t rows, kp, first, last;
    float *y;
    int64_t y_stride;
    int past_caches;       /* whole cache lines are written without being read */
} product;

/* What a row's codes and those of what they left come to, in steps of the latter. */
HR_AVX512 HR_INLINE __m512 joined(const int32_t *coarse, const int32_t *fine) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(coarse)), hr_set(FINER),
                           _mm512_cvtepi32_ps(_mm512_load_si512(fine)));
}

/* The same as finish_columns for rows of two lines each. */
HR_AVX512 HR_INLINE void finish_fine(const product *p, int64_t line, int64_t lines, int64_t column, const int32_t *sums,
                                     int64_t sums_stride) {
    const hr_linear *layer = p->layer;
    const __mmask16 left = hr_first(layer->outputs - column), right = hr_first(layer->outputs - column - 16);
    const __m512 left_scale = _mm512_loadu_ps(layer->scale + column), left_bias = _mm512_loadu_ps(layer->bias + column);
    const __m512 right_scale = _mm512_loadu_ps(layer->scale + column + 16);
    const __m512 right_bias = _mm512_loadu_ps(layer->bias + column + 16);
    const int64_t stride = p->y_stride;
    const float *scales = p->row_scale + line / 2;
    float *y = p->y + line / 2 * stride + column;
    for (int64_t i = 0; i < lines / 2; i++, sums += 2 * sums_stride, y += stride) {
        const __m512 scale = hr_set(scales[i]);
        const __m512 a = _mm512_mul_ps(joined(sums, sums + sums_stride), _mm512_mul_ps(scale, left_scale));
        const __m512 b = _mm512_mul_ps(joined(sums + 16, sums + sums_stride + 16), _mm512_mul_ps(scale, right_scale));
        _mm512_mask_storeu_ps(y, left, _mm512_add_ps(a, left_bias));
        _mm512_mask_storeu_ps(y + 16, right, _mm512_add_ps(b, right_bias));
    }
}

/* Rows [row, row + rows) x 32 outputs of sums, `sums_stride` apart, become answers. */
HR_AVX512 HR_INLINE void finish_columns(const product *p, int64_t row, int64_t rows, int64_t column,
                                        const int32_t *sums, int64_t sums_stride, const int activation) {
    if (activation == FINE) {
        finish_fine(p, row, rows, column, sums, sums_stride);
        return;
    }
    const hr_linear *layer = p->layer;
    const __mmask16 left = hr_first(layer->outputs - column), right = hr_first(layer->outputs - column - 16);
    const __m512 left_scale = _mm512_loadu_ps(layer->scale + column), left_bias = _mm512_loadu_ps(layer->bias + column);
    const __m512 right_scale = _mm512_loadu_ps(layer->scale + column + 16);
    const __m512 right_bias = _mm512_loadu_ps(layer->bias + column + 16);
    /* copies: for all the compiler knows, writing an answer could change p */
    const int64_t stride = p->y_stride;
    const int past_caches = p->past_caches;
    const float *scales = p->row_scale + row;
    float *y = p->y + row * stride + column;
    for (int64_t i = 0; i < rows; i++, sums += sums_stride, y += stride) {
        const __m512 scale = hr_set(scales[i]);
        const __m512 a = finish(_mm512_load_si512(sums), scale, left_scale, left_bias, activation);
        const __m512 b = finish(_mm512_load_si512(sums + 16), scale, right_scale, right_bias, activation);
        if (past_caches) {
            _mm512_stream_ps(y, a);
            if (right) _mm512_stream_ps(y + 16, b);
        } else {
            _mm512_mask_storeu_ps(y, left, a);
            _mm512_mask_storeu_ps(y + 16, right, b);
        }
    }
}

enum { VNNI_ROWS = 6, VNNI_COLUMNS = 64 };

/* `rows` x 64 sums: 24 registers of them, four weights, one broadcast activation. Nothing else may be done in here, or
 * the compiler runs out of registers and the loop is half as fast. */
HR_AVX512 HR_INLINE void vnni_sums(const product *p, const int rows, int64_t row, int64_t column, int32_t *sums) {
    const int64_t kp = p->kp, panel = kp * 16;
    const uint8_t *a = p->q + row * kp;
    const int8_t *w = p->layer->weight + column * kp;
    __m512i sum[VNNI_ROWS][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m512i start = _mm512_loadu_si512(p->layer->offset + column + 16 * j);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) sum[i][j] = start;
    }
    for (int64_t k = 0; k < kp; k += 4) {
        const int8_t *at = w + k * 16;
        __m512i b0 = _mm512_loadu_si512(at), b1 = _mm512_loadu_si512(at + panel);
        __m512i b2 = _mm512_loadu_si512(at + 2 * panel), b3 = _mm512_loadu_si512(at + 3 * panel);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            int32_t four;
            __builtin_memcpy(&four, a + i * kp + k, 4);
            __m512i x = _mm512_set1_epi32(four);
            sum[i][0] = _mm512_dpbusd_epi32(sum[i][0], x, b0);
            sum[i][1] = _mm512_dpbusd_epi32(sum[i][1], x, b1);
            sum[i][2] = _mm512_dpbusd_epi32(sum[i][2], x, b2);
            sum[i][3] = _mm512_dpbusd_epi32(sum[i][3], x, b3);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) _mm512_store_si512(sums + i * VNNI_COLUMNS + 16 * j, sum[i][j]);
}

HR_AVX512 static void vnni_square(const product *p, int64_t rows, int64_t row, int64_t column, int32_t *sums) {
    switch (rows) {
    case 1: vnni_sums(p, 1, row, column, sums); break;
    case 2: vnni_sums(p, 2, row, column, sums); break;
    case 3: vnni_sums(p, 3, row, column, sums); break;
    case 4: vnni_sums(p, 4, row, column, sums); break;
    case 5: vnni_sums(p, 5, row, column, sums); break;
    default: vnni_sums(p, VNNI_ROWS, row, column, sums); break;
    }
}

HR_AVX512 HR_INLINE void vnni_product(const product *p, const int activation) {
    int32_t sums[VNNI_ROWS * VNNI_COLUMNS] __attribute__((aligned(64)));
    for (int64_t column = p->first; column < p->last; column += VNNI_COLUMNS)
        for (int64_t row = 0; row < p->rows; row += VNNI_ROWS) {
            const int64_t rows = hr_min(p->rows - row, VNNI_ROWS);
            vnni_square(p, rows, row, column, sums);
            finish_columns(p, row, rows, column, sums, VNNI_COLUMNS, activation);
            finish_columns(p, row, rows, column + 32, sums + 32, VNNI_COLUMNS, activation);
        }
}

typedef struct __attribute__((packed)) {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

HR_AMX_TARGET static void configure_tiles(void) {
    tile_shapes shapes;
    memset(&shapes, 0, sizeof shapes);
    shapes.palette = 1;
    for (int i = 0; i < 8; i++) {
        shapes.row_bytes[i] = 64;
        shapes.rows[i] = 16;
    }
    /* gcc does not know that the load reads the struct and would drop the stores above */
    __asm__ volatile("" : : "r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
}

HR_AMX_TARGET static void release_tiles(void) { _tile_release(); }

/* The two kilobytes of weights that the next 32 outputs need where these are at `at`. Tiles are loaded line by line and
 * wait for each, and the processor does not guess the next column in time. */
HR_AMX_TARGET HR_INLINE void fetch_next(const int8_t *at, int64_t kp) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        _mm_prefetch((const char *)(at + 2 * kp * 16 + 64 * i), _MM_HINT_T1);
        _mm_prefetch((const char *)(at + 3 * kp * 16 + 64 * i), _MM_HINT_T1);
    }
}

/* 16 or 32 rows x 32 outputs of sums into `sums` (32 x 32). Rows beyond p->rows are there but mean nothing. */
HR_AMX_TARGET HR_INLINE void amx_sums(const product *p, int64_t row, int64_t column, const int two, int32_t *sums) {
    const int64_t kp = p->kp;
    const uint8_t *a = p->q + row * kp;
    const int8_t *w = p->layer->weight + column * kp;
    _tile_zero(0);
    _tile_zero(1);
    if (two) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < kp; k += 64) {
        if (row == 0) fetch_next(w + k * 16, kp);
        _tile_loadd(4, a + k, kp);
        _tile_loadd(6, w + k * 16, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, w + kp * 16 + k * 16, 64);
        _tile_dpbssd(1, 4, 7);
        if (two) {
            _tile_loadd(5, a + 16 * kp + k, kp);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
    }
    _tile_stored(0, sums, 128);
    _tile_stored(1, sums + 16, 128);
    if (two) {
        _tile_stored(2, sums + 16 * 32, 128);
        _tile_stored(3, sums + 16 * 32 + 16, 128);
    }
}

/* Columns outside, rows inside: each weight is fetched once and serves all rows of the block. */
HR_AMX_TARGET HR_INLINE void amx_product(const product *p, const int activation) {
    int32_t sums[32 * 32] __attribute__((aligned(64)));
    for (int64_t column = p->first; column < p->last; column += 32)
        for (int64_t row = 0; row < p->rows; row += 32) {
            if (row + 16 < p->rows) amx_sums(p, row, column, 1, sums);
            else amx_sums(p, row, column, 0, sums);
            finish_columns(p, row, hr_min(p->rows - row, 32), column, sums, 32, activation);
        }
}

#define FOR_EACH_ACTIVATION(call, p)                                                                                   \
    switch ((p)->layer->fine ? FINE : (p)->layer->activation) {                                                        \
    case FINE: call(p, FINE); break;                                                                                   \
    case HR_RELU: call(p, HR_RELU); break;                                                                             \
    case HR_GELU: call(p, HR_GELU); break;                                                                             \
    case HR_GELU_TANH: call(p, HR_GELU_TANH); break;                                                                   \
    case HR_SILU: call(p, HR_SILU); break;                                                                             \
    default: call(p, HR_IDENTITY); break;                                                                              \
    }

HR_AVX512 static void multiply_vnni(const product *p) { FOR_EACH_ACTIVATION(vnni_product, p) }
HR_AMX_TARGET static void multiply_amx(const product *p) { FOR_EACH_ACTIVATION(amx_product, p) }

typedef struct {
    const float *x;
    int64_t x_stride, rows;
    float *y;
    int64_t y_stride;
} batch;

/* One row as its layer wants it. Returns its scale. */
HR_AVX512 static float quantized(const hr_linear *layer, const float *x, int64_t kp, uint8_t *out, __m512i flip) {
    if (layer->input_scale > 0) return quantize_row_by_range(layer, x, kp, out, flip);
    return layer->fine ? quantize_row_finely(x, layer->inputs, kp, out, flip)
                       : quantize_row(x, layer->inputs, kp, out, flip);
}

int64_t hr_rows_together(const hr_linear *layer) { return layer->fine ? HR_LINES_TOGETHER / 2 : HR_LINES_TOGETHER; }

HR_AVX512 int hr_quantize(const hr_linear *layer, const float *x, int64_t x_stride, int64_t rows, enum hr_isa isa,
                          hr_quantized *out) {
    const int64_t kp = hr_round_up(layer->inputs, 64), lines = layer->fine ? 2 : 1;
    const int64_t most = hr_round_up(lines * rows, 32);
    uint8_t *q = hr_scratch(HR_SLOT_QUANTIZED, (size_t)(most * kp + HR_LINES_TOGETHER * 4));
    if (!q) return -1;
    float *scales = (float *)(q + most * kp);
    const __m512i flip = _mm512_set1_epi8(isa == HR_AMX ? 0 : -128);
    for (int64_t i = 0; i < rows; i++) scales[i] = quantized(layer, x + i * x_stride, kp, q + i * lines * kp, flip);
    *out = (hr_quantized){layer, q, scales, isa};
    return 0;
}

/* Rows [row, row + rows) x columns [first, last) of what was quantized; AMX's tiles are configured. */
static void multiply_rows(const hr_quantized *q, int64_t row, int64_t rows, int64_t first, int64_t last, float *y,
                          int64_t y_stride, int past_caches) {
    const int64_t kp = hr_round_up(q->layer->inputs, 64), lines = q->layer->fine ? 2 : 1;
    const product p = {q->layer, q->codes + row * lines * kp, q->scales + row, rows * lines, kp, first, last, y,
                       y_stride, past_caches};
    if (q->isa == HR_AMX) multiply_amx(&p);
    else multiply_vnni(&p);
}

void hr_multiply(const hr_quantized *q, int64_t row, int64_t rows, int64_t first, int64_t last, float *y,
                 int64_t y_stride) {
    if (q->isa == HR_AMX) configure_tiles();
    multiply_rows(q, row, rows, first, last, y, y_stride, 0);
    if (q->isa == HR_AMX) release_tiles();
}

/* Columns [first, last) of the layer for all rows of a batch, on the calling thread. */
HR_AVX512 static int run_batch(const hr_linear *layer, const batch *b, int64_t first, int64_t last, enum hr_isa isa,
                               int past_caches) {
    const int64_t together = hr_rows_together(layer);
    int failed = 0;
    if (isa == HR_AMX) configure_tiles();
    for (int64_t row = 0; row < b->rows && !failed; row += together) {
        const int64_t here = hr_min(b->rows - row, together);
        hr_quantized q;
        failed = hr_quantize(layer, b->x + row * b->x_stride, b->x_stride, here, isa, &q);
        if (!failed) multiply_rows(&q, 0, here, first, last, b->y + row * b->y_stride, b->y_stride, past_caches);
    }
    if (isa == HR_AMX) release_tiles();
    if (past_caches) _mm_sfence();
    return failed;
}

int hr_linear_rows(const hr_linear *layer, const float *x, int64_t x_stride, int64_t rows, float *y, int64_t y_stride,
                   enum hr_isa isa) {
    const batch all = {x, x_stride, rows, y, y_stride};
    return run_batch(layer, &all, 0, layer->outputs, isa, 0);
}

/* Whether every 16 answers are a cache line of their own, and there are too many of them to keep. */
static int writes_past_caches(const hr_linear *layer, const batch *b, enum hr_isa isa) {
    return isa == HR_AMX && !layer->fine && b->rows * layer->outputs * 4 >= TOO_LARGE_FOR_CACHES &&
           layer->outputs % 16 == 0 && b->y_stride % 16 == 0 && (uintptr_t)b->y % 64 == 0;
}

/* Thread t of n gets rows where there are many, else columns; either way every answer is computed alike. */
static int run_share(const hr_linear *layer, const batch *b, enum hr_isa isa, int past_caches, int64_t t, int64_t n) {
    enum { STEP = 32 };
    if (b->rows >= 2 * STEP * n) {
        const int64_t tiles = (b->rows + STEP - 1) / STEP, first = tiles * t / n * STEP;
        const int64_t last = hr_min(tiles * (t + 1) / n * STEP, b->rows);
        const batch mine = {b->x + first * b->x_stride, b->x_stride, last - first, b->y + first * b->y_stride,
                            b->y_stride};
        return run_batch(layer, &mine, 0, layer->outputs, isa, past_caches);
    }
    const int64_t columns = hr_round_up(layer->outputs, 64) / 64;
    const int64_t first = columns * t / n * 64, last = hr_min(columns * (t + 1) / n * 64, layer->outputs);
    return first < last ? run_batch(layer, b, first, last, isa, past_caches) : 0;
}

/* y = activation(x @ weight.T * scale + bias) for `rows` rows. Returns 0, or -1 when memory is out. */
HR_EXPORT int hr_linear_run(const hr_linear *layer, const float *x, int64_t x_stride, int64_t rows, float *y,
                            int64_t y_stride, int isa, int threads) {
    const batch all = {x, x_stride, rows, y, y_stride};
    const int past_caches = writes_past_caches(layer, &all, (enum hr_isa)isa);
    if (threads <= 1 || rows * layer->outputs * layer->inputs < WORTH_A_THREAD)
        return run_batch(layer, &all, 0, layer->outputs, (enum hr_isa)isa, past_caches);
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    failed |= run_share(layer, &all, (enum hr_isa)isa, past_caches, omp_get_thread_num(), omp_get_num_threads());
    return failed ? -1 : 0;
}
#endif
