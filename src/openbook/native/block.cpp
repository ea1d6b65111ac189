// A decoder block for a handful of rows: the native side of nn/lean.py.
//
// With one to four rows every matrix is read once and used once, so the limit is the memory, not the arithmetic; what
// costs beside it is one dispatch for each small operation. Here a block is two calls: before and after attention.
// Sums are taken in fp32 over fixed lanes, so a row's result depends neither on the other rows nor on the threads.
// Every value is rounded to the type of the computation where PyTorch's own operations would round it.
// Symbols: R rows, D model dim, H and G query and kv heads, K head dim, F feed-forward hidden.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

struct bf16 {
    uint16_t bits;
};

inline float widen(bf16 x) {
    uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}
inline float widen(float x) { return x; }

inline void narrow(float x, float& out) { out = x; }
inline void narrow(float x, bf16& out) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        out.bits = 0x7fc0;
        return;
    }
    out.bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
template <class T>
inline float rounded(float x) {  // what storing and reading back gives
    T stored;
    narrow(x, stored);
    return widen(stored);
}

constexpr int MOST = 4;      // rows
constexpr int AHEAD = 4096;  // bytes: the processor's own prefetching stops at the end of a page

// out[r] = w · x[r] for R rows of n numbers.
template <int R, class T>
inline void dots(const T* w, const T* x, int64_t stride, int64_t n, float* out) {
    constexpr int LANES = 16;
    float acc[R][LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; ++l) {
            float a = widen(w[i + l]);
            for (int r = 0; r < R; ++r) acc[r][l] += a * widen(x[r * stride + i + l]);
        }
    for (int r = 0; r < R; ++r) {
        float sum = 0;
        for (int l = 0; l < LANES; ++l) sum += acc[r][l];
        for (int64_t j = i; j < n; ++j) sum += widen(w[j]) * widen(x[r * stride + j]);
        out[r] = sum;
    }
}

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
template <int R>
inline void dots(const bf16* w, const bf16* x, int64_t stride, int64_t n, float* out) {
    __m512 acc[R][2];
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(w + i) + AHEAD, _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(w + i) + AHEAD + 64, _MM_HINT_T0);
        __m512bh a = (__m512bh)_mm512_loadu_si512(w + i), b = (__m512bh)_mm512_loadu_si512(w + i + 32);
        for (int r = 0; r < R; ++r) {
            const bf16* row = x + r * stride + i;
            acc[r][0] = _mm512_dpbf16_ps(acc[r][0], a, (__m512bh)_mm512_loadu_si512(row));
            acc[r][1] = _mm512_dpbf16_ps(acc[r][1], b, (__m512bh)_mm512_loadu_si512(row + 32));
        }
    }
    for (; i < n; i += 32) {
        __mmask32 m = n - i >= 32 ? 0xffffffffu : (1u << (n - i)) - 1;
        __m512bh a = (__m512bh)_mm512_maskz_loadu_epi16(m, w + i);
        for (int r = 0; r < R; ++r)
            acc[r][0] = _mm512_dpbf16_ps(acc[r][0], a, (__m512bh)_mm512_maskz_loadu_epi16(m, x + r * stride + i));
    }
    for (int r = 0; r < R; ++r) out[r] = _mm512_reduce_add_ps(_mm512_add_ps(acc[r][0], acc[r][1]));
}
#endif
#if defined(__AVX512F__)
template <int R>
inline void dots(const float* w, const float* x, int64_t stride, int64_t n, float* out) {
    __m512 acc[R][2];
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m512 a = _mm512_loadu_ps(w + i), b = _mm512_loadu_ps(w + i + 16);
        for (int r = 0; r < R; ++r) {
            acc[r][0] = _mm512_fmadd_ps(a, _mm512_loadu_ps(x + r * stride + i), acc[r][0]);
            acc[r][1] = _mm512_fmadd_ps(b, _mm512_loadu_ps(x + r * stride + i + 16), acc[r][1]);
        }
    }
    for (; i < n; i += 16) {
        __mmask16 m = n - i >= 16 ? 0xffff : (1u << (n - i)) - 1;
        __m512 a = _mm512_maskz_loadu_ps(m, w + i);
        for (int r = 0; r < R; ++r)
            acc[r][0] = _mm512_fmadd_ps(a, _mm512_maskz_loadu_ps(m, x + r * stride + i), acc[r][0]);
    }
    for (int r = 0; r < R; ++r) out[r] = _mm512_reduce_add_ps(_mm512_add_ps(acc[r][0], acc[r][1]));
}
#endif

template <class T>
void dot(int rows, const T* w, const T* x, int64_t stride, int64_t n, float* out) {
    switch (rows) {
        case 1: dots<1>(w, x, stride, n, out); break;
        case 2: dots<2>(w, x, stride, n, out); break;
        case 3: dots<3>(w, x, stride, n, out); break;
        default: dots<4>(w, x, stride, n, out); break;
    }
}

float activate(int kind, float x) {
    switch (kind) {
        case 0:  // silu
            return x / (1.0f + std::exp(-x));
        case 1:  // gelu
            return 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f));
        case 2:  // gelu_tanh
            return 0.5f * x * (1.0f + std::tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
        default:  // relu
            return x > 0 ? x : 0;
    }
}

}  // namespace

extern "C" {

// kind 0: rms, 1: layer, -1: none. `bias` may be null.
struct Norm {
    const void *weight, *bias;
    int64_t kind;
    float eps, offset;
};

// bias may be null. weight [out,in]
struct Linear {
    const void *weight, *bias;
};

struct Block {
    int64_t type;  // 0: fp32, 1: bf16
    int64_t dim, heads, kv_heads, head_dim, hidden, activation;
    Norm before, head_q, head_k, after;
    Linear q, k, v, out, gate, up, down;  // gate.weight is null where the feed-forward layer is plain
};
}

namespace {

template <class F>
inline float summed(int64_t n, F term) {  // Σ term(i), in sixteen lanes
    constexpr int LANES = 16;
    float acc[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; ++l) acc[l] += term(i + l);
    float sum = 0;
    for (int l = 0; l < LANES; ++l) sum += acc[l];
    for (; i < n; ++i) sum += term(i);
    return sum;
}

template <class T>
void normalise(const Norm& norm, const T* x, int64_t n, T* out) {
    if (norm.kind < 0) {
        if (out != x) std::memcpy(out, x, n * sizeof(T));
        return;
    }
    const T* weight = static_cast<const T*>(norm.weight);
    const T* bias = static_cast<const T*>(norm.bias);
    const float mean = norm.kind == 1 ? summed(n, [&](int64_t i) { return widen(x[i]); }) / n : 0.0f;
    const float square = summed(n, [&](int64_t i) {
        float d = widen(x[i]) - mean;
        return d * d;
    });
    const float scale = 1.0f / std::sqrt(square / n + norm.eps);
    for (int64_t i = 0; i < n; ++i) {
        float y = (widen(x[i]) - mean) * scale * (weight ? widen(weight[i]) + norm.offset : 1.0f);
        narrow(bias ? y + widen(bias[i]) : y, out[i]);
    }
}

template <class T>
inline float biased(const Linear& linear, int64_t n, float sum) {
    return linear.bias ? sum + widen(static_cast<const T*>(linear.bias)[n]) : sum;
}

// One head of q, k or v for all rows: the product, then the head's norm and rotation.
template <class T>
void head(const Block& b, const Linear& linear, const Norm& norm, int64_t number, int rows, const T* x, const T* cos,
          const T* sin, int64_t turned, T* out, int64_t stride) {
    const int64_t K = b.head_dim;
    float sums[MOST];
    for (int64_t i = 0; i < K; ++i) {
        int64_t n = number * K + i;
        dot(rows, static_cast<const T*>(linear.weight) + n * b.dim, x, b.dim, b.dim, sums);
        for (int r = 0; r < rows; ++r) narrow(biased<T>(linear, n, sums[r]), out[r * stride + n]);
    }
    const int64_t half = turned / 2;
    for (int r = 0; r < rows; ++r) {
        T* place = out + r * stride + number * K;
        normalise(norm, place, K, place);
        for (int64_t i = 0; i < half; ++i) {  // sin carries the sign of its half
            float low = widen(place[i]), high = widen(place[i + half]);
            const T *c = cos + r * turned, *s = sin + r * turned;
            narrow(rounded<T>(low * widen(c[i])) + rounded<T>(high * widen(s[i])), place[i]);
            narrow(rounded<T>(high * widen(c[i + half])) + rounded<T>(low * widen(s[i + half])), place[i + half]);
        }
    }
}

template <class T>
void before(const Block& b, int rows, const T* x, const T* cos, const T* sin, int64_t turned, T* q, T* k, T* v,
            int threads) {
    const int64_t D = b.dim, H = b.heads, G = b.kv_heads;
    const Norm none = {nullptr, nullptr, -1, 0, 0};
#pragma omp parallel num_threads(threads)
    {
        std::vector<T> normed(rows * D);
        for (int r = 0; r < rows; ++r) normalise(b.before, x + r * D, D, normed.data() + r * D);
        const T* h = normed.data();
#pragma omp for schedule(static)
        for (int64_t n = 0; n < H + 2 * G; ++n) {
            if (n < H)
                head(b, b.q, b.head_q, n, rows, h, cos, sin, turned, q, H * b.head_dim);
            else if (n < H + G)
                head(b, b.k, b.head_k, n - H, rows, h, cos, sin, turned, k, G * b.head_dim);
            else
                head(b, b.v, none, n - H - G, rows, h, cos, sin, 0, v, G * b.head_dim);
        }
    }
}

template <class T>
void after(const Block& b, int rows, const T* x, const T* mixed, T* out, int threads) {
    const int64_t D = b.dim, F = b.hidden, M = b.heads * b.head_dim;
    std::vector<T> middle(rows * D), hidden(rows * F);
#pragma omp parallel num_threads(threads)
    {
        float sums[MOST], gates[MOST];
#pragma omp for schedule(static)
        for (int64_t n = 0; n < D; ++n) {
            dot(rows, static_cast<const T*>(b.out.weight) + n * M, mixed, M, M, sums);
            for (int r = 0; r < rows; ++r)
                narrow(widen(x[r * D + n]) + rounded<T>(biased<T>(b.out, n, sums[r])), middle[r * D + n]);
        }
        std::vector<T> normed(rows * D);
        for (int r = 0; r < rows; ++r) normalise(b.after, middle.data() + r * D, D, normed.data() + r * D);
        const T* h = normed.data();
#pragma omp for schedule(static)
        for (int64_t n = 0; n < F; ++n) {
            dot(rows, static_cast<const T*>(b.up.weight) + n * D, h, D, D, sums);
            if (b.gate.weight) dot(rows, static_cast<const T*>(b.gate.weight) + n * D, h, D, D, gates);
            for (int r = 0; r < rows; ++r) {
                float up = rounded<T>(biased<T>(b.up, n, sums[r]));
                float y = b.gate.weight
                              ? rounded<T>(activate(b.activation, rounded<T>(biased<T>(b.gate, n, gates[r])))) * up
                              : activate(b.activation, up);
                narrow(y, hidden[r * F + n]);
            }
        }
#pragma omp for schedule(static)
        for (int64_t n = 0; n < D; ++n) {
            dot(rows, static_cast<const T*>(b.down.weight) + n * F, hidden.data(), F, F, sums);
            for (int r = 0; r < rows; ++r)
                narrow(widen(middle[r * D + n]) + rounded<T>(biased<T>(b.down, n, sums[r])), out[r * D + n]);
        }
    }
}

template <class T>
void product(const Linear& linear, int rows, int64_t in, int64_t outs, const T* x, T* y, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < outs; ++n) {
        float sums[MOST];
        dot(rows, static_cast<const T*>(linear.weight) + n * in, x, in, in, sums);
        for (int r = 0; r < rows; ++r) narrow(biased<T>(linear, n, sums[r]), y[r * outs + n]);
    }
}

}  // namespace

extern "C" {

// x [R,D] → q [R,H·K], k and v [R,G·K]; cos and sin [R,turned]. 1 ≤ R ≤ 4.
void openbook_before(const Block* b, int64_t rows, const void* x, const void* cos, const void* sin, int64_t turned,
                     void* q, void* k, void* v, int64_t threads) {
    const int R = static_cast<int>(rows), n = static_cast<int>(threads);
    if (b->type)
        before(*b, R, (const bf16*)x, (const bf16*)cos, (const bf16*)sin, turned, (bf16*)q, (bf16*)k, (bf16*)v, n);
    else
        before(*b, R, (const float*)x, (const float*)cos, (const float*)sin, turned, (float*)q, (float*)k, (float*)v, n);
}

// x [R,D] and mixed values [R,H·K] → the block's output [R,D].
void openbook_after(const Block* b, int64_t rows, const void* x, const void* mixed, void* out, int64_t threads) {
    const int R = static_cast<int>(rows), n = static_cast<int>(threads);
    if (b->type)
        after(*b, R, (const bf16*)x, (const bf16*)mixed, (bf16*)out, n);
    else
        after(*b, R, (const float*)x, (const float*)mixed, (float*)out, n);
}

// x [R,in] → y [R,outs], a linear map.
void openbook_linear(int64_t type, const void* weight, const void* bias, int64_t rows, int64_t in, int64_t outs,
                     const void* x, void* y, int64_t threads) {
    const Linear linear = {weight, bias};
    const int R = static_cast<int>(rows), n = static_cast<int>(threads);
    if (type)
        product(linear, R, in, outs, (const bf16*)x, (bf16*)y, n);
    else
        product(linear, R, in, outs, (const float*)x, (float*)y, n);
}
}
