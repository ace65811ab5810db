/* cuBLAS, cuBLASLt and cuRAND: products of matrices, counted by their shape. */
#include "recorder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NOT_SUPPORTED = 15, INVALID = 7 }; /* CUBLAS_STATUS_… */
enum { FLOAT32 = 0, FLOAT64 = 1, FLOAT16 = 2, BFLOAT16 = 14, E4M3 = 28, E5M2 = 29 }; /* cudaDataType */

static size_t size_of(int type) {
    switch (type) {
    case FLOAT64: return 8;
    case FLOAT32: return 4;
    case FLOAT16: case BFLOAT16: return 2;
    default: return 1;
    }
}

static const char *format_of(int type) {
    switch (type) {
    case FLOAT64: return "f64";
    case FLOAT32: return "f32";
    case FLOAT16: return "f16";
    case BFLOAT16: return "bf16";
    case E4M3: return "e4m3";
    default: return "other";
    }
}

/* A batch of matrices, column by column. */
typedef struct {
    uint64_t rows, columns;
    int64_t leading, stride;
    int batch, type;
} Matrix;

static void touch_matrix(const char *what, Moment now, const void *first, Matrix matrix, enum Access access) {
    if (!matrix.rows || !matrix.columns) return;
    size_t numbers = (matrix.columns - 1) * (size_t)matrix.leading + matrix.rows;
    if (matrix.batch > 1) numbers += (size_t)(matrix.batch - 1) * (size_t)matrix.stride;
    if (matrix.leading < (int64_t)matrix.rows) fault("product", "%s: rows of %ld for %lu", what, matrix.leading, matrix.rows);
    touch(what, now, (uint64_t)first, numbers * size_of(matrix.type), access);
}

/* === cuBLAS === */

typedef struct {
    void *stream;
} Handle;

API Result cublasCreate_v2(void **handle) {
    *handle = calloc(1, sizeof(Handle));
    return OK;
}

API Result cublasDestroy_v2(void *handle) {
    free(handle);
    return OK;
}

API Result cublasSetStream_v2(void *handle, void *stream) {
    ((Handle *)handle)->stream = stream;
    return OK;
}

API Result cublasSetPointerMode_v2(void *handle, int mode) {
    (void)handle;
    (void)mode;
    return OK;
}

API Result cublasGetPointerMode_v2(void *handle, int *mode) {
    (void)handle;
    *mode = 0;
    return OK;
}

API Result cublasSetWorkspace_v2(void *handle, void *workspace, size_t bytes) {
    (void)handle;
    (void)workspace;
    (void)bytes;
    return OK;
}

API Result cublasSetMathMode(void *handle, int mode) {
    (void)handle;
    (void)mode;
    return OK;
}

API Result cublasGemmStridedBatchedEx(void *handle, int turn_a, int turn_b, int m, int n, int k, const void *alpha,
                                      const void *a, int a_type, int lda, long long stride_a, const void *b,
                                      int b_type, int ldb, long long stride_b, const void *beta, void *c, int c_type,
                                      int ldc, long long stride_c, int batch, int compute, int algorithm) {
    (void)alpha;
    (void)beta;
    (void)compute;
    (void)algorithm;
    LOCKED;
    Moment now = next_moment(((Handle *)handle)->stream);
    uint64_t rows = (uint64_t)m, columns = (uint64_t)n, inner = (uint64_t)k;
    Matrix left = {turn_a ? inner : rows, turn_a ? rows : inner, lda, stride_a, batch, a_type};
    Matrix right = {turn_b ? columns : inner, turn_b ? inner : columns, ldb, stride_b, batch, b_type};
    Matrix made = {rows, columns, ldc, stride_c, batch, c_type};
    if (m <= 0 || n <= 0 || k <= 0 || batch <= 0) fault("product", "of %d x %d x %d, %d times", m, n, k, batch);
    touch_matrix("a product", now, a, left, USES);
    touch_matrix("a product", now, b, right, USES);
    touch_matrix("a product", now, c, made, USES);
    count(PRODUCT, 0, "cublas %s %dx%dx%d batch %d", format_of(a_type), n, m, k, batch);
    return OK;
}

API Result cublasGemmEx(void *handle, int turn_a, int turn_b, int m, int n, int k, const void *alpha, const void *a,
                        int a_type, int lda, const void *b, int b_type, int ldb, const void *beta, void *c,
                        int c_type, int ldc, int compute, int algorithm) {
    return cublasGemmStridedBatchedEx(handle, turn_a, turn_b, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb, 0,
                                      beta, c, c_type, ldc, 0, 1, compute, algorithm);
}

API Result cublasDgemmStridedBatched(void *handle, int turn_a, int turn_b, int m, int n, int k, const void *alpha,
                                     const void *a, int lda, long long stride_a, const void *b, int ldb,
                                     long long stride_b, const void *beta, void *c, int ldc, long long stride_c,
                                     int batch) {
    return cublasGemmStridedBatchedEx(handle, turn_a, turn_b, m, n, k, alpha, a, FLOAT64, lda, stride_a, b, FLOAT64,
                                      ldb, stride_b, beta, c, FLOAT64, ldc, stride_c, batch, 0, 0);
}

/* === cuBLASLt === */

enum { ROWS_SCALED = 3, EPILOGUE_DEFAULT = 1 };
enum { MOST_ATTRIBUTES = 64 };

typedef struct {
    int64_t of[MOST_ATTRIBUTES];
    bool set[MOST_ATTRIBUTES];
} Attributes;

/* cublasLtMatmulDescAttributes_t, cublasLtMatmulPreferenceAttributes_t. */
enum { TURN_A = 3, TURN_B = 4, EPILOGUE = 7, BIAS = 8, A_SCALE = 17, B_SCALE = 18, FAST_SUMS = 25, A_MODE = 31 };
enum { WORKSPACE = 1, ALIGNMENT_A = 5, ALIGNMENT_B, ALIGNMENT_C, ALIGNMENT_D };

/* What the library keeps in its 64 bytes: the alignments that the algorithm relies on. */
typedef struct {
    uint64_t magic, alignment[4], workspace, rest[2];
} Algorithm;

typedef struct {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
} Heuristic;

static const uint64_t MAGIC = 0x7265636f72646572;

static Result set_attribute(void *attributes, int attribute, const void *value, size_t bytes) {
    Attributes *changed = attributes;
    if (attribute < 0 || attribute >= MOST_ATTRIBUTES || bytes > sizeof(int64_t)) return INVALID;
    changed->of[attribute] = 0;
    memcpy(&changed->of[attribute], value, bytes);
    changed->set[attribute] = true;
    return OK;
}

API Result cublasLtCreate(void **handle) { return cublasCreate_v2(handle); }
API Result cublasLtDestroy(void *handle) { return cublasDestroy_v2(handle); }

API Result cublasLtMatmulDescCreate(void **made, int compute, int scale) {
    (void)compute;
    (void)scale;
    *made = calloc(1, sizeof(Attributes));
    return OK;
}

API Result cublasLtMatmulDescDestroy(void *of) {
    free(of);
    return OK;
}

API Result cublasLtMatmulDescSetAttribute(void *of, int attribute, const void *value, size_t bytes) {
    return set_attribute(of, attribute, value, bytes);
}

API Result cublasLtMatmulPreferenceCreate(void **made) { return cublasLtMatmulDescCreate(made, 0, 0); }
API Result cublasLtMatmulPreferenceDestroy(void *of) { return cublasLtMatmulDescDestroy(of); }

API Result cublasLtMatmulPreferenceSetAttribute(void *of, int attribute, const void *value, size_t bytes) {
    return set_attribute(of, attribute, value, bytes);
}

API Result cublasLtMatrixLayoutCreate(void **made, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    Matrix *matrix = calloc(1, sizeof(*matrix));
    *matrix = (Matrix){rows, columns, leading, 0, 1, type};
    *made = matrix;
    return OK;
}

API Result cublasLtMatrixLayoutDestroy(void *of) {
    free(of);
    return OK;
}

API Result cublasLtMatrixLayoutSetAttribute(void *of, int attribute, const void *value, size_t bytes) {
    Matrix *matrix = of;
    if (attribute == 5) memcpy(&matrix->batch, value, bytes);
    if (attribute == 6) memcpy(&matrix->stride, value, bytes);
    return OK;
}

/* What Hopper's products of 8-bit floats want. */
static bool fits_8_bits(const Attributes *description, const Matrix *a, const Matrix *b, const Matrix *made) {
    return description->of[TURN_A] == 1 && description->of[TURN_B] == 0 && a->rows % 16 == 0 && b->rows % 16 == 0 &&
           made->rows % 16 == 0;
}

API Result cublasLtMatmulAlgoGetHeuristic(void *handle, void *of, void *a, void *b, void *c, void *made,
                                          void *preference, int wanted, void *results, int *found) {
    (void)handle;
    (void)c;
    LOCKED;
    const Attributes *description = of, *preferred = preference;
    bool eight_bits = ((Matrix *)a)->type == E4M3;
    bool scaled_rows = description->of[A_MODE] == ROWS_SCALED;
    *found = 0;
    if (wanted < 1 || (eight_bits && !fits_8_bits(description, a, b, made))) return NOT_SUPPORTED;
    if (scaled_rows && !setting("RECORDING_DRIVER_ROW_SCALES", 1)) return NOT_SUPPORTED;
    Heuristic *result = results;
    *result = (Heuristic){.algorithm = {.magic = MAGIC}, .workspace = 4 << 20, .waves = 1};
    for (int i = 0; i < 4; i++) {
        int attribute = ALIGNMENT_A + i;
        uint64_t alignment = preferred->set[attribute] ? (uint64_t)preferred->of[attribute] & 0xffffffff : 256;
        result->algorithm.alignment[i] = alignment;
    }
    size_t most = preferred->set[WORKSPACE] ? (size_t)preferred->of[WORKSPACE] : 0;
    if (result->workspace > most) result->workspace = most;
    result->algorithm.workspace = result->workspace;
    *found = 1;
    count(CHOICE, 0, "of an algorithm");
    return OK;
}

static void expect_alignment(const char *what, uint64_t address, uint64_t alignment) {
    if (alignment && address % alignment)
        fault("alignment", "%s at %#lx, its algorithm relies on %lu bytes", what, address, alignment);
}

API Result cublasLtMatmul(void *handle, void *of, const void *alpha, const void *a, void *a_layout, const void *b,
                          void *b_layout, const void *beta, const void *c, void *c_layout, void *made,
                          void *made_layout, const void *chosen, void *workspace, size_t workspace_bytes,
                          void *stream) {
    (void)handle;
    (void)alpha;
    (void)beta;
    (void)c;
    (void)c_layout;
    LOCKED;
    const Attributes *description = of;
    const Algorithm *algorithm = chosen;
    const Matrix *left = a_layout, *right = b_layout, *product = made_layout;
    const char *what = left->type == E4M3 ? "an 8-bit product" : "a cublasLt product";
    Moment now = next_moment(stream);
    if (!algorithm || algorithm->magic != MAGIC) fault("product", "%s without an algorithm", what);
    else {
        const void *operands[] = {a, b, made, made};
        for (int i = 0; i < 4; i++) expect_alignment(what, (uint64_t)operands[i], algorithm->alignment[i]);
        if (algorithm->workspace > workspace_bytes) fault("product", "%s has too small a workspace", what);
    }
    touch_matrix(what, now, a, *left, USES);
    touch_matrix(what, now, b, *right, USES);
    touch_matrix(what, now, made, *product, USES);
    if (workspace_bytes) touch(what, now, (uint64_t)workspace, workspace_bytes, USES);
    if (description->set[BIAS]) touch(what, now, (uint64_t)description->of[BIAS], product->rows * 2, USES);
    if (description->of[A_MODE] == ROWS_SCALED) {
        touch(what, now, (uint64_t)description->of[A_SCALE], product->rows * 4, USES);
        touch(what, now, (uint64_t)description->of[B_SCALE], product->columns * 4, USES);
        expect_alignment("scales", (uint64_t)description->of[A_SCALE], 16);
        expect_alignment("scales", (uint64_t)description->of[B_SCALE], 16);
    }
    count(PRODUCT, 0, "cublasLt %s %lux%lux%lu epilogue %ld%s", format_of(left->type), product->columns,
          product->rows, left->rows, description->set[EPILOGUE] ? (long)description->of[EPILOGUE] : EPILOGUE_DEFAULT,
          description->of[FAST_SUMS] & 0xff ? " fast sums" : "");
    return OK;
}

/* === cuRAND === */

API Result curandCreateGenerator(void **made, int type) {
    (void)type;
    return cublasCreate_v2(made);
}

API Result curandDestroyGenerator(void *of) { return cublasDestroy_v2(of); }
API Result curandSetStream(void *of, void *stream) { return cublasSetStream_v2(of, stream); }

API Result curandSetPseudoRandomGeneratorSeed(void *of, unsigned long long seed) {
    (void)of;
    (void)seed;
    return OK;
}

API Result curandSetGeneratorOffset(void *of, unsigned long long offset) {
    return curandSetPseudoRandomGeneratorSeed(of, offset);
}

static Result generate(const char *what, void *of, void *to, size_t bytes) {
    LOCKED;
    touch(what, next_moment(((Handle *)of)->stream), (uint64_t)to, bytes, USES);
    count(LAUNCH, 0, "%s", what);
    return OK;
}

API Result curandGenerateNormal(void *of, float *to, size_t numbers, float mean, float deviation) {
    (void)mean;
    (void)deviation;
    if (numbers % 2) return 105; /* CURAND_STATUS_LENGTH_NOT_MULTIPLE */
    return generate("curand normal", of, to, numbers * sizeof(float));
}

API Result curandGenerateUniform(void *of, float *to, size_t numbers) {
    return generate("curand uniform", of, to, numbers * sizeof(float));
}
