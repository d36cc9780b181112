#include "abi.h"

int32_t edgepack_abi(void) { return EDGEPACK_ABI; }
