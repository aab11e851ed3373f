/* Attention of new rows over keys and values in pages, as the decoder calls it. */
#ifndef HEADRACE_DECODER_ATTENTION_H
#define HEADRACE_DECODER_ATTENTION_H

#include "headrace.h"

/* Tokens of a page: PAGE_TOKENS in Python. */
enum { HR_PAGE = 32 };

/* Rows of one sequence that follow each other, and the heads that share one head of keys and values. */
typedef struct {
    float *q;                 /* turned queries, [rows][group][head_dim], rows `stride` floats apart; answers go there */
    int64_t stride, rows, group, head_dim;
    int64_t position;         /* of the first row */
    int64_t window;           /* how many tokens a token sees, itself included; 0: all before it */
    float scale;
    const int32_t *pages;     /* of the sequence */
    const uint16_t *cache;    /* page 0 of this head of keys and values: [head_dim][HR_PAGE], then [HR_PAGE][head_dim] */
    int64_t page_stride;      /* halves from page to page */
} hr_paged_rows;

/* Keys and values of one token to fp16, into place `slot` of a page. */
void hr_cache_row(uint16_t *page, int64_t slot, int64_t head_dim, const float *key, const float *value);

/* Their answers, in the place of the queries. Returns 0, or -1 when memory is out. */
int hr_attend_paged(const hr_paged_rows *rows);

#endif
