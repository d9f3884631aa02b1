// Mean and variance out of parts, merged so that nothing cancels (Chan, Golub and LeVeque 1979).
#pragma once

// Of some values: how many, their mean, and the sum of squared distances from it.
struct Moments {
    float count, mean, squares;
};

__device__ inline Moments merged(Moments a, Moments b) {
    if (b.count == 0.0f) {
        return a;
    }
    if (a.count == 0.0f) {
        return b;
    }
    const float count = a.count + b.count, share = b.count / count, apart = b.mean - a.mean;
    return {count, a.mean + apart * share, a.squares + b.squares + apart * apart * a.count * share};
}
