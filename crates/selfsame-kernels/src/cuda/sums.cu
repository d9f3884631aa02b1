// Partial sums become sums, always in the same order: no atomic additions anywhere.

#include "device.cuh"

// sums[i] = the sum of parts[part][i] over the parts.
extern "C" __global__ void sum_parts(const float *parts, float *sums, unsigned num_parts,
                                     unsigned width) {
    __shared__ float rows[COLUMN_ROWS][WARP + 1];
    const unsigned column = blockIdx.x * WARP + threadIdx.x;
    float sum = 0.0f;
    if (column < width) {
        for (unsigned part = threadIdx.y; part < num_parts; part += COLUMN_ROWS) {
            sum += parts[(size_t)part * width + column];
        }
    }
    sum = over_rows(sum, rows);
    if (threadIdx.y == 0 && column < width) {
        sums[column] = sum;
    }
}

// sum = factor * the sum of xs; one block.
extern "C" __global__ void scaled_sum(const float *xs, float *sum, unsigned len, float factor) {
    float own = 0.0f;
    for (unsigned i = threadIdx.x; i < len; i += blockDim.x) {
        own += xs[i];
    }
    own = over_block<Sum>(own);
    if (threadIdx.x == 0) {
        *sum = own * factor;
    }
}
