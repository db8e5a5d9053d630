// Fibres: a stack each, and a switch between them. Not for: what a CUDA thread is (machine.hpp).
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define SIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIM_ASAN 1
#endif
#endif
#ifndef SIM_ASAN
#define SIM_ASAN 0
#endif

#if SIM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SIM_UNCHECKED __attribute__((no_sanitize_address, noinline))
#else
#define SIM_UNCHECKED __attribute__((noinline))
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace sim {

// Sanitizers make frames several times larger.
static const size_t STACK_BYTES = SIM_ASAN ? 512 * 1024 : 256 * 1024;
static const size_t GUARD_BYTES = 4096;

#if defined(__x86_64__)
// Saves what a callee must keep, changes stacks, and goes on where the other one left off.
extern "C" void lapidary_sim_switch(void** from, void* to);
__asm__(
    ".text\n"
    ".p2align 4\n"
    ".type lapidary_sim_switch, @function\n"
    "lapidary_sim_switch:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    ".size lapidary_sim_switch, .-lapidary_sim_switch\n");
#endif

// One flow of control. The scheduler's own has no stack of ours.
struct Context {
    unsigned char* stack = nullptr;
#if defined(__x86_64__)
    void* sp = nullptr;
#else
    ucontext_t context;
#endif
    // For the sanitizer: where the stack of the scheduler is, and the fake stack of one that is parked.
    const void* bottom = nullptr;
    size_t bytes = 0;
    void* fake = nullptr;

    void own_stack() {
        if (stack) {
            return;
        }
        void* at = mmap(nullptr, STACK_BYTES + GUARD_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED || mprotect(at, GUARD_BYTES, PROT_NONE) != 0) {
            fprintf(stderr, "simulator: no memory for a stack\n");
            abort();
        }
        stack = static_cast<unsigned char*>(at) + GUARD_BYTES;
        bottom = stack;
        bytes = STACK_BYTES;
    }

    // Will begin at `entry`, which never returns.
    SIM_UNCHECKED void begin(void (*entry)()) {
        own_stack();
        fake = nullptr;
#if defined(__x86_64__)
        // Where a caller's address would be: the stack is then aligned as after a call.
        void** top = reinterpret_cast<void**>(stack + STACK_BYTES - 56);
        *top = nullptr;
        *--top = reinterpret_cast<void*>(entry);
        for (int i = 0; i < 6; i++) {
            *--top = nullptr;
        }
        sp = top;
#else
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = STACK_BYTES;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
#endif
    }
};

// What the sanitizer must hear first on a stack that has just been switched to. A fibre that begins learns where the scheduler's is.
SIM_UNCHECKED static inline void arrived(Context& here, Context* scheduler) {
#if SIM_ASAN
    const void* bottom = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(here.fake, &bottom, &bytes);
    if (scheduler) {
        scheduler->bottom = bottom;
        scheduler->bytes = bytes;
    }
#else
    (void)here, (void)scheduler;
#endif
}

// Leaves `from` for `to`; comes back when somebody switches to `from`. `last`: nobody will.
SIM_UNCHECKED static inline void change(Context& from, Context& to, bool last) {
#if SIM_ASAN
    __sanitizer_start_switch_fiber(last ? nullptr : &from.fake, to.bottom, to.bytes);
#else
    (void)last;
#endif
#if defined(__x86_64__)
    lapidary_sim_switch(&from.sp, to.sp);
#else
    swapcontext(&from.context, &to.context);
#endif
    arrived(from, nullptr);
}

}  // namespace sim
