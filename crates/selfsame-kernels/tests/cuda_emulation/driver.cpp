// A CUDA driver whose device is this processor: enough of libcuda, cuBLAS and cuRAND, and of
// candle's kernels, for tests/cuda and for training ViTs and ResNets. It shows that the
// operations hand the right things to the kernels; what those compute is the runner's subject.
//
// Everything is done at once, in the order in which it is asked for. Memory begins as NaN and is
// handed out with not a byte to spare.

#include <atomic>
#include <mutex>

#define main runner_main
#include "runner.cpp"
#undef main

// candle's f64 is computed in f32 here: it is no subject of these tests.
inline float to_f32(double x) { return float(x); }
inline float to_f32(std::uint8_t x) { return x; }
template <> inline double from_f32<double>(float x) { return x; }

namespace {

typedef std::uint64_t Address;
typedef std::function<void(void **)> Native;

template <class T> T at(void **params, int index) { return *static_cast<T *>(params[index]); }

// Where element i of a strided tensor lies; info is dims and strides, or null if contiguous.
std::size_t strided(std::size_t i, std::size_t dims, const std::size_t *sizes,
                    const std::size_t *strides) {
    std::size_t place = 0;
    for (std::size_t d = dims; d-- > 0;) {
        place += i % sizes[d] * strides[d];
        i /= sizes[d];
    }
    return place;
}

template <class T> std::size_t place_of(void **params, std::size_t i) {
    const auto dims = at<std::size_t>(params, 1);
    const auto *info = at<const std::size_t *>(params, 2);
    return info ? strided(i, dims, info, info + dims) : i;
}

template <class From, class To> void cast(void **params) {
    const auto *from = at<const From *>(params, 3);
    auto *to = at<To *>(params, 4);
    for (std::size_t i = 0; i < at<std::size_t>(params, 0); i++) {
        to[i] = from_f32<To>(to_f32(from[place_of<From>(params, i)]));
    }
}

template <class T> void affine(void **params) {
    const auto *from = at<const T *>(params, 3);
    auto *to = at<T *>(params, 4);
    const float mul = to_f32(at<T>(params, 5)), add = to_f32(at<T>(params, 6));
    for (std::size_t i = 0; i < at<std::size_t>(params, 0); i++) {
        to[i] = from_f32<T>(to_f32(from[place_of<T>(params, i)]) * mul + add);
    }
}

template <class T> void unary(void **params, float (*f)(float)) {
    const auto *from = at<const T *>(params, 3);
    auto *to = at<T *>(params, 4);
    for (std::size_t i = 0; i < at<std::size_t>(params, 0); i++) {
        to[i] = from_f32<T>(f(to_f32(from[place_of<T>(params, i)])));
    }
}

template <class T> void binary(void **params, float (*f)(float, float)) {
    const auto dims = at<std::size_t>(params, 1);
    const auto *info = at<const std::size_t *>(params, 2);
    const auto *a = at<const T *>(params, 3), *b = at<const T *>(params, 4);
    auto *to = at<T *>(params, 5);
    for (std::size_t i = 0; i < at<std::size_t>(params, 0); i++) {
        const std::size_t left = info ? strided(i, dims, info, info + dims) : i;
        const std::size_t right = info ? strided(i, dims, info, info + 2 * dims) : i;
        to[i] = from_f32<T>(f(to_f32(a[left]), to_f32(b[right])));
    }
}

template <class T> void compare(void **params, bool (*f)(float, float)) {
    const auto dims = at<std::size_t>(params, 1);
    const auto *info = at<const std::size_t *>(params, 2);
    const auto *a = at<const T *>(params, 3), *b = at<const T *>(params, 4);
    auto *to = at<std::uint8_t *>(params, 5);
    for (std::size_t i = 0; i < at<std::size_t>(params, 0); i++) {
        const std::size_t left = info ? strided(i, dims, info, info + dims) : i;
        const std::size_t right = info ? strided(i, dims, info, info + 2 * dims) : i;
        to[i] = f(to_f32(a[left]), to_f32(b[right]));
    }
}

template <class T> void where(void **params) {
    const auto dims = at<std::size_t>(params, 1);
    const auto *info = at<const std::size_t *>(params, 2);
    const auto *condition = at<const std::uint8_t *>(params, 3);
    const auto *yes = at<const T *>(params, 4), *no = at<const T *>(params, 5);
    auto *to = at<T *>(params, 6);
    for (std::size_t i = 0; i < at<std::size_t>(params, 0); i++) {
        const auto place = [&](std::size_t of) {
            return info ? strided(i, dims, info, info + of * dims) : i;
        };
        to[i] = condition[place(1)] ? yes[place(2)] : no[place(3)];
    }
}

template <class T> void const_set(void **params) {
    auto *to = at<T *>(params, 4);
    for (std::size_t i = 0; i < at<std::size_t>(params, 0); i++) {
        to[place_of<T>(params, i)] = at<T>(params, 3);
    }
}

template <class T> void copy2d(void **params) {
    const auto *from = at<const T *>(params, 0);
    auto *to = at<T *>(params, 1);
    const auto rows = at<std::uint32_t>(params, 2), columns = at<std::uint32_t>(params, 3);
    const auto from_stride = at<std::uint32_t>(params, 4);
    const auto to_stride = at<std::uint32_t>(params, 5);
    for (std::size_t i = 0; i < std::size_t(rows) * columns; i++) {
        to[i / columns * to_stride + i % columns] = from[i / columns * from_stride + i % columns];
    }
}

template <class T> void gather(void **params) {
    const auto *ids = at<const std::uint32_t *>(params, 1);
    const auto *from = at<const T *>(params, 2);
    auto *to = at<T *>(params, 3);
    const auto from_dim = at<std::size_t>(params, 5), ids_dim = at<std::size_t>(params, 6);
    const auto right = at<std::size_t>(params, 7);
    for (std::size_t i = 0; i < at<std::size_t>(params, 0); i++) {
        to[i] = from[(i / (right * ids_dim) * from_dim + ids[i]) * right + i % right];
    }
}

template <class T> void scatter_add(void **params) {
    const auto *ids = at<const std::uint32_t *>(params, 0);
    const auto *from = at<const T *>(params, 1);
    auto *to = at<T *>(params, 2);
    const auto left = at<std::size_t>(params, 3), from_dim = at<std::size_t>(params, 4);
    const auto to_dim = at<std::size_t>(params, 5), right = at<std::size_t>(params, 6);
    for (std::size_t i = 0; i < left * from_dim * right; i++) {
        T &sum = to[(i / (right * from_dim) * to_dim + ids[i]) * right + i % right];
        sum = from_f32<T>(to_f32(sum) + to_f32(from[i]));
    }
}

template <class T> void reduce(void **params, bool small, bool is_max) {
    const auto each = at<std::size_t>(params, 1), dims = at<std::size_t>(params, 2);
    const auto *info = at<const std::size_t *>(params, 3);
    const auto *from = at<const T *>(params, 4);
    auto *to = at<T *>(params, 5);
    const auto numel = at<std::size_t>(params, 0);
    const std::size_t count = small ? numel : numel / each;
    for (std::size_t i = 0; i < count; i++) {
        float result = is_max ? negative_infinity() : 0.0f;
        for (std::size_t j = i * each; j < (i + 1) * each; j++) {
            const float x = to_f32(from[strided(j, dims, info, info + dims)]);
            result = is_max ? std::fmax(result, x) : result + x;
        }
        to[i] = from_f32<T>(result);
    }
}

template <class T> void argmax(void **params) {
    const auto each = at<std::size_t>(params, 1), dims = at<std::size_t>(params, 2);
    const auto *info = at<const std::size_t *>(params, 3);
    const auto *from = at<const T *>(params, 4);
    auto *to = at<std::uint32_t *>(params, 5);
    const auto value = [&](std::size_t j) { return to_f32(from[strided(j, dims, info, info + dims)]); };
    for (std::size_t i = 0; i < at<std::size_t>(params, 0) / each; i++) {
        to[i] = 0;
        for (std::size_t j = 1; j < each; j++) {
            to[i] = value(i * each + j) > value(i * each + to[i]) ? j : to[i];
        }
    }
}

typedef std::map<std::string, Native> Natives;

template <class T> void add_kernels_of(const std::string &type, Natives &all) {
    const auto add = [&](const std::string &name, Native native) { all[name + type] = native; };
    add("cast_f32_", cast<float, T>);
    add("cast_bf16_", cast<bf16, T>);
    add("cast_f64_", cast<double, T>);
    add("cast_u8_", cast<std::uint8_t, T>);
    add("affine_", affine<T>);
    add("ucopy_", [](void **p) { unary<T>(p, [](float x) { return x; }); });
    add("uabs_", [](void **p) { unary<T>(p, [](float x) { return std::fabs(x); }); });
    add("uneg_", [](void **p) { unary<T>(p, [](float x) { return -x; }); });
    add("uexp_", [](void **p) { unary<T>(p, [](float x) { return std::exp(x); }); });
    add("usqr_", [](void **p) { unary<T>(p, [](float x) { return x * x; }); });
    add("usqrt_", [](void **p) { unary<T>(p, [](float x) { return std::sqrt(x); }); });
    add("badd_", [](void **p) { binary<T>(p, [](float a, float b) { return a + b; }); });
    add("bsub_", [](void **p) { binary<T>(p, [](float a, float b) { return a - b; }); });
    add("bmul_", [](void **p) { binary<T>(p, [](float a, float b) { return a * b; }); });
    add("bdiv_", [](void **p) { binary<T>(p, [](float a, float b) { return a / b; }); });
    add("bmaximum_", [](void **p) { binary<T>(p, Max::of); });
    add("ulog_", [](void **p) { unary<T>(p, [](float x) { return std::log(x); }); });
    add("uerf_", [](void **p) { unary<T>(p, [](float x) { return std::erf(x); }); });
    add("eq_", [](void **p) { compare<T>(p, [](float a, float b) { return a == b; }); });
    add("ne_", [](void **p) { compare<T>(p, [](float a, float b) { return a != b; }); });
    add("le_", [](void **p) { compare<T>(p, [](float a, float b) { return a <= b; }); });
    add("lt_", [](void **p) { compare<T>(p, [](float a, float b) { return a < b; }); });
    add("ge_", [](void **p) { compare<T>(p, [](float a, float b) { return a >= b; }); });
    add("gt_", [](void **p) { compare<T>(p, [](float a, float b) { return a > b; }); });
    add("where_u8_", where<T>);
    add("fast_argmax_", argmax<T>);
    add("gather_u32_", gather<T>);
    add("sa_u32_", scatter_add<T>);
    add("const_set_", const_set<T>);
    add("copy2d_", copy2d<T>);
    add("fast_sum_", [](void **p) { reduce<T>(p, false, false); });
    add("fast_sum_small_", [](void **p) { reduce<T>(p, true, false); });
    add("fast_max_", [](void **p) { reduce<T>(p, false, true); });
}

const Natives &candles_kernels() {
    static const Natives all = [] {
        Natives all;
        add_kernels_of<float>("f32", all);
        add_kernels_of<bf16>("bf16", all);
        add_kernels_of<double>("f64", all);
        all["affine_i64"] = [](void **params) {
            const auto *from = at<const std::int64_t *>(params, 3);
            auto *to = at<std::int64_t *>(params, 4);
            for (std::size_t i = 0; i < at<std::size_t>(params, 0); i++) {
                to[i] = from[place_of<std::int64_t>(params, i)] * at<std::int64_t>(params, 5) +
                        at<std::int64_t>(params, 6);
            }
        };
        return all;
    }();
    return all;
}

// What the device has, 16 GiB or as many MiB as EMULATED_MEMORY_MIB says, and what is taken of it.
std::size_t device_bytes() {
    const char *mib = std::getenv("EMULATED_MEMORY_MIB");
    return mib ? std::strtoull(mib, nullptr, 10) << 20 : std::size_t(1) << 34;
}
std::mutex allocated_mutex;
std::size_t allocated_bytes = 0;
std::map<Address, std::size_t> allocated;

void *allocate(std::size_t bytes) {
    // Device memory is aligned to 256 bytes; a block's end stands where the request ends.
    void *memory = nullptr;
    if (posix_memalign(&memory, 256, bytes ? bytes : 1) != 0) {
        fail("out of memory");
    }
    std::memset(memory, 0xff, bytes);
    return memory;
}

// Matrices are column by column; `trans` 1 is the transpose.
template <class T, class To>
void gemm(int transa, int transb, int m, int n, int k, float alpha, const T *a, int lda,
          const T *b, int ldb, float beta, To *c, int ldc) {
    for (int j = 0; j < n; j++) {
        for (int i = 0; i < m; i++) {
            float sum = 0.0f;
            for (int l = 0; l < k; l++) {
                const T left = transa ? a[std::size_t(i) * lda + l] : a[std::size_t(l) * lda + i];
                const T right = transb ? b[std::size_t(l) * ldb + j] : b[std::size_t(j) * ldb + l];
                sum += to_f32(left) * to_f32(right);
            }
            To &out = c[std::size_t(j) * ldc + i];
            out = from_f32<To>(alpha * sum + (beta == 0.0f ? 0.0f : beta * to_f32(out)));
        }
    }
}

// How often the host asked the device for something; told in the end where somebody wants to know.
struct Reads {
    std::atomic<unsigned> count{0};

    ~Reads() {
        if (std::getenv("EMULATED_READS")) {
            std::fprintf(stderr, "emulated driver: %u reads\n", count.load());
        }
    }
} reads;

} // namespace

extern "C" {

int cuInit(unsigned) { return 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = 0, ordinal == 0 ? 0 : 101; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceGetAttribute(int *value, int attribute, int) {
    constexpr int major = 75, minor = 76; // of the compute capability
    *value = attribute == major ? 8 : attribute == minor ? 0 : 1;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int) { return *context = allocate(8), 0; }
int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
int cuCtxGetCurrent(void **context) { return *context = nullptr, 0; }
int cuCtxSetCurrent(void *) { return 0; }
int cuCtxSynchronize() { return 0; }
int cuGetErrorString(int error, const char **text) {
    return *text = error ? "an error of the emulated driver" : "no error", 0;
}
int cuGetErrorName(int, const char **text) { return *text = "EMULATED", 0; }

int cuStreamCreate(void **stream, unsigned) { return *stream = allocate(8), 0; }
int cuStreamDestroy_v2(void *stream) { return std::free(stream), 0; }
int cuStreamSynchronize(void *) { return 0; }
int cuStreamWaitEvent(void *, void *, unsigned) { return 0; }
int cuStreamIsCapturing(void *, int *status) { return *status = 0, 0; }
int cuEventCreate(void **event, unsigned) { return *event = allocate(8), 0; }
int cuEventDestroy_v2(void *event) { return std::free(event), 0; }
int cuEventRecord(void *, void *) { return 0; }
int cuEventSynchronize(void *) { return 0; }

int cuDeviceTotalMem_v2(std::size_t *bytes, int) { return *bytes = device_bytes(), 0; }
int cuDeviceGetDefaultMemPool(void **pool, int) { return *pool = nullptr, 0; }
int cuMemPoolSetAttribute(void *, int, void *) { return 0; }

int cuMemAlloc_v2(Address *address, std::size_t bytes) {
    std::lock_guard<std::mutex> lock(allocated_mutex);
    if (allocated_bytes + bytes > device_bytes()) {
        return 2; // CUDA_ERROR_OUT_OF_MEMORY
    }
    *address = reinterpret_cast<Address>(allocate(bytes));
    allocated_bytes += bytes;
    allocated[*address] = bytes;
    return 0;
}
int cuMemAllocAsync(Address *address, std::size_t bytes, void *) {
    return cuMemAlloc_v2(address, bytes);
}
int cuMemFree_v2(Address address) {
    std::lock_guard<std::mutex> lock(allocated_mutex);
    allocated_bytes -= allocated[address];
    allocated.erase(address);
    return std::free(reinterpret_cast<void *>(address)), 0;
}
int cuMemFreeAsync(Address address, void *) { return cuMemFree_v2(address); }
int cuMemHostAlloc(void **memory, std::size_t bytes, unsigned) {
    return *memory = allocate(bytes), 0;
}
int cuMemFreeHost(void *memory) { return std::free(memory), 0; }
int cuMemcpyHtoDAsync_v2(Address to, const void *from, std::size_t bytes, void *) {
    return std::memcpy(reinterpret_cast<void *>(to), from, bytes), 0;
}
int cuMemcpyDtoHAsync_v2(void *to, Address from, std::size_t bytes, void *) {
    reads.count++;
    return std::memcpy(to, reinterpret_cast<const void *>(from), bytes), 0;
}
int cuMemcpyDtoDAsync_v2(Address to, Address from, std::size_t bytes, void *) {
    return std::memcpy(reinterpret_cast<void *>(to), reinterpret_cast<const void *>(from), bytes),
           0;
}
int cuMemsetD8Async(Address to, unsigned char value, std::size_t bytes, void *) {
    return std::memset(reinterpret_cast<void *>(to), value, bytes), 0;
}
int cuMemsetD8_v2(Address to, unsigned char value, std::size_t bytes) {
    return cuMemsetD8Async(to, value, bytes, nullptr);
}

// A module is nothing, and a function its name.
int cuModuleLoadData(void **module, const void *) { return *module = allocate(8), 0; }
int cuModuleUnload(void *module) { return std::free(module), 0; }
int cuModuleGetFunction(void **function, void *, const char *name) {
    if (!kernels().count(name) && !candles_kernels().count(name)) {
        fail(std::string("the emulated driver has no kernel ") + name);
    }
    return *function = strdup(name), 0;
}

int cuFuncSetAttribute(void *, int, int) { return 0; }

int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *, void **params, void **) {
    const std::string name = static_cast<const char *>(function);
    const auto candles = candles_kernels().find(name);
    if (candles != candles_kernels().end()) {
        return candles->second(params), 0;
    }
    if (gz != 1 || bz != 1) {
        fail(name + ": a grid of three dimensions");
    }
    emulation::kernel_name = name;
    const auto bound = kernels().at(name).from_params(params);
    return run_bound(bound, name, {gx, gy, 1}, {bx, by, 1}, shared, false), 0;
}

int cublasCreate_v2(void **handle) { return *handle = allocate(8), 0; }
int cublasDestroy_v2(void *handle) { return std::free(handle), 0; }
int cublasSetStream_v2(void *, void *) { return 0; }
int cublasGemmStridedBatchedEx(void *, int transa, int transb, int m, int n, int k,
                               const void *alpha, const void *a, int type, int lda,
                               long long step_a, const void *b, int, int ldb, long long step_b,
                               const void *beta, void *c, int out_type, int ldc, long long step_c,
                               int batch, int, int) {
    const float factor = *static_cast<const float *>(alpha);
    const float keep = *static_cast<const float *>(beta);
    for (int i = 0; i < batch; i++) {
        // CUDA_R_32F is 0, CUDA_R_16BF 14.
        if (type == 0 && out_type == 0) {
            gemm(transa, transb, m, n, k, factor, static_cast<const float *>(a) + i * step_a, lda,
                 static_cast<const float *>(b) + i * step_b, ldb, keep,
                 static_cast<float *>(c) + i * step_c, ldc);
        } else if (type == 14 && out_type == 0) {
            gemm(transa, transb, m, n, k, factor, static_cast<const bf16 *>(a) + i * step_a, lda,
                 static_cast<const bf16 *>(b) + i * step_b, ldb, keep,
                 static_cast<float *>(c) + i * step_c, ldc);
        } else if (type == 14 && out_type == 14) {
            gemm(transa, transb, m, n, k, factor, static_cast<const bf16 *>(a) + i * step_a, lda,
                 static_cast<const bf16 *>(b) + i * step_b, ldb, keep,
                 static_cast<bf16 *>(c) + i * step_c, ldc);
        } else {
            fail("a product of another type");
        }
    }
    return 0;
}

int cublasGemmEx(void *, int transa, int transb, int m, int n, int k, const void *alpha,
                 const void *a, int type, int lda, const void *b, int, int ldb, const void *beta,
                 void *c, int to_type, int ldc, int, int) {
    if (to_type == type) {
        return cublasGemmStridedBatchedEx(nullptr, transa, transb, m, n, k, alpha, a, type, lda, 0,
                                          b, type, ldb, 0, beta, c, type, ldc, 0, 1, 0, 0);
    }
    if (type != 14 || to_type != 0) {
        fail("a product of another type");
    }
    gemm(transa, transb, m, n, k, *static_cast<const float *>(alpha), static_cast<const bf16 *>(a),
         lda, static_cast<const bf16 *>(b), ldb, *static_cast<const float *>(beta),
         static_cast<float *>(c), ldc);
    return 0;
}

int curandCreateGenerator(void **generator, int) { return *generator = allocate(8), 0; }
int curandDestroyGenerator(void *generator) { return std::free(generator), 0; }
int curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return 0; }
int curandSetStream(void *, void *) { return 0; }

} // extern "C"
