// Calls of kernels that Python wrote down once, repeated without it.
#include "kernels.h"
#include <cstring>
#include <type_traits>
#include <utility>

union Slot {
    int64_t whole;
    double real;
    const void *pointer;
};

static const int SLOTS = 13;  // the most arguments that a kernel takes

struct Call {
    void (*kernel)(const Slot *);
    Slot slots[SLOTS];
};

template <class T> static T take(const Slot &slot) {
    if constexpr (std::is_pointer_v<T>) return (T)slot.pointer;
    else if constexpr (std::is_floating_point_v<T>) return T(slot.real);
    else return T(slot.whole);
}

template <class... A, size_t... I>
static inline void unpack(void (*kernel)(A...), const Slot *slots, std::index_sequence<I...>) {
    static_assert(sizeof...(A) <= SLOTS);
    kernel(take<A>(slots[I])...);
}

template <class... A> static inline void unpack(void (*kernel)(A...), const Slot *slots) {
    unpack(kernel, slots, std::index_sequence_for<A...>{});
}

template <auto KERNEL> static void call(const Slot *slots) { unpack(KERNEL, slots); }

static const struct {
    const char *name;
    void (*kernel)(const Slot *);
} KERNELS[] = {
    {"tgi_rms_norm", call<tgi_rms_norm>},
    {"tgi_add_rms_norm", call<tgi_add_rms_norm>},
    {"tgi_layer_norm", call<tgi_layer_norm>},
    {"tgi_rotary", call<tgi_rotary>},
    {"tgi_activate", call<tgi_activate>},
    {"tgi_greedy", call<tgi_greedy>},
    {"tgi_sample", call<tgi_sample>},
    {"tgi_penalize", call<tgi_penalize>},
    {"tgi_top_k", call<tgi_top_k>},
    {"tgi_top_p", call<tgi_top_p>},
    {"tgi_linear", call<tgi_linear>},
    {"tgi_rows", call<tgi_rows>},
    {"tgi_rows_int8", call<tgi_rows_int8>},
    {"tgi_linear_int8", call<tgi_linear_int8>},
    {"tgi_linear_int4", call<tgi_linear_int4>},
    {"tgi_experts", call<tgi_experts>},
    {"tgi_paged_attention", call<tgi_paged_attention>},
};

// What goes into `Call::kernel`; null where calls of this name cannot be repeated.
extern "C" const void *tgi_kernel(const char *name) {
    for (const auto &known : KERNELS)
        if (strcmp(known.name, name) == 0) return (const void *)known.kernel;
    return nullptr;
}

extern "C" void tgi_replay(const Call *calls, int64_t count) {
    for (const Call *call = calls; call < calls + count; call++) call->kernel(call->slots);
}
