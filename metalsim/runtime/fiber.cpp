// Context switch between fibers: only the registers that a call preserves.
#include "runtime.h"

#if defined(__x86_64__)
__attribute__((naked, noinline)) static void switch_stacks(void**, void*) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n"
      "movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
      "ret\n");
}
enum { SAVED_WORDS = 8, ENTRY_WORD = 6 };  // six registers, the entry point, a null return address
#elif defined(__aarch64__)
__attribute__((naked, noinline)) static void switch_stacks(void**, void*) {
  asm volatile(
      "sub sp, sp, #160\n"
      "stp x19, x20, [sp, #0]\n stp x21, x22, [sp, #16]\n stp x23, x24, [sp, #32]\n"
      "stp x25, x26, [sp, #48]\n stp x27, x28, [sp, #64]\n stp x29, x30, [sp, #80]\n"
      "stp d8, d9, [sp, #96]\n stp d10, d11, [sp, #112]\n"
      "stp d12, d13, [sp, #128]\n stp d14, d15, [sp, #144]\n"
      "mov x9, sp\n str x9, [x0]\n mov sp, x1\n"
      "ldp x19, x20, [sp, #0]\n ldp x21, x22, [sp, #16]\n ldp x23, x24, [sp, #32]\n"
      "ldp x25, x26, [sp, #48]\n ldp x27, x28, [sp, #64]\n ldp x29, x30, [sp, #80]\n"
      "ldp d8, d9, [sp, #96]\n ldp d10, d11, [sp, #112]\n"
      "ldp d12, d13, [sp, #128]\n ldp d14, d15, [sp, #144]\n"
      "add sp, sp, #160\n"
      "ret\n");
}
enum { SAVED_WORDS = 20, ENTRY_WORD = 11 };  // x30 is the twelfth word
#else
#error "metalsim has a context switch for x86-64 and arm64 only"
#endif

void context_prepare(Context* context, unsigned char* stack, size_t bytes, void (*entry)()) {
  void** words = (void**)((uintptr_t)(stack + bytes) & ~(uintptr_t)15) - SAVED_WORDS;
  for (int i = 0; i < SAVED_WORDS; i++) words[i] = nullptr;
  words[ENTRY_WORD] = (void*)entry;
  context->stack_pointer = words;
}

void context_switch(Context* from, Context* to) {
  switch_stacks(&from->stack_pointer, to->stack_pointer);
}
