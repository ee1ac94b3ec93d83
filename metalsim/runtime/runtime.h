// Shared state of the CPU runtime. One worker process runs one launch at a time, so plain globals.
// C library only: linking needs no C++ standard library, which keeps the first build short.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define MSL_API extern "C" __attribute__((visibility("default")))

enum { LANES = 32, MAX_THREADS = 1024, MAX_SIMDGROUPS = MAX_THREADS / LANES, SLOT_BYTES = 64 };
enum { MAX_REGIONS = 256, MAX_FINDINGS = 64, MAX_THREADGROUP_ARRAYS = 64 };
enum { FLAG_DEVICE = 1, FLAG_THREADGROUP = 2 };
static const size_t STACK_BYTES = 256 * 1024;
static const size_t THREADGROUP_LIMIT = 32 * 1024;
static const size_t THREADGROUP_ARENA = 256 * 1024;  // arrays lie apart, so that overruns show
static const size_t THREADGROUP_GAP = 1024;

extern "C" {
struct msl_site {
  const char* file;
  int line, column;
};
struct msl_thread_ids {  // mirrored in include/msl_cpu.h
  unsigned position[3], group[3], local[3], grid[3], group_size[3], dispatch_size[3], groups[3];
  unsigned index, lane, simdgroup, simdgroups;
};
extern const msl_thread_ids* msl_current;
typedef void (*msl_launcher)(void** buffers);
struct msl_kernel {
  const char* name;
  msl_launcher run;
};
extern const msl_kernel msl_kernels[];  // generated beside the shader
extern const unsigned msl_kernel_count;
struct msl_source_line {  // where each checked access is in the source
  const void* pc;
  const char* file;
  uint64_t line;
};
extern msl_source_line msl_source_lines[];
extern const uint64_t msl_source_line_count;
}

// ---- fiber.cpp ----
struct Context {
  void* stack_pointer;
};
void context_prepare(Context* context, unsigned char* stack, size_t bytes, void (*entry)());
void context_switch(Context* from, Context* to);

// ---- scheduler.cpp ----
enum State : uint8_t { RUNNING, AT_COLLECTIVE, AT_SIMDGROUP_BARRIER, AT_THREADGROUP_BARRIER, DONE };
struct Fiber {
  msl_thread_ids ids;
  Context context;
  unsigned char* stack;
  uint32_t id;  // threadgroup number << 10 | index in threadgroup
  State state;
  msl_site site;
  const char* name;
  unsigned flags, active, source;
  bool shuffles;
};
struct Group {
  Fiber fibers[MAX_THREADS];
  unsigned threads, simdgroups, number;
  Fiber* current;
  msl_launcher run;
  void** buffers;
  bool stopped;  // an access no thread could survive: the launch ends here
  bool allow_partial;
  unsigned char offered[MAX_SIMDGROUPS][LANES][SLOT_BYTES],
      taken[MAX_SIMDGROUPS][LANES][SLOT_BYTES];
  uint64_t random;
};
extern Group group;
uint32_t random_below(uint32_t n);
void run_group();
[[noreturn]] void stop_launch();

// ---- findings.cpp ----
struct Where {
  const char* file;
  int line;
};
Where where_is(const void* pc);
const char* base_name(const char* path);
void report(const char* kind, Where where, const char* format, ...)
    __attribute__((format(printf, 3, 4)));
void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
void findings_clear();
int findings_count();
const char* failure();

// ---- shadow.cpp ----
// How many barriers there were, and at which of them a memory kind was last made visible. An
// access made when `count` was c is ordered before now iff c < visible[kind].
struct Epoch {
  uint32_t count, visible[2];
  void start() { count = visible[0] = visible[1] = 1; }
  void barrier(unsigned flags) {
    count++;
    if (flags & FLAG_DEVICE) visible[0] = count;
    if (flags & FLAG_THREADGROUP) visible[1] = count;
  }
};
struct Region {
  unsigned char* start;
  size_t bytes;
  bool read_only;
  const char* name;
};
struct Checker {
  bool on;
  Epoch threadgroup, simdgroup[MAX_SIMDGROUPS];
  unsigned char *arena, *arena_end;  // reserved address space around all buffers
  unsigned char *stacks, *stacks_end;
};
extern Checker checker;
void shadow_begin(const Region* regions, int count);
void shadow_end();
void threadgroup_memory_reset(bool checked);
size_t threadgroup_memory_used();
