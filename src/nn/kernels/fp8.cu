/* Rows of 8-bit floats (e4m3), each with a power of two that they are scaled by. */
#include "platform.h"

typedef union {
    float number;
    unsigned bits;
} word;

/* The power of two 2^exponent; -126 <= exponent <= 127. */
INSIDE float power_of_two(int exponent) {
    word x;
    x.bits = (unsigned)(exponent + 127) << 23;
    return x.number;
}

/* The least exponent whose power of two times 448 is at least `largest`. */
INSIDE int exponent_for(float largest) {
    word x;
    x.number = largest;
    int exponent = (int)(x.bits >> 23) - 127 - 8 + ((x.bits & 0x7fffff) > 0x600000);
    return exponent < -126 ? -126 : exponent > 120 ? 120 : exponent;
}

/* `x` rounded to the nearest e4m3, ties to even; 448 at most; NaN unless finite. */
INSIDE unsigned char to_e4m3(float x) {
    word of, small;
    of.number = x;
    unsigned sign = of.bits >> 24 & 0x80, magnitude = of.bits & 0x7fffffff, code;
    if (magnitude >= 0x7f800000) {
        code = 0x7f;
    } else if (magnitude < 0x3c800000) { /* below 2^-6: multiples of 2^-9 */
        of.bits = magnitude;
        small.number = of.number * 512.0f + 12582912.0f; /* 1.5 * 2^23 */
        code = small.bits & 0xf;
    } else {
        code = ((magnitude + 0x7ffff + (magnitude >> 20 & 1)) >> 20) - (120 << 3);
        if (code > 0x7e) code = 0x7e;
    }
    return (unsigned char)(sign | code);
}

INSIDE float from_e4m3(unsigned char code) {
    word x;
    unsigned magnitude = code & 0x7f;
    if (magnitude < 8) {
        x.number = (float)magnitude * 0.001953125f; /* 2^-9 */
    } else if (magnitude == 0x7f) {
        x.bits = 0x7fc00000;
    } else {
        x.bits = (magnitude + (120 << 3)) << 20;
    }
    x.bits |= (unsigned)(code & 0x80) << 24;
    return x.number;
}

/* Bytes that are loaded and stored together. */
typedef struct
#ifdef __CUDACC__
    __align__(PACK)
#endif
{
    unsigned char at[PACK];
} byte_pack;

INSIDE byte_pack load_bytes(const unsigned char *from) {
    READS((const byte_pack *)from);
    return *(const byte_pack *)from;
}

INSIDE void store_bytes(unsigned char *to, byte_pack bytes) {
    WRITES((byte_pack *)to);
    *(byte_pack *)to = bytes;
}

typedef struct {
    const number *x;  /* (rows, width) */
    unsigned char *y; /* (rows, width) */
    float *scales;    /* (rows) */
    int width;
} fp8_rounding;

/* x is about y * scale. One block for each row. A NaN is no largest number, as in
 * fmaxf: it stays one by itself, and spoils no other number. */
KERNEL(fp8_round, fp8_rounding) {
    const number *x = call.x + BLOCK * call.width;
    unsigned char *y = call.y + BLOCK * call.width;
    float largest = 0.0f;
    for (int i = THREAD * PACK; i < call.width; i += THREADS * PACK) {
        pack numbers = load(x + i);
        for (int j = 0; j < PACK; ++j) largest = fmaxf(largest, fabsf(wide(numbers.at[j])));
    }
    int exponent = exponent_for(block_maximum(largest));
    float inverse = power_of_two(-exponent);
    if (THREAD == 0) {
        WRITES(call.scales + BLOCK);
        call.scales[BLOCK] = power_of_two(exponent);
    }
    for (int i = THREAD * PACK; i < call.width; i += THREADS * PACK) {
        pack numbers = load(x + i);
        byte_pack bytes;
        for (int j = 0; j < PACK; ++j) bytes.at[j] = to_e4m3(wide(numbers.at[j]) * inverse);
        store_bytes(y + i, bytes);
    }
}

typedef struct {
    const unsigned char *x; /* (rows, width) */
    const float *scales;    /* (rows) */
    number *y;              /* (rows, width) */
    int width;
} fp8_widening;

/* y = x * scale. One block for each row. */
KERNEL(fp8_widen, fp8_widening) {
    const unsigned char *x = call.x + BLOCK * call.width;
    number *y = call.y + BLOCK * call.width;
    float scale = load_float(call.scales + BLOCK);
    for (int i = THREAD * PACK; i < call.width; i += THREADS * PACK) {
        byte_pack bytes = load_bytes(x + i);
        pack numbers;
        for (int j = 0; j < PACK; ++j) numbers.at[j] = narrow(from_e4m3(bytes.at[j]) * scale);
        store(y + i, numbers);
    }
}

typedef struct {
    const number *x;           /* (rows, width) */
    const float *rows, *columns; /* (rows), (width) */
    number *y;                 /* (rows, width) */
    int width;
} fp8_scaling;

/* y = x * (scale of the row * scale of the column). One block for each row. */
KERNEL(fp8_scale, fp8_scaling) {
    const number *x = call.x + BLOCK * call.width;
    number *y = call.y + BLOCK * call.width;
    float scale = load_float(call.rows + BLOCK);
    for (int i = THREAD * PACK; i < call.width; i += THREADS * PACK) {
        pack numbers = load(x + i);
        for (int j = 0; j < PACK; ++j) {
            float column = load_float(call.columns + i + j);
            numbers.at[j] = narrow(wide(numbers.at[j]) * (scale * column));
        }
        store(y + i, numbers);
    }
}
