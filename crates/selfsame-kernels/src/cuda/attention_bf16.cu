// What attention.cu does, for bf16 on tensor cores: a warp's 16 rows, their scores and their sums
// stay in registers (Dao 2023), and a block holds as many rows of the other side as its launch
// says: all of them up to 208 tokens, so that warps need not wait for one another.
//
// Shapes as there. The gradient of the queries comes first: it also computes delta, the product of
// a query's output, less the bias of the values, and its gradient, [B, H, N].
//
// Biases are added to no row of the other side:
// - the keys' changes all scores of a query alike, which softmax does not see;
// - the values' comes to every output, as weights have the sum 1;
// - the queries get theirs in place, from the one warp that reads them going forward.

#include "device.cuh"
#include "tensor_core.cuh"

// Rows of a warp.
#define TILE 16u
// Keys whose scores a warp holds at a time.
#define KEYS 64u
// Most threads of a block (launch/attention.rs).
#define MAX_THREADS 224
#define LOG2_E 1.4426950408889634f

// Elements from row to row of what a block holds: padded, so that rows start in different banks.
template <unsigned D> struct Stride { static const unsigned value = D + 8; };

__device__ inline float infinity() { return -negative_infinity(); }

// Starts to copy up to `most` rows of D elements into the block's memory; zeros beyond the last
// token, up to the next multiple of 16.
template <unsigned D>
__device__ void copy_rows(bf16 *to, const bf16 *from, size_t from_stride, unsigned first,
                          unsigned most, unsigned tokens) {
    const unsigned each = 8, pieces = D / each;
    const unsigned rows = smaller((tokens - first + TILE - 1) / TILE * TILE, most);
    for (unsigned i = threadIdx.x; i < rows * pieces; i += blockDim.x) {
        const unsigned row = i / pieces, piece = i % pieces;
        const bool is_token = first + row < tokens;
        // Not even the address of a row that is not there is computed.
        const size_t at = is_token ? (first + row) * from_stride + piece * each : 0;
        start_copy(to + row * Stride<D>::value + piece * each, from + at, is_token);
    }
}

// A warp's rows as left factors; zeros beyond the last token.
template <unsigned D>
__device__ void load_left(unsigned (*left)[4], const bf16 *from, size_t stride, unsigned first,
                          unsigned tokens) {
    UNROLL
    for (unsigned k = 0; k < D / 16; k++) {
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            const unsigned row = first + GROUP + i % 2 * 8, column = k * 16 + PAIR + i / 2 * 8;
            left[k][i] = row < tokens ? *(const unsigned *)(from + row * stride + column) : 0;
        }
    }
}

// Adds a bias to a warp's rows, here and where they lie.
template <unsigned D>
__device__ void add_bias(unsigned (*left)[4], bf16 *to, size_t stride, const float *bias,
                         unsigned first, unsigned tokens) {
    UNROLL
    for (unsigned k = 0; k < D / 16; k++) {
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            const unsigned row = first + GROUP + i % 2 * 8, column = k * 16 + PAIR + i / 2 * 8;
            const float2 b = load_pair(bias + column);
            if (row < tokens) {
                const float low = __int_as_float(left[k][i] << 16);
                const float high = __int_as_float(left[k][i] & 0xffff0000u);
                left[k][i] = pack(low + b.x, high + b.y);
                *(unsigned *)(to + row * stride + column) = left[k][i];
            }
        }
    }
}

// scores [16, 16], in two tiles, = left [16, D] · rows [16, D]ᵀ
template <unsigned D>
__device__ void multiply_rows(float (*scores)[4], const unsigned (*left)[4], const bf16 *rows) {
    UNROLL
    for (unsigned i = 0; i < 4; i++) {
        scores[0][i] = scores[1][i] = 0.0f;
    }
    UNROLL
    for (unsigned k = 0; k < D / 16; k++) {
        unsigned right[4];
        load_transposed(right, rows + k * 16, Stride<D>::value);
        multiply_add(scores[0], left[k], right);
        multiply_add(scores[1], left[k], right + 2);
    }
}

// sums [16, D] += weights [16, 16], in two tiles, · rows [16, D]
template <unsigned D>
__device__ void add_product(float (*sums)[4], const float (*weights)[4], const bf16 *rows) {
    unsigned left[4];
    UNROLL
    for (unsigned i = 0; i < 4; i++) {
        left[i] = pack(weights[i / 2][i % 2 * 2], weights[i / 2][i % 2 * 2 + 1]);
    }
    UNROLL
    for (unsigned j = 0; j < D / 16; j++) {
        unsigned right[4];
        load_right(right, rows + j * 16, Stride<D>::value);
        multiply_add(sums[2 * j], left, right);
        multiply_add(sums[2 * j + 1], left, right + 2);
    }
}

// The same value in the four lanes that share rows.
template <class Op> __device__ inline float over_columns(float x) {
    x = Op::of(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return Op::of(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// Writes a warp's [16, D]: each row times its factor, and a bias if there is one.
template <unsigned D>
__device__ void write_rows(const float (*sums)[4], const float *factors, const float *bias,
                           bf16 *to, size_t stride, unsigned first, unsigned tokens) {
    UNROLL
    for (unsigned half = 0; half < 2; half++) {
        const unsigned row = first + GROUP + half * 8;
        if (row < tokens) {
            UNROLL
            for (unsigned j = 0; j < D / 8; j++) {
                float2 pair;
                pair.x = sums[j][2 * half] * factors[half];
                pair.y = sums[j][2 * half + 1] * factors[half];
                if (bias) {
                    const float2 b = load_pair(bias + j * 8 + PAIR);
                    pair.x += b.x;
                    pair.y += b.y;
                }
                store_pair(to + row * stride + j * 8 + PAIR, pair);
            }
        }
    }
}

template <unsigned D> __device__ void clear(float (*sums)[4]) {
    UNROLL
    for (unsigned j = 0; j < D / 8; j++) {
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            sums[j][i] = 0.0f;
        }
    }
}

// The first row of a warp.
__device__ inline unsigned first_row() {
    return (blockIdx.y * (blockDim.x / WARP) + threadIdx.x / WARP) * TILE;
}

// Where the rows of a block's image and head are; `packed` and `own` are the offsets of the queries'
// first row and of the output's.
template <unsigned D> struct Rows {
    const bf16 *q, *k, *v;
    const float *q_bias, *v_bias;
    size_t packed_stride, packed, own_stride, own;

    __device__ Rows(const bf16 *qkv, const float *bias, unsigned tokens, unsigned heads) {
        const unsigned image = blockIdx.x / heads, head = blockIdx.x % heads, width = heads * D;
        packed_stride = 3 * (size_t)width;
        packed = image * (size_t)tokens * packed_stride + head * D;
        own_stride = width;
        own = image * (size_t)tokens * own_stride + head * D;
        q = qkv + packed;
        k = q + width;
        v = k + width;
        q_bias = bias ? bias + head * D : 0;
        v_bias = bias ? q_bias + 2 * width : 0;
    }
};

// Two matrices of the other side, `held` rows of them at a time.
template <unsigned D> struct Others {
    bf16 *first, *second;
    const bf16 *first_rows, *second_rows;
    size_t first_stride, second_stride;
    unsigned held, tokens;

    __device__ Others(unsigned char *shared, unsigned held_rows, unsigned num_tokens) {
        held = held_rows;
        tokens = num_tokens;
        first = (bf16 *)shared;
        second = first + held * Stride<D>::value;
    }

    // The memory behind them.
    __device__ float *end() const { return (float *)(second + held * Stride<D>::value); }

    // Starts to copy the rows from `start` on, when the block is done with those before.
    __device__ void fetch(unsigned start) const {
        if (start > 0) {
            __syncthreads();
        }
        copy_rows<D>(first, first_rows, first_stride, start, held, tokens);
        copy_rows<D>(second, second_rows, second_stride, start, held, tokens);
    }

    // Waits for them.
    __device__ void take() const {
        wait_for_copies();
        __syncthreads();
    }

    // Behind the last of them, `start` the first.
    __device__ unsigned end_of(unsigned start) const { return smaller(tokens, start + held); }
};

template <unsigned D>
__device__ void forward(bf16 *qkv, const float *bias, bf16 *ys, float *lse, unsigned tokens,
                        unsigned heads, unsigned held, float scale) {
    DYNAMIC_SHARED(shared);
    const Rows<D> rows(qkv, bias, tokens, heads);
    Others<D> others(shared, held, tokens);
    others.first_rows = rows.k;
    others.second_rows = rows.v;
    others.first_stride = others.second_stride = rows.packed_stride;
    const unsigned first = first_row();
    others.fetch(0);
    unsigned q[D / 16][4];
    load_left<D>(q, rows.q, rows.packed_stride, first, tokens);
    if (rows.q_bias) {
        add_bias<D>(q, qkv + rows.packed, rows.packed_stride, rows.q_bias, first, tokens);
    }
    // Of the rows group and group + 8.
    float largest[2], sum[2], sums[D / 8][4];
    UNROLL
    for (unsigned half = 0; half < 2; half++) {
        largest[half] = negative_infinity();
        sum[half] = 0.0f;
    }
    clear<D>(sums);
    scale *= LOG2_E;
    for (unsigned start = 0; start < tokens; start += held) {
        if (start > 0) {
            others.fetch(start);
        }
        others.take();
        // A warp without any token only helps to copy.
        const unsigned end = first < tokens ? others.end_of(start) : start;
        for (unsigned from = start; from < end; from += KEYS) {
            const bf16 *k = others.first + (from - start) * Stride<D>::value;
            const bf16 *v = others.second + (from - start) * Stride<D>::value;
            float scores[KEYS / 8][4];
            float now[2] = {largest[0], largest[1]};
            UNROLL
            for (unsigned j = 0; j < KEYS / 8; j += 2) {
                if (from + j * 8 < end) {
                    multiply_rows<D>(scores + j, q, k + j * 8 * Stride<D>::value);
                    const bool all = from + j * 8 + TILE <= tokens;
                    UNROLL
                    for (unsigned i = 0; i < 8; i++) {
                        const unsigned key = from + (j + i / 4) * 8 + PAIR + i % 2;
                        float &score = scores[j + i / 4][i % 4];
                        if (!all && key >= tokens) {
                            score = negative_infinity();
                        }
                        now[i % 4 / 2] = Max::of(score, now[i % 4 / 2]);
                    }
                }
            }
            float shift[2];
            UNROLL
            for (unsigned half = 0; half < 2; half++) {
                now[half] = over_columns<Max>(now[half]);
                shift[half] = now[half] * scale;
                const float keep = power_of_two(largest[half] * scale - shift[half]);
                largest[half] = now[half];
                sum[half] *= keep;
                UNROLL
                for (unsigned j = 0; j < D / 8; j++) {
                    sums[j][2 * half] *= keep;
                    sums[j][2 * half + 1] *= keep;
                }
            }
            UNROLL
            for (unsigned j = 0; j < KEYS / 8; j += 2) {
                if (from + j * 8 < end) {
                    UNROLL
                    for (unsigned i = 0; i < 8; i++) {
                        float &score = scores[j + i / 4][i % 4];
                        score = power_of_two(score * scale - shift[i % 4 / 2]);
                        sum[i % 4 / 2] += score;
                    }
                    add_product<D>(sums, scores + j, v + j * 8 * Stride<D>::value);
                }
            }
        }
    }
    if (first >= tokens) {
        return;
    }
    float factors[2];
    UNROLL
    for (unsigned half = 0; half < 2; half++) {
        sum[half] = over_columns<Sum>(sum[half]);
        factors[half] = 1.0f / sum[half];
        const unsigned token = first + GROUP + half * 8;
        if (PAIR == 0 && token < tokens) {
            // To the base 2, as the way back wants it.
            lse[(size_t)blockIdx.x * tokens + token] = largest[half] * scale + log2f(sum[half]);
        }
    }
    write_rows<D>(sums, factors, rows.v_bias, ys + rows.own, rows.own_stride, first, tokens);
}

// With P the attention weights and dP = dO·Vᵀ: dS = P·(dP - delta)·scale, dQ = dS·K. A warp's rows
// are queries.
template <unsigned D>
__device__ void queries_backward(const bf16 *qkv, const float *bias, const bf16 *ys,
                                 const float *lse, const bf16 *grads, float *delta, bf16 *d_qkv,
                                 unsigned tokens, unsigned heads, unsigned held, float scale) {
    DYNAMIC_SHARED(shared);
    const unsigned stride = Stride<D>::value;
    const Rows<D> rows(qkv, bias, tokens, heads);
    Others<D> others(shared, held, tokens);
    others.first_rows = rows.k;
    others.second_rows = rows.v;
    others.first_stride = others.second_stride = rows.packed_stride;
    const unsigned first = first_row();
    lse += (size_t)blockIdx.x * tokens;
    delta += (size_t)blockIdx.x * tokens;
    others.fetch(0);

    unsigned q[D / 16][4], grad[D / 16][4];
    load_left<D>(q, rows.q, rows.packed_stride, first, tokens);
    load_left<D>(grad, grads + rows.own, rows.own_stride, first, tokens);
    // Of the rows group and group + 8; beyond the last token no weight is left.
    float own_lse[2], own_delta[2], d_q[D / 8][4];
    UNROLL
    for (unsigned half = 0; half < 2; half++) {
        const unsigned token = first + GROUP + half * 8;
        float sum = 0.0f;
        own_lse[half] = infinity();
        if (token < tokens) {
            own_lse[half] = lse[token];
            UNROLL
            for (unsigned j = 0; j < D / 8; j++) {
                const size_t at = rows.own + token * rows.own_stride + j * 8 + PAIR;
                float2 y = load_pair(ys + at);
                const float2 g = load_pair(grads + at);
                if (rows.v_bias) {
                    const float2 b = load_pair(rows.v_bias + j * 8 + PAIR);
                    y.x -= b.x;
                    y.y -= b.y;
                }
                sum += y.x * g.x + y.y * g.y;
            }
        }
        own_delta[half] = over_columns<Sum>(sum);
        if (PAIR == 0 && token < tokens) {
            delta[token] = own_delta[half];
        }
    }
    clear<D>(d_q);
    for (unsigned start = 0; start < tokens; start += held) {
        if (start > 0) {
            others.fetch(start);
        }
        others.take();
        const unsigned end = first < tokens ? others.end_of(start) : start;
        for (unsigned from = start; from < end; from += TILE) {
            const bf16 *k = others.first + (from - start) * stride;
            const bf16 *v = others.second + (from - start) * stride;
            float scores[2][4], d_scores[2][4];
            multiply_rows<D>(scores, q, k);
            multiply_rows<D>(d_scores, grad, v);
            UNROLL
            for (unsigned i = 0; i < 8; i++) {
                const unsigned key = from + i / 4 * 8 + PAIR + i % 2, half = i % 4 / 2;
                float &d = d_scores[i / 4][i % 4];
                const float exponent = scores[i / 4][i % 4] * (scale * LOG2_E) - own_lse[half];
                d = key < tokens ? power_of_two(exponent) * (d - own_delta[half]) : 0.0f;
            }
            add_product<D>(d_q, d_scores, k);
        }
    }
    const float factors[2] = {scale, scale};
    if (first < tokens) {
        write_rows<D>(d_q, factors, 0, d_qkv + rows.packed, rows.packed_stride, first, tokens);
    }
}

// dV = Pᵀ·dO, dK = dSᵀ·Q. A warp's rows are keys, and all matrices are computed transposed.
template <unsigned D>
__device__ void keys_backward(const bf16 *qkv, const float *lse, const float *delta,
                              const bf16 *grads, bf16 *d_qkv, unsigned tokens, unsigned heads,
                              unsigned held, float scale) {
    DYNAMIC_SHARED(shared);
    const unsigned stride = Stride<D>::value;
    const Rows<D> rows(qkv, 0, tokens, heads);
    Others<D> others(shared, held, tokens);
    others.first_rows = rows.q;
    others.second_rows = grads + rows.own;
    others.first_stride = rows.packed_stride;
    others.second_stride = rows.own_stride;
    // Two numbers of each query at hand.
    float *of_queries = others.end();
    const unsigned first = first_row();
    lse += (size_t)blockIdx.x * tokens;
    delta += (size_t)blockIdx.x * tokens;
    others.fetch(0);

    unsigned k[D / 16][4], v[D / 16][4];
    load_left<D>(k, rows.k, rows.packed_stride, first, tokens);
    load_left<D>(v, rows.v, rows.packed_stride, first, tokens);
    float d_k[D / 8][4], d_v[D / 8][4];
    clear<D>(d_k);
    clear<D>(d_v);
    for (unsigned start = 0; start < tokens; start += held) {
        if (start > 0) {
            others.fetch(start);
        }
        for (unsigned i = threadIdx.x; i < held; i += blockDim.x) {
            // Beyond the last token no weight is left.
            const bool is_token = start + i < tokens;
            of_queries[2 * i] = is_token ? lse[start + i] : infinity();
            of_queries[2 * i + 1] = is_token ? delta[start + i] : 0.0f;
        }
        others.take();
        const unsigned end = first < tokens ? others.end_of(start) : start;
        for (unsigned from = start; from < end; from += TILE) {
            const bf16 *q = others.first + (from - start) * stride;
            const bf16 *grad = others.second + (from - start) * stride;
            const float *numbers = of_queries + 2 * (from - start);
            float weights[2][4], d_scores[2][4];
            multiply_rows<D>(weights, k, q);
            multiply_rows<D>(d_scores, v, grad);
            UNROLL
            for (unsigned i = 0; i < 8; i++) {
                const float2 query = load_pair(numbers + 2 * (i / 4 * 8 + PAIR + i % 2));
                float &weight = weights[i / 4][i % 4], &d = d_scores[i / 4][i % 4];
                weight = power_of_two(weight * (scale * LOG2_E) - query.x);
                d = weight * (d - query.y);
            }
            add_product<D>(d_v, weights, grad);
            add_product<D>(d_k, d_scores, q);
        }
    }
    if (first >= tokens) {
        return;
    }
    const float ones[2] = {1.0f, 1.0f}, scales[2] = {scale, scale};
    bf16 *to = d_qkv + rows.packed + rows.own_stride;
    write_rows<D>(d_k, scales, 0, to, rows.packed_stride, first, tokens);
    write_rows<D>(d_v, ones, 0, to + rows.own_stride, rows.packed_stride, first, tokens);
}

#define ATTENTION(D)                                                                               \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS, 2) attention_bf16_##D(               \
        bf16 *qkv, const float *bias, bf16 *ys, float *lse, unsigned tokens, unsigned heads,       \
        unsigned held, float scale) {                                                              \
        forward<D>(qkv, bias, ys, lse, tokens, heads, held, scale);                                \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS, 2) attention_queries_grad_bf16_##D(  \
        const bf16 *qkv, const float *bias, const bf16 *ys, const float *lse, const bf16 *grads,   \
        float *delta, bf16 *d_qkv, unsigned tokens, unsigned heads, unsigned held, float scale) {  \
        queries_backward<D>(qkv, bias, ys, lse, grads, delta, d_qkv, tokens, heads, held, scale);  \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS, 2) attention_keys_grad_bf16_##D(     \
        const bf16 *qkv, const float *lse, const float *delta, const bf16 *grads, bf16 *d_qkv,     \
        unsigned tokens, unsigned heads, unsigned held, float scale) {                             \
        keys_backward<D>(qkv, lse, delta, grads, d_qkv, tokens, heads, held, scale);               \
    }

ATTENTION(32)
ATTENTION(64)
