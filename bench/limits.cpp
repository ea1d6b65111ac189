// What this machine can do at most: bytes read from memory, and multiplications of each kind, by all threads at once.

#include <immintrin.h>
#include <omp.h>
#include <stdint.h>

extern "C" {

// Seconds to read `bytes` once.
double openbook_limit_read(const char* memory, int64_t bytes, int64_t threads) {
    const double start = omp_get_wtime();
#pragma omp parallel num_threads((int)threads)
    {
        const int64_t part = bytes / threads / 256 * 256;
        const char* from = memory + part * omp_get_thread_num();
        __m512i sum = {};
        for (int64_t i = 0; i < part; i += 64) {
            _mm_prefetch(from + i + 4096, _MM_HINT_T0);
            asm volatile("vpaddq %1, %0, %0" : "+v"(sum) : "m"(*(const __m512i*)(from + i)));
        }
    }
    return omp_get_wtime() - start;
}

// Seconds for `count` times 24 independent instructions on each thread; kind 0: fp32, 1: bf16, 2: int8.
double openbook_limit_multiply(int64_t kind, int64_t count, int64_t threads) {
    const double start = omp_get_wtime();
#pragma omp parallel num_threads((int)threads)
    {
#define EACH(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11) f(12) f(13) f(14) f(15) f(16) f(17) \
    f(18) f(19) f(20) f(21) f(22) f(23)
#define DECLARE(i) __m512i r##i = _mm512_set1_epi32((int)threads);
        EACH(DECLARE)
        __m512i x = _mm512_set1_epi32(1);
#define STEP(op, i) asm volatile(op " %1, %1, %0" : "+v"(r##i) : "v"(x));
#define FLOAT_STEP(i) STEP("vfmadd231ps", i)
#define BF16_STEP(i) STEP("vdpbf16ps", i)
#define INT8_STEP(i) STEP("vpdpbusd", i)
        if (kind == 0)
            for (int64_t n = 0; n < count; n++) { EACH(FLOAT_STEP) }
        else if (kind == 1)
            for (int64_t n = 0; n < count; n++) { EACH(BF16_STEP) }
        else
            for (int64_t n = 0; n < count; n++) { EACH(INT8_STEP) }
    }
    return omp_get_wtime() - start;
}
}
