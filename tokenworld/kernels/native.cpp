// Attention of a step's few new positions over the rings of a cache, in one pass over memory: turn the queries and keys, store
// keys and values, weigh, sum. Shapes as in kernels.py: qkv (B, L, 3, N, d) · cos, sin (L, d) · mask (B, 1 or L, C) ·
// keys, values (B, N, C, d) · out (B, L, N * d). T is float or bfloat16; sums are fp32.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

struct bf16 {
    uint16_t bits;
};

static inline float load(float x) { return x; }

static inline float load(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

static inline void store(float *at, float x) { *at = x; }

static inline void store(bf16 *at, float x) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    at->bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Rotary embedding: pairs are the two halves of the head, the first half of `sin` is negative.
template <class T, int d>
static inline void turn(const T *x, const T *cos, const T *sin, float *out) {
    for (int i = 0; i < d / 2; i++) {
        out[i] = load(x[i]) * load(cos[i]) + load(x[i + d / 2]) * load(sin[i]);
        out[i + d / 2] = load(x[i + d / 2]) * load(cos[i + d / 2]) + load(x[i]) * load(sin[i + d / 2]);
    }
}

// A processor's own look-ahead stops at the end of a page: ask for what comes next.
template <class T>
static inline void fetch(const T *row, int d) {
    for (int i = 0; i < d; i += 64 / sizeof(T)) __builtin_prefetch(row + i);
}

template <class T, int d>
static void attend(const T *qkv, const T *cos, const T *sin, const T *mask, T *keys, T *values, T *out, long B, long N,
                   long L, long C, long at, long mask_rows) {
    const float scale = 1.0f / std::sqrt(float(d));
    const long ahead = 2048 / (d * sizeof(T));
#pragma omp parallel
    {
        std::vector<float> weights(C);
        float *w = weights.data();
#pragma omp for schedule(static)
        for (long head = 0; head < B * N; head++) {
            long b = head / N, n = head % N;
            T *k = keys + head * C * d, *v = values + head * C * d;
            for (long l = 0; l < L; l++) {
                const T *x = qkv + ((b * L + l) * 3 * N + n) * d;
                float key[d];
                turn<T, d>(x + N * d, cos + l * d, sin + l * d, key);
                for (int i = 0; i < d; i++) store(k + (at + l) * d + i, key[i]);
                std::memcpy(v + (at + l) * d, x + 2 * N * d, d * sizeof(T));
            }
            for (long l = 0; l < L; l++) {
                float q[d], s[d] = {0}, top = -1e30f, total = 0;
                turn<T, d>(qkv + ((b * L + l) * 3 * N + n) * d, cos + l * d, sin + l * d, q);
                const T *bias = mask + (b * mask_rows + (mask_rows > 1 ? l : 0)) * C;
                for (long c = 0; c < C; c++) {
                    const T *row = k + c * d;
                    fetch(c + ahead < C ? row + ahead * d : v + (c + ahead - C) * d, d);
                    float dot = 0;
                    for (int i = 0; i < d; i++) dot += q[i] * load(row[i]);
                    w[c] = dot * scale + std::fmax(load(bias[c]), -1e30f);
                    top = w[c] > top ? w[c] : top;
                }
                for (long c = 0; c < C; c++) total += w[c] = std::exp(w[c] - top);
                for (long c = 0; c < C; c++) {
                    const T *row = v + c * d;
                    fetch(c + ahead < C ? row + ahead * d : k + (c + ahead) * d, d);
                    for (int i = 0; i < d; i++) s[i] += w[c] * load(row[i]);
                }
                for (int i = 0; i < d; i++) store(out + ((b * L + l) * N + n) * d + i, s[i] / total);
            }
        }
    }
}

template <class T>
static bool attend(long d, const T *qkv, const T *cos, const T *sin, const T *mask, T *keys, T *values, T *out, long B,
                   long N, long L, long C, long at, long mask_rows) {
    switch (d) {  // known to the compiler, the sums stay in registers
#define WIDTH(d)                                                                                                           \
    case d:                                                                                                                \
        attend<T, d>(qkv, cos, sin, mask, keys, values, out, B, N, L, C, at, mask_rows);                                \
        return true;
        WIDTH(16) WIDTH(32) WIDTH(64) WIDTH(128)
    }
    return false;
}

#define ATTEND(name, T)                                                                                                    \
    extern "C" bool name(long d, const T *qkv, const T *cos, const T *sin, const T *mask, T *keys, T *values, T *out,      \
                         long B, long N, long L, long C, long at, long mask_rows) {                                \
        return attend<T>(d, qkv, cos, sin, mask, keys, values, out, B, N, L, C, at, mask_rows);                         \
    }

ATTEND(attend_float, float)
ATTEND(attend_bf16, bf16)
