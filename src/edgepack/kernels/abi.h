/* Which build of the kernels this is, and how functions are compiled for several instruction sets. */
#ifndef EDGEPACK_ABI_H
#define EDGEPACK_ABI_H

#include <stdint.h>

/* The loader takes the best clone that the processor has; where the compiler lacks clones, the plain one is used.
   musl and Apple's linker have no ifunc. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GLIBC__) && !defined(EDGEPACK_NO_CLONES)
#define EDGEPACK_CLONES __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#else
#define EDGEPACK_CLONES
#endif

#define EDGEPACK_ABI 3

/* cffi */
/* EDGEPACK_ABI as compiled: edgepack.kernels.native refuses an extension of another edgepack. */
int32_t edgepack_abi(void);
/* cffi */

#endif
