/* ggml's kvalues_iq4nl: the nearest level is found by comparing with the 15 midpoints, one after the other: no look-up, so that
   lanes stay side by side. */
#ifndef EDGEPACK_UNEVEN_LEVELS_H
#define EDGEPACK_UNEVEN_LEVELS_H

#include "lanes.h"

/* Twice the midpoints, and the steps from one level to the next; the lowest level is -127. */
#define LOWEST -127.0f
#define EACH_STEP(DO) \
    DO(-231, 23) DO(-187, 21) DO(-148, 18) DO(-114, 16) DO(-84, 14) DO(-57, 13) DO(-32, 12) DO(-9, 11) \
    DO(14, 12) DO(38, 12) DO(63, 13) DO(91, 15) DO(122, 16) DO(158, 20) DO(202, 24)

EDGEPACK_INLINE float nearest_level(float value) {
    const float twice = value + value;
    float level = LOWEST;
#define STEP(middle, gap) level += twice >= middle##.0f ? gap##.0f : 0.0f;
    EACH_STEP(STEP)
#undef STEP
    return level;
}

/* cffi */
/* cffi */

#endif
