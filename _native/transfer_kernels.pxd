# Declarations of transfer_kernels.h.
cdef extern from "transfer_kernels.h" nogil:
    void transfer_init()
    bint transfer_have_avx2()
    size_t base64_encoded_octets(size_t n)
    size_t base64_encode(bint simd, const unsigned char *p, size_t n, unsigned char *out, bint end, bint lf)
    size_t base64_decode(bint simd, const unsigned char *p, size_t n, unsigned char *out, int *open)
    size_t qp_encoded_octets(size_t n)
    size_t qp_encode(bint simd, const unsigned char *p, size_t n, unsigned char *out, bint lf)
