// A BLAS of one function, for the tests: it counts its calls.

static long calls = 0;

long count_of_calls(void) {
  return calls;
}

void cblas_sgemm(
    int order,
    int transpose_a,
    int transpose_b,
    int rows,
    int columns,
    int terms,
    float alpha,
    const float* a,
    int lda,
    const float* b,
    int ldb,
    float beta,
    float* c,
    int ldc) {
  __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
  if (order != 101 || transpose_b != 111) {
    return; // and so gives wrong products
  }
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) {
      double sum = 0;
      for (int k = 0; k < terms; ++k) {
        float left = transpose_a == 111 ? a[(long)i * lda + k]
                                        : a[(long)k * lda + i];
        sum += (double)left * b[(long)k * ldb + j];
      }
      float* to = c + (long)i * ldc + j;
      *to = (float)(alpha * sum + (beta ? (double)beta * *to : 0));
    }
  }
}
