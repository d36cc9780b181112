/* Selection by halves, on an explicit stack: 32 halvings of any number of vectors that an index of 32 bits can name. */
#include "leaf_order.h"

#include "abi.h"

#define LEAF 64
#define DEEPEST 40

/* The coordinate in which vectors order[low … high - 1] lie farthest apart. */
static int64_t widest(const float *vectors, int64_t length, const int32_t *order, int64_t low, int64_t high) {
    int64_t found = 0;
    float most = -1.0f;
    for (int64_t r = 0; r < length; r++) {
        float least = vectors[order[low] * length + r], largest = least;
        for (int64_t i = low + 1; i < high; i++) {
            const float x = vectors[order[i] * length + r];
            least = x < least ? x : least;
            largest = x > largest ? x : largest;
        }
        if (largest - least > most) {
            most = largest - least;
            found = r;
        }
    }
    return found;
}

/* Put the vectors in front of place `middle` that are not above the others in coordinate r (Hoare's selection). */
static void halve(const float *vectors, int64_t length, int64_t r, int32_t *order, int64_t low, int64_t high, int64_t middle) {
    while (low < high) {
        const float pivot = vectors[order[low + (high - low) / 2] * length + r];
        int64_t i = low, j = high;
        while (i <= j) {
            while (vectors[order[i] * length + r] < pivot) i++;
            while (vectors[order[j] * length + r] > pivot) j--;
            if (i > j) break;
            const int32_t kept = order[i];
            order[i++] = order[j];
            order[j--] = kept;
        }
        if (middle <= j) high = j;
        else if (middle >= i) low = i;
        else return;
    }
}

void edgepack_leaf_order(const float *vectors, int64_t n, int64_t length, int32_t *order) {
    int64_t lows[DEEPEST], highs[DEEPEST];
    int left = 0;
    for (int64_t i = 0; i < n; i++) order[i] = (int32_t)i;
    lows[left] = 0;
    highs[left++] = n;
    while (left) {
        const int64_t low = lows[--left], high = highs[left], leaves = (high - low + LEAF - 1) / LEAF;
        if (leaves < 2) continue;
        const int64_t middle = low + (leaves + 1) / 2 * LEAF;
        halve(vectors, length, widest(vectors, length, order, low, high), order, low, high - 1, middle);
        lows[left] = low; /* the larger part waits: the stack is no deeper than the halvings */
        highs[left++] = middle;
        lows[left] = middle;
        highs[left++] = high;
    }
}
