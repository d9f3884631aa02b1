// Running statistics of all batch norms, moved towards those of the batches that they saw: one
// launch, behind the step that says whether it was done.
//
// Every operation is rounded by itself: the same bits as on the CPU.

#include "device.cuh"

// One batch norm: launch/running_stats.rs writes this, word by word.
struct Norm {
    float *mean;
    float *variance;
    // Batches seen.
    long long *num_batches_tracked;
    unsigned long long channels;
    // The batches that it saw: so many from this one on.
    unsigned long long first_batch;
    unsigned long long num_batches;
};

// The statistics of one batch; all batches stand behind all norms.
struct Batch {
    const float *mean;
    const float *variance;
};

__device__ inline float moved(float running, float batch, float keep, float take) {
    return __fadd_rn(__fmul_rn(running, keep), __fmul_rn(batch, take));
}

// running = keep·running + take·batch, batch by batch in their order; a block for each norm.
// Nothing moves if `done` is there and 0.
extern "C" __global__ void move_running_stats(const Norm *norms, const float *done,
                                              unsigned num_norms, float keep, float take) {
    if (done && *done == 0.0f) {
        return;
    }
    const Norm norm = norms[blockIdx.x];
    const Batch *batches = (const Batch *)(norms + num_norms) + norm.first_batch;
    for (unsigned long long i = threadIdx.x; i < norm.channels; i += blockDim.x) {
        float mean = norm.mean[i], variance = norm.variance[i];
        for (unsigned long long batch = 0; batch < norm.num_batches; batch++) {
            mean = moved(mean, batches[batch].mean[i], keep, take);
            variance = moved(variance, batches[batch].variance[i], keep, take);
        }
        norm.mean[i] = mean;
        norm.variance[i] = variance;
    }
    if (threadIdx.x == 0) {
        *norm.num_batches_tracked += norm.num_batches;
    }
}
