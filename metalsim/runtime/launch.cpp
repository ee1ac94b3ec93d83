// A launch: buffers in a reserved stretch of address space, threadgroups in random order.
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime.h"

static const size_t MARGIN = (size_t)4 << 30;  // an index that is a few GiB off still lands in here
static unsigned char* stacks;
static unsigned ready_stacks;

// Maps the file between two unmapped margins. Returns its address, or null.
MSL_API void* msl_map(const char* path, size_t bytes) {
  const int fd = open(path, O_RDWR);
  if (fd < 0) return nullptr;
  if (checker.arena) munmap(checker.arena, checker.arena_end - checker.arena);
  const size_t all = bytes + 2 * MARGIN;
  void* reserved = mmap(nullptr, all, PROT_NONE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
  checker.arena = reserved == MAP_FAILED ? nullptr : (unsigned char*)reserved;
  checker.arena_end = checker.arena ? checker.arena + all : nullptr;
  void* at = MAP_FAILED;
  if (checker.arena)
    at = mmap(checker.arena + MARGIN, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
  close(fd);
  return at == MAP_FAILED ? nullptr : at;
}

static int prepare_stacks() {
  void* p = mmap(nullptr, STACK_BYTES * MAX_THREADS, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return 0;
  stacks = checker.stacks = (unsigned char*)p;
  checker.stacks_end = stacks + STACK_BYTES * MAX_THREADS;
  return 1;
}
static unsigned char* stack_of(unsigned i) {
  const size_t guard = 16 * 1024;  // one page on every platform
  for (; ready_stacks <= i; ready_stacks++)
    mprotect(stacks + STACK_BYTES * ready_stacks, guard, PROT_NONE);
  return stacks + STACK_BYTES * i;
}

static void place_thread(Fiber& f, unsigned i, const unsigned* at, const unsigned* size,
                         const unsigned* grid, const unsigned* dispatch, const unsigned* groups) {
  msl_thread_ids& ids = f.ids;
  const unsigned local[3] = {i % size[0], i / size[0] % size[1], i / (size[0] * size[1])};
  for (int d = 0; d < 3; d++) {
    ids.local[d] = local[d];
    ids.group[d] = at[d];
    ids.position[d] = at[d] * dispatch[d] + local[d];
    ids.grid[d] = grid[d];
    ids.group_size[d] = size[d];
    ids.dispatch_size[d] = dispatch[d];
    ids.groups[d] = groups[d];
  }
  ids.index = i;
  ids.lane = i % LANES;
  ids.simdgroup = i / LANES;
  ids.simdgroups = group.simdgroups;
  f.stack = stack_of(i);
  f.id = group.number << 10 | i;
}

// Threads beyond the grid do not exist: tail groups are smaller.
static void run_threadgroup(unsigned number, const unsigned* grid, const unsigned* dispatch,
                            const unsigned* groups) {
  const unsigned at[3] = {number % groups[0], number / groups[0] % groups[1],
                          number / (groups[0] * groups[1])};
  unsigned size[3];
  group.threads = 1;
  for (int d = 0; d < 3; d++) {
    const unsigned left = grid[d] - at[d] * dispatch[d];
    size[d] = left < dispatch[d] ? left : dispatch[d];
    group.threads *= size[d];
  }
  group.number = number;
  group.simdgroups = (group.threads + LANES - 1) / LANES;
  for (unsigned i = 0; i < group.threads; i++)
    place_thread(group.fibers[i], i, at, size, grid, dispatch, groups);
  checker.threadgroup.start();
  for (unsigned s = 0; s < group.simdgroups; s++) checker.simdgroup[s].start();
  threadgroup_memory_reset(checker.on);
  run_group();
}

static const msl_kernel* find_kernel(const char* name) {
  for (unsigned i = 0; i < msl_kernel_count; i++)
    if (!strcmp(msl_kernels[i].name, name)) return &msl_kernels[i];
  return nullptr;
}

// Returns the number of findings; msl_failure() says why a launch could not be made.
MSL_API int msl_launch(const char* name, void** buffers, const Region* regions, int region_count,
                       const unsigned* grid, const unsigned* dispatch, uint64_t seed, int check,
                       int allow_partial) {
  findings_clear();
  const msl_kernel* kernel = find_kernel(name);
  unsigned groups[3];
  uint64_t total = 1;
  for (int d = 0; d < 3; d++) total *= groups[d] = (grid[d] + dispatch[d] - 1) / dispatch[d];
  if (!kernel) fail("no kernel %s in this library", name);
  if (!stacks && !prepare_stacks()) fail("no memory for the threads' stacks");
  if (total >= 1u << 22)
    fail("%llu threadgroups: at most 4194303 can be simulated", (unsigned long long)total);
  if (failure()[0]) return 0;
  group.run = kernel->run;
  group.buffers = buffers;
  group.stopped = false;
  group.allow_partial = allow_partial;
  group.random = seed * 0x2545f4914f6cdd1dull + 1;
  checker.on = check;
  if (check) shadow_begin(regions, region_count);
  unsigned* order = (unsigned*)malloc(total * sizeof(unsigned));
  for (unsigned i = 0; i < total; i++) order[i] = i;
  for (unsigned left = (unsigned)total; left && !group.stopped; left--) {
    const unsigned pick = random_below(left), number = order[pick];
    order[pick] = order[left - 1];
    run_threadgroup(number, grid, dispatch, groups);
  }
  free(order);
  if (check) shadow_end();
  return findings_count();
}
MSL_API size_t msl_threadgroup_memory() { return threadgroup_memory_used(); }
