/* What the native kernels share: instruction sets, the layer descriptions Python fills in, and scratch memory.
 *
 * Every kernel names its own instruction set, so the library is built without -march and chooses where it runs.
 * Compile with -ffp-contract=off: the integer kernels promise the very bits of the torch fallback.
 */
#ifndef HEADRACE_H
#define HEADRACE_H

#include <stddef.h>
#include <stdint.h>

#define HR_EXPORT __attribute__((visibility("default")))
#define HR_INLINE static inline __attribute__((always_inline))

/* Grows when a struct or a function's meaning changes; Python refuses a library of another number. */
enum { HR_ABI = 4 };

enum hr_isa { HR_NONE = 0, HR_VNNI = 1, HR_AMX = 2 };

enum hr_activation { HR_IDENTITY = 0, HR_RELU = 1, HR_GELU = 2, HR_GELU_TANH = 3, HR_SILU = 4 };

/* One int8 linear layer. `weight` is [ceil(n/64)*4][kp/4][16][4]: sixteen outputs side by side, four inputs deep,
 * which is what a row of a VNNI register and of an AMX tile both are. */
typedef struct {
    int64_t outputs;          /* n */
    int64_t inputs;           /* k */
    const int8_t *weight;     /* packed, n padded to 64 and k (kp) to 64 with zeros */
    const int32_t *offset;    /* per output: -128 * sum of its weights, which u8 activations owe */
    const float *scale;       /* per output, padded to 64 */
    const float *bias;        /* per output, padded to 64; zeros where there is none */
    int64_t activation;       /* enum hr_activation */
    float input_scale;        /* of every row, where it was calibrated; 0: each row has its own */
    int32_t input_zero;       /* the int8 code of 0.0 in calibrated rows; `bias` makes up for it */
    int64_t fine;             /* whether rows are rounded to about 16 bits, in two lines of int8; no activation then */
} hr_linear;

/* How codes lie in memory. A panel is 64 outputs. BYTES: for each input 64 codes. NIBBLES: for each 8 inputs 64 words of
 * 32 bits, the first input in the lowest four; every group begins a word. MIDDLE_NIBBLES: the same, and zero is 8. */
enum hr_codes { HR_BYTES = 0, HR_NIBBLES = 1, HR_MIDDLE_NIBBLES = 2 };

/* One linear layer of floating-point inputs and few-bit weights, `(code - zero) * scale`. */
typedef struct {
    int64_t outputs;          /* n */
    int64_t inputs;           /* k */
    int64_t group;            /* inputs that share a scale */
    int64_t order;            /* enum hr_codes */
    const void *codes;        /* [panels] of the above */
    const float *scale;       /* [panels][groups][64] */
    const float *zero;        /* [panels][groups][64] */
    const float *bias;        /* per output, padded to 64 */
    int64_t activation;       /* enum hr_activation */
} hr_affine;

/* Packed attention: rows of q, k, v and out are tokens; head h of a row begins h * head_dim floats in. */
typedef struct {
    const float *q, *k, *v;
    float *out;
    int64_t q_stride, k_stride, v_stride, out_stride; /* floats from one token to the next */
    const int32_t *starts;    /* sequences + 1 row numbers; sequence s is starts[s] .. starts[s + 1] */
    int64_t sequences, heads, head_dim;
    int64_t window;           /* how far a token looks to either side; negative: as far as its sequence goes */
    float scale;
} hr_attention;

typedef struct {
    const float *weight, *bias;
    float eps;
} hr_norm;

/* One post-norm transformer block: BERT, RoBERTa, ELECTRA, DistilBERT and their kin. */
typedef struct {
    hr_linear qkv, out, up, down;
    hr_norm attention_norm, output_norm;
    int64_t heads, head_dim;
    float scale;
} hr_block;

/* A layer of either kind: which one, then both, of which only that one is filled in. */
typedef struct {
    int64_t few_bit;
    hr_linear int8;
    hr_affine affine;
} hr_layer;

/* One layer of a Llama-shaped decoder. `up` has gate and up in turn, 16 outputs of the one, 16 of the other. */
typedef struct {
    hr_layer qkv, out, up, down;
    const float *attention_norm, *feed_forward_norm;
    const float *query_norm, *key_norm; /* [head_dim]; NULL where heads are not normalized */
    int64_t heads, kv_heads, middle;
    int64_t window;           /* how many tokens a token sees, itself included; 0: all before it */
    uint16_t *cache;          /* fp16 [pages][kv_heads]: keys [head_dim][32], then values [32][head_dim] */
} hr_decoder_layer;

typedef struct {
    const hr_decoder_layer *layers;
    int64_t depth, width, head_dim;
    int64_t most_qkv, most_middle; /* outputs of the widest layer's `qkv`, and its feed-forward's width */
    float eps, scale;
    const float *table;       /* [vocabulary, width]; NULL where `table_codes` with a scale for each row stand for it */
    const int8_t *table_codes;
    const float *table_scale;
    const float *final_norm;
    hr_layer head;
    const float *cosines, *sines; /* [positions, head_dim / 2] */
} hr_decoder;

/* What one pass computes: sequence s has rows starts[s] .. starts[s + 1], the first of them at positions[s]. */
typedef struct {
    const int32_t *tokens, *starts, *positions;
    const int32_t *pages;     /* [sequences, page_stride] */
    int64_t sequences, page_stride;
    const int32_t *wanted;    /* rows whose logits are asked for */
    int64_t wanted_rows;
    float *logits;            /* [wanted_rows, vocabulary], rows `logits_stride` floats apart */
    int64_t logits_stride;
    int32_t *best;            /* [wanted_rows]: which logit is the first of the largest, or the first that is NaN */
} hr_decoder_step;

/* The calling thread's scratch memory number `slot`, at least `bytes` large, 64-byte aligned. It keeps its size until
 * the thread ends, so a hot path never allocates. NULL when memory is out. */
enum hr_slot { HR_SLOT_QUANTIZED, HR_SLOT_ATTENTION, HR_SLOT_ROWS, HR_SLOT_SHARED, HR_SLOT_PANEL, HR_SLOT_STEP, HR_SLOTS };
void *hr_scratch(enum hr_slot slot, size_t bytes);

HR_INLINE int64_t hr_round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
HR_INLINE int64_t hr_min(int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows through one layer, on the calling thread or on several. Each row's answer depends on that row alone. Strides are
 * in floats. Return 0, or -1 when memory is out. */
int hr_linear_rows(const hr_linear *layer, const float *x, int64_t x_stride, int64_t rows, float *y, int64_t y_stride,
                   enum hr_isa isa);
int hr_linear_run(const hr_linear *layer, const float *x, int64_t x_stride, int64_t rows, float *y, int64_t y_stride,
                  int isa, int threads);
int hr_attention_run(const hr_attention *attention, int threads);

/* Rows as their layer multiplies them, in the calling thread's scratch memory until it quantizes others. */
typedef struct {
    const hr_linear *layer;
    const uint8_t *codes;
    const float *scales;
    enum hr_isa isa;
} hr_quantized;

/* Lines of int8 that are quantized at a time: they stay in the second-level cache beside the weights. */
enum { HR_LINES_TOGETHER = 128 };
/* How many rows that is; half as many for a layer of two lines a row. */
int64_t hr_rows_together(const hr_linear *layer);
int hr_quantize(const hr_linear *layer, const float *x, int64_t x_stride, int64_t rows, enum hr_isa isa,
                hr_quantized *out);

/* Outputs [first, last) of rows [row, row + rows) of what was quantized, to `y`, where that row's outputs begin. On the
 * calling thread; `first` is a multiple of 64, or of 32 for AMX, which wants multiples of 16 for `row`. */
void hr_multiply(const hr_quantized *q, int64_t row, int64_t rows, int64_t first, int64_t last, float *y,
                 int64_t y_stride);
/* Outputs [first, last) of a layer for all rows, on the calling thread; `first` is a multiple of 64. */
int hr_affine_columns(const hr_affine *layer, const float *x, int64_t x_stride, int64_t rows, float *y,
                      int64_t y_stride, int64_t first, int64_t last);

#endif
