// Runs launches that come on standard input and writes the memory afterwards to standard output.
//
// All numbers are little-endian. Input: u32 buffers, each u64 bytes and its content; u32 places
// (u32 buffer, u64 offset, u32 buffer that the word there is to point to); u32 launches, each u32
// length and name, 2 u32 grid, 2 u32 block, u32 shared bytes, u32 arguments (u32 kind, u32 value).
// Kinds: 0 buffer, 1 null, 2 u32, 3 f32. Output: the buffers, one after the other.
// Everything is run twice, blocks, warps and lanes forwards and backwards, and must not differ.

#include "emulation.h"

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

#include "cuda_bf16.h"

#include "../../src/cuda/device.cuh"
#include "../../src/cuda/eight.cuh"
#include "../../src/cuda/moments.cuh"
#include "../../src/cuda/tensor_core.cuh"
#include "../../src/cuda/windows.cuh"
#include "tensor_core.h"

namespace attention {
#include "../../src/cuda/attention.cu"
}
#undef ATTENTION
#undef TILE
#undef OTHER
namespace attention_bf16 {
#include "../../src/cuda/attention_bf16.cu"
}
namespace branch {
#include "../../src/cuda/branch.cu"
}
namespace batch_norm {
#include "../../src/cuda/batch_norm.cu"
}
#undef AT_ONCE
namespace channels_last {
#include "../../src/cuda/channels_last.cu"
}
namespace conv {
#include "../../src/cuda/conv.cu"
}
namespace crops {
#include "../../src/cuda/crops.cu"
}
namespace gelu {
#include "../../src/cuda/gelu.cu"
}
namespace layer_norm {
#include "../../src/cuda/layer_norm.cu"
}
namespace normalize {
#include "../../src/cuda/normalize.cu"
}
namespace patches {
#include "../../src/cuda/patches.cu"
}
namespace rounded_weights {
#include "../../src/cuda/rounded.cu"
}
namespace pool {
#include "../../src/cuda/pool.cu"
}
namespace relu {
#include "../../src/cuda/relu.cu"
}
namespace row_norm {
#include "../../src/cuda/row_norm.cu"
}
namespace running_stats {
#include "../../src/cuda/running_stats.cu"
}
namespace softmax {
#include "../../src/cuda/softmax.cu"
}
namespace sums {
#include "../../src/cuda/sums.cu"
}
namespace update {
#include "../../src/cuda/update.cu"
}

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#else
static void __sanitizer_start_switch_fiber(void **, const void *, size_t) {}
static void __sanitizer_finish_switch_fiber(void *, const void **, size_t *) {}
#endif

static void fail(const std::string &message) {
    std::fprintf(stderr, "%s\n", message.c_str());
    std::exit(1);
}

namespace emulation {

Position thread, block, block_size, grid_size;

static const unsigned LANES = 32;
static const size_t STACK = 256 * 1024;

enum class State { Ready, Waiting, Ended };

struct Fiber {
    ucontext_t context;
    unsigned char *stack;
    void *fake_stack;
    State state;
    Barrier barrier;
};

static std::vector<Fiber> fibers;
static std::vector<Words> exchanges;
static std::vector<std::vector<std::function<void()>>> all_copies;
static unsigned char *shared_start;
static ucontext_t scheduler;
static const void *scheduler_stack;
static size_t scheduler_size;
static void *scheduler_fake;
static unsigned running;
static const std::function<void()> *kernel;
static std::string kernel_name;

unsigned char *shared() { return shared_start; }
unsigned lane() { return running % LANES; }
std::vector<std::function<void()>> &copies() { return all_copies[running]; }
Words *exchange() { return &exchanges[running / LANES * LANES]; }

static void back_to_scheduler(bool for_good) {
    Fiber &fiber = fibers[running];
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, scheduler_stack,
                                   scheduler_size);
    swapcontext(&fiber.context, &scheduler);
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler_stack, &scheduler_size);
}

void wait_for(Barrier barrier) {
    fibers[running].state = State::Waiting;
    fibers[running].barrier = barrier;
    back_to_scheduler(false);
}

static void run_thread() {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
    (*kernel)();
    fibers[running].state = State::Ended;
    back_to_scheduler(true);
}

static void resume(unsigned index) {
    running = index;
    thread = {index % block_size.x, index / block_size.x, 0};
    Fiber &fiber = fibers[index];
    __sanitizer_start_switch_fiber(&scheduler_fake, fiber.stack, STACK);
    swapcontext(&scheduler, &fiber.context);
    __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
}

// Lets threads first..end go on if all of them wait at the barrier.
static bool release(unsigned first, unsigned end, Barrier barrier) {
    for (unsigned i = first; i < end; i++) {
        if (fibers[i].state != State::Waiting || fibers[i].barrier != barrier) {
            return false;
        }
    }
    for (unsigned i = first; i < end; i++) {
        fibers[i].state = State::Ready;
    }
    return true;
}

// Lets each lane of a warp run to its next barrier; whether any could.
static bool run_warp(unsigned first, bool backwards) {
    bool progress = false;
    for (unsigned i = 0; i < LANES; i++) {
        const unsigned index = first + (backwards ? LANES - 1 - i : i);
        if (fibers[index].state == State::Ready) {
            resume(index);
            progress = true;
        }
    }
    for (Barrier barrier : {Barrier::Warp, Barrier::Exchange, Barrier::ExchangeDone}) {
        progress |= release(first, first + LANES, barrier);
    }
    return progress;
}

static void run_block(bool backwards) {
    const unsigned threads = block_size.x * block_size.y;
    if (threads == 0 || threads > 1024 || threads % LANES != 0) {
        fail(kernel_name + ": a block of " + std::to_string(threads) + " threads");
    }
    while (fibers.size() < threads) {
        fibers.emplace_back();
        fibers.back().stack = static_cast<unsigned char *>(std::malloc(STACK));
    }
    Words nans;
    for (std::uint32_t &word : nans.words) {
        word = 0x7fc00000;
    }
    exchanges.assign(threads, nans);
    all_copies.assign(threads, {});
    for (unsigned i = 0; i < threads; i++) {
        Fiber &fiber = fibers[i];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack;
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        fiber.state = State::Ready;
        makecontext(&fiber.context, run_thread, 0);
    }
    for (;;) {
        bool progress = false;
        for (unsigned i = 0; i < threads; i += LANES) {
            // A warp goes as far as it can before the next one starts.
            while (run_warp(backwards ? threads - LANES - i : i, backwards)) {
                progress = true;
            }
        }
        unsigned ended = 0;
        for (unsigned i = 0; i < threads; i++) {
            ended += fibers[i].state == State::Ended;
        }
        if (ended == threads) {
            return;
        }
        // A barrier of the whole block counts ended threads as missing, stricter than the hardware.
        if (!release(0, threads, Barrier::Block) && !progress) {
            fail(kernel_name + ": a barrier that not all threads reach");
        }
    }
}

} // namespace emulation

enum Kind : std::uint32_t { Buffer, Null, U32, F32 };

struct Arg {
    std::uint32_t kind, value;
};

struct Launch {
    std::string name;
    emulation::Position grid, block;
    std::uint32_t shared_bytes;
    std::vector<Arg> args;
};

typedef std::vector<unsigned char *> Memory;

template <class T> T argument(const Arg &arg, const Memory &memory) {
    if constexpr (std::is_pointer<T>::value) {
        if (arg.kind == Buffer) {
            return reinterpret_cast<T>(memory.at(arg.value));
        }
        if (arg.kind == Null) {
            return nullptr;
        }
    } else {
        static_assert(sizeof(T) == 4, "all numbers that kernels take have four bytes");
        if (arg.kind == (std::is_same<T, float>::value ? F32 : U32)) {
            T value;
            std::memcpy(&value, &arg.value, 4);
            return value;
        }
    }
    fail(emulation::kernel_name + ": an argument of the wrong kind");
    std::abort();
}

// A kernel, to be bound to the arguments of a request or to those that a driver is handed.
struct Kernel {
    std::function<std::function<void()>(const std::vector<Arg> &, const Memory &)> from_request;
    std::function<std::function<void()>(void **)> from_params;
};

template <class... T, size_t... I>
std::function<void()> bind_each(void (*kernel)(T...), const std::vector<Arg> &args,
                                const Memory &memory, std::index_sequence<I...>) {
    if (args.size() != sizeof...(T)) {
        fail(emulation::kernel_name + ": the wrong number of arguments");
    }
    std::tuple<T...> values{argument<T>(args[I], memory)...};
    return [=] { kernel(std::get<I>(values)...); };
}

template <class... T, size_t... I>
std::function<void()> bind_params(void (*kernel)(T...), void **params, std::index_sequence<I...>) {
    std::tuple<T...> values{*static_cast<T *>(params[I])...};
    return [=] { kernel(std::get<I>(values)...); };
}

template <class... T> Kernel binder(void (*kernel)(T...)) {
    return {[kernel](const std::vector<Arg> &args, const Memory &memory) {
                return bind_each(kernel, args, memory, std::index_sequence_for<T...>());
            },
            [kernel](void **params) {
                return bind_params(kernel, params, std::index_sequence_for<T...>());
            }};
}

#define KERNEL(name) {#name, binder(name)}
#define KERNELS(name) KERNEL(name##_f32), KERNEL(name##_bf16)
#define NORMS(name) KERNELS(name), KERNEL(name##_f32_bf16)
#define ATTENTIONS(name)                                                                           \
    KERNEL(name##_f32_32), KERNEL(name##_f32_64), KERNEL(name##_bf16_32), KERNEL(name##_bf16_64)
#define WIDTHS(name) KERNEL(name##_192), KERNEL(name##_384), KERNEL(name##_768), KERNEL(name##_1024)
#define BRANCHES_OF(name) WIDTHS(name##_f32), WIDTHS(name##_bf16)

static const std::map<std::string, Kernel> &kernels() {
    using namespace attention;
    using namespace attention_bf16;
    using namespace batch_norm;
    using namespace branch;
    using namespace channels_last;
    using namespace conv;
    using namespace crops;
    using namespace gelu;
    using namespace layer_norm;
    using namespace normalize;
    using namespace patches;
    using namespace pool;
    using namespace relu;
    using namespace rounded_weights;
    using namespace row_norm;
    using namespace running_stats;
    using namespace softmax;
    using namespace sums;
    using namespace update;
    static const std::map<std::string, Kernel> all = {
        ATTENTIONS(attention),
        ATTENTIONS(attention_keys_grad),
        ATTENTIONS(attention_queries_grad),
        KERNEL(attention_delta_f32),
        BRANCHES_OF(branch),
        BRANCHES_OF(branch_grad),
        KERNEL(batch_norm_moments),
        KERNEL(batch_norm_stats),
        KERNEL(batch_norm_given),
        KERNEL(batch_norm_apply),
        KERNEL(batch_norm_grad_sums),
        KERNEL(batch_norm_affine_grad),
        KERNEL(batch_norm_grad),
        KERNELS(im2col),
        KERNELS(col2im),
        KERNELS(windows_of_rows),
        KERNELS(rows_of_windows),
        KERNELS(windows_of_planes),
        KERNELS(max_pool_rows),
        KERNELS(max_pool_rows_grad),
        KERNELS(rows_to_planes),
        KERNELS(planes_to_rows),
        KERNELS(weights_to_matrices),
        KERNEL(weights_from_matrices),
        KERNELS(row_norm_moments),
        KERNEL(row_norm_stats),
        KERNELS(row_norm_relu),
        KERNELS(row_norms_relu),
        KERNELS(row_norm_grad_sums),
        KERNELS(row_norms_grad_sums),
        KERNEL(row_norm_affine_grad),
        KERNELS(row_norm_grad),
        KERNELS(row_norms_grad),
        KERNELS(normalize_crops),
        KERNELS(bias_gelu),
        KERNELS(add_bias),
        KERNELS(bias_gelu_grad),
        KERNELS(column_sums),
        NORMS(layer_norm),
        NORMS(layer_norm_grad),
        NORMS(layer_norm_weights_grad),
        KERNELS(max_pool),
        KERNELS(max_pool_grad),
        KERNELS(relu),
        KERNELS(relu_grad),
        KERNELS(normalize),
        KERNEL(normalize_grad),
        KERNELS(patches),
        KERNELS(tokens),
        KERNELS(tokens_grad),
        KERNEL(rounded),
        KERNELS(softmax),
        KERNELS(softmax_grad),
        KERNELS(cross_entropy),
        KERNELS(scaled),
        KERNEL(sum_parts),
        KERNEL(scaled_sum),
        KERNEL(gradient_squares),
        KERNEL(clip_factors),
        KERNEL(adamw_ema),
        KERNEL(lars_squares),
        KERNEL(lars_trust),
        KERNEL(momentum_ema),
        KERNEL(move_running_stats),
    };
    return all;
}

// Runs a kernel with its arguments, block by block.
static void run_bound(const std::function<void()> &kernel, const std::string &name,
                      emulation::Position grid, emulation::Position block, std::uint32_t bytes,
                      bool backwards) {
    emulation::kernel = &kernel;
    emulation::grid_size = grid;
    emulation::block_size = block;
    // Beyond 48 KiB a function must be told; this is what compute capability 8.6 can have at most.
    if (bytes > 99 * 1024 || grid.y > 65535) {
        fail(name + ": more than every device can launch");
    }
    // Its own allocation, so that the sanitizer sees its end; aligned as on a device.
    unsigned char *shared = nullptr;
    if (bytes > 0 && posix_memalign(reinterpret_cast<void **>(&shared), 128, bytes) != 0) {
        fail("out of memory");
    }
    emulation::shared_start = shared;
    const std::uint64_t blocks = std::uint64_t(grid.x) * grid.y;
    for (std::uint64_t i = 0; i < blocks; i++) {
        const std::uint64_t at = backwards ? blocks - 1 - i : i;
        emulation::block = {unsigned(at % grid.x), unsigned(at / grid.x), 0};
        const float nan = __int_as_float(0x7fc00000);
        for (size_t byte = 0; byte + 4 <= bytes; byte += 4) {
            std::memcpy(shared + byte, &nan, 4);
        }
        emulation::run_block(backwards);
    }
    std::free(shared);
}

static void run(const Launch &launch, const Memory &memory, bool backwards) {
    emulation::kernel_name = launch.name;
    const auto found = kernels().find(launch.name);
    if (found == kernels().end()) {
        fail("no kernel is called " + launch.name);
    }
    run_bound(found->second.from_request(launch.args, memory), launch.name, launch.grid,
              launch.block, launch.shared_bytes, backwards);
}

template <class T> T read() {
    T value;
    if (std::fread(&value, sizeof(T), 1, stdin) != 1) {
        fail("the request ends too early");
    }
    return value;
}

struct Place {
    std::uint32_t buffer;
    std::uint64_t offset;
    std::uint32_t target;
};

int main() {
    std::vector<std::vector<unsigned char>> contents(read<std::uint32_t>());
    for (auto &content : contents) {
        content.resize(read<std::uint64_t>());
        if (std::fread(content.data(), 1, content.size(), stdin) != content.size()) {
            fail("the request ends too early");
        }
    }
    std::vector<Place> places(read<std::uint32_t>());
    for (Place &place : places) {
        place.buffer = read<std::uint32_t>();
        place.offset = read<std::uint64_t>();
        place.target = read<std::uint32_t>();
    }
    std::vector<Launch> launches(read<std::uint32_t>());
    for (Launch &launch : launches) {
        launch.name.resize(read<std::uint32_t>());
        if (std::fread(&launch.name[0], 1, launch.name.size(), stdin) != launch.name.size()) {
            fail("the request ends too early");
        }
        launch.grid = {read<std::uint32_t>(), 0, 1};
        launch.grid.y = read<std::uint32_t>();
        launch.block = {read<std::uint32_t>(), 0, 1};
        launch.block.y = read<std::uint32_t>();
        launch.shared_bytes = read<std::uint32_t>();
        launch.args.resize(read<std::uint32_t>());
        for (Arg &arg : launch.args) {
            arg.kind = read<std::uint32_t>();
            arg.value = read<std::uint32_t>();
        }
    }

    Memory forwards, backwards;
    for (Memory *memory : {&forwards, &backwards}) {
        for (const auto &content : contents) {
            // Not a byte more than asked for.
            memory->push_back(static_cast<unsigned char *>(std::malloc(content.size())));
            std::memcpy(memory->back(), content.data(), content.size());
        }
        for (const Place &place : places) {
            std::memcpy(memory->at(place.buffer) + place.offset, &memory->at(place.target), 8);
        }
        for (const Launch &launch : launches) {
            run(launch, *memory, memory == &backwards);
        }
        for (const Place &place : places) {
            std::memset(memory->at(place.buffer) + place.offset, 0, 8);
        }
    }
    for (size_t i = 0; i < contents.size(); i++) {
        if (std::memcmp(forwards[i], backwards[i], contents[i].size()) != 0) {
            fail(launches.back().name + ": buffer " + std::to_string(i) +
                 " depends on the order of threads");
        }
        std::fwrite(forwards[i], 1, contents[i].size(), stdout);
    }
    for (Memory *memory : {&forwards, &backwards}) {
        for (unsigned char *buffer : *memory) {
            std::free(buffer);
        }
    }
    std::fflush(stdout);
    // The fibers' stacks are left to the system.
    std::_Exit(0);
}
