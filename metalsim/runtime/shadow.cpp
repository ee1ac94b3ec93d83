// Memory checks. The kernel is compiled with -fsanitize=thread, and the __tsan_* hooks are ours:
// each load and store reaches byte-level shadow cells that remember the last write, the reads since
// it, and how many barriers lay before them.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime.h"

enum Kind { IN_DEVICE = 0, IN_THREADGROUP = 1 };
enum Readers : uint8_t { OTHER_LANES = 1, OTHER_SIMDGROUPS = 2, OTHER_THREADGROUPS = 4 };

struct Access {
  uint32_t thread;  // Fiber::id + 1; 0: none
  uint32_t threadgroup_count, simdgroup_count;
  int32_t pc;  // relative to this library
};
struct Cell {  // `read` is the last one since the write
  Access write, read, far_read;
  uint8_t readers;  // who else has read since; `far_read` is one of the farthest of them
  bool atomic;
};
struct Buffer {
  Region region;
  Cell* cells;  // null when read-only: reads alone cannot race
};
struct ThreadgroupArray {
  const void* key;
  size_t start, bytes;
  char name[48];
};

Checker checker;
static Buffer buffers[MAX_REGIONS];
static int buffer_count, last_buffer;
static unsigned char* threadgroup_memory;
static Cell* threadgroup_cells;
static ThreadgroupArray arrays[MAX_THREADGROUP_ARRAYS];
static int array_count;
static size_t threadgroup_top, threadgroup_bytes;

static int32_t relative(const void* pc) { return (int32_t)((intptr_t)pc - (intptr_t)&checker); }
static const void* absolute(int32_t pc) { return (const void*)((intptr_t)&checker + pc); }

// ---- threadgroup memory: arrays appear as the kernel's declarations are reached ---------------
void threadgroup_memory_reset(bool checked) {
  if (!threadgroup_memory) {
    threadgroup_memory = (unsigned char*)mmap(nullptr, THREADGROUP_ARENA, PROT_READ | PROT_WRITE,
                                              MAP_PRIVATE | MAP_ANON, -1, 0);
    threadgroup_top = THREADGROUP_ARENA;
  }
  if (checked && !threadgroup_cells)
    threadgroup_cells = (Cell*)calloc(THREADGROUP_ARENA, sizeof(Cell));
  memset(threadgroup_memory, 0xFD, threadgroup_top);  // junk, as another kernel would have left
  if (checked) memset((void*)threadgroup_cells, 0, threadgroup_top * sizeof(Cell));
  array_count = 0;
  threadgroup_top = threadgroup_bytes = 0;
}
size_t threadgroup_memory_used() { return threadgroup_bytes; }

extern "C" void* msl_rt_threadgroup(const void* key, size_t bytes, size_t align) {
  for (int i = 0; i < array_count; i++)
    if (arrays[i].key == key) return threadgroup_memory + arrays[i].start;
  const size_t start = (threadgroup_top + THREADGROUP_GAP + align - 1) & ~(align - 1);
  threadgroup_bytes += (bytes + 15) & ~(size_t)15;
  if (threadgroup_bytes > THREADGROUP_LIMIT || array_count == MAX_THREADGROUP_ARRAYS) {
    fail("threadgroup memory: %zu bytes exceed the limit of %zu", threadgroup_bytes,
         THREADGROUP_LIMIT);
    stop_launch();
  }
  ThreadgroupArray& array = arrays[array_count++];
  array.key = key;
  array.start = start;
  array.bytes = bytes;
  snprintf(array.name, sizeof array.name, "a threadgroup array of %zu bytes", bytes);
  threadgroup_top = start + bytes;
  return threadgroup_memory + start;
}

// ---- races ------------------------------------------------------------------------------------
static bool same_threadgroup(uint32_t a, uint32_t b) { return a >> 10 == b >> 10; }
static bool same_simdgroup(uint32_t a, uint32_t b) { return a >> 5 == b >> 5; }

// Whether a barrier of the simdgroup (of the threadgroup) has made accesses at that count visible.
static bool before_simdgroup_barrier(const Access& a, uint32_t me, Kind kind) {
  return a.simdgroup_count < checker.simdgroup[(me & 1023) >> 5].visible[kind];
}
static bool before_threadgroup_barrier(const Access& a, Kind kind) {
  return a.threadgroup_count < checker.threadgroup.visible[kind];
}

static bool ordered(const Access& before, uint32_t me, Kind kind) {
  const uint32_t other = before.thread - 1;
  if (other == me) return true;
  if (!same_threadgroup(other, me)) return false;
  if (before_threadgroup_barrier(before, kind)) return true;
  return same_simdgroup(other, me) && before_simdgroup_barrier(before, me, kind);
}
// A barrier lies between the accesses, but not one that makes this kind of memory visible.
static bool wrong_flag(const Access& before, uint32_t me) {
  const uint32_t other = before.thread - 1;
  if (!same_threadgroup(other, me)) return false;
  return before.threadgroup_count < checker.threadgroup.count ||
         (same_simdgroup(other, me) &&
          before.simdgroup_count < checker.simdgroup[(me & 1023) >> 5].count);
}
static void report_race(const char* what, const char* memory, size_t byte, const Access& before,
                        uint32_t me, Kind kind, const void* pc) {
  const uint32_t other = before.thread - 1;
  const Where there = where_is(absolute(before.pc));
  const bool flag = wrong_flag(before, me);
  const char* hint = !same_threadgroup(other, me)
                         ? "nothing orders different threadgroups within a launch"
                     : !flag             ? "no barrier between them"
                     : kind == IN_DEVICE ? "the barrier between them lacks mem_device"
                                         : "the barrier between them lacks mem_threadgroup";
  report(
      flag ? "wrong memory flag" : "race", where_is(pc),
      "%s of %s, byte %zu: threadgroup %u thread %u (simdgroup %u, lane %u) against threadgroup %u "
      "thread %u (simdgroup %u, lane %u) at %s:%d; %s",
      what, memory, byte, me >> 10, me & 1023, (me & 1023) >> 5, me & 31, other >> 10, other & 1023,
      (other & 1023) >> 5, other & 31, base_name(there.file), there.line, hint);
}

// Adds this read to the summary of reads since the last write. OTHER_SIMDGROUPS and OTHER_LANES
// speak of readers besides the last one that no barrier separates from it.
static void note_read(Cell& cell, uint32_t me, Kind kind, const Access& now) {
  uint8_t kept = 0, added = 0;
  if (cell.read.thread) {
    const uint32_t other = cell.read.thread - 1;
    kept = cell.readers & OTHER_THREADGROUPS;
    if (!same_threadgroup(other, me)) {
      added = OTHER_THREADGROUPS;
    } else if (!before_threadgroup_barrier(cell.read, kind)) {
      kept |= cell.readers & OTHER_SIMDGROUPS;
      if (!same_simdgroup(other, me)) {
        added = OTHER_SIMDGROUPS;
      } else if (!before_simdgroup_barrier(cell.read, me, kind)) {
        kept |= cell.readers & OTHER_LANES;
        added = other == me ? 0 : OTHER_LANES;
      }
    }
  }
  if (added >= kept) cell.far_read = cell.read;
  cell.read = now;
  cell.readers = kept | added;
}
static bool unordered_readers(const Cell& cell, uint32_t me, Kind kind) {
  if (!cell.read.thread) return false;
  if (!ordered(cell.read, me, kind) || (cell.readers & OTHER_THREADGROUPS)) return true;
  if (before_threadgroup_barrier(cell.read, kind)) return false;
  if (cell.readers & OTHER_SIMDGROUPS) return true;
  return (cell.readers & OTHER_LANES) && !before_simdgroup_barrier(cell.read, me, kind);
}

static void touch(Cell& cell, bool writes, bool atomic, Kind kind, const char* memory, size_t byte,
                  const void* pc) {
  const uint32_t me = group.current->id;
  const unsigned simdgroup = group.current->ids.simdgroup;
  const Access now = {me + 1, checker.threadgroup.count, checker.simdgroup[simdgroup].count,
                      relative(pc)};
  const bool both_atomic = atomic && cell.atomic;
  if (cell.write.thread && !both_atomic && !ordered(cell.write, me, kind))
    report_race(writes ? "write after write" : "read after write", memory, byte, cell.write, me,
                kind, pc);
  if (!writes) {
    if (!atomic) note_read(cell, me, kind, now);
    return;
  }
  if (unordered_readers(cell, me, kind))
    report_race("write after read", memory, byte,
                ordered(cell.read, me, kind) ? cell.far_read : cell.read, me, kind, pc);
  cell.write = now;
  cell.read.thread = 0;
  cell.readers = 0;
  cell.atomic = atomic;
}

// ---- where an address lies --------------------------------------------------------------------
void shadow_begin(const Region* regions, int count) {
  buffer_count = count;
  last_buffer = 0;
  for (int i = 0; i < count; i++) {
    buffers[i].region = regions[i];
    buffers[i].cells =
        regions[i].read_only ? nullptr : (Cell*)calloc(regions[i].bytes + 1, sizeof(Cell));
  }
}
void shadow_end() {
  for (int i = 0; i < buffer_count; i++) free(buffers[i].cells);
  buffer_count = 0;
}

static void in_threadgroup_memory(const unsigned char* p, size_t n, bool writes, bool atomic,
                                  const void* pc) {
  const size_t start = p - threadgroup_memory;
  const ThreadgroupArray* array = nullptr;
  for (int i = 0; i < array_count && !array; i++) {
    const ThreadgroupArray& a = arrays[i];
    if (start >= a.start && start + n <= a.start + a.bytes) array = &a;
  }
  if (!array) {
    report("out of bounds", where_is(pc), "%s outside every threadgroup array by thread %u",
           writes ? "write" : "read", group.current->ids.index);
    stop_launch();
  }
  for (size_t i = start; i < start + n; i++) {
    Cell& cell = threadgroup_cells[i];
    if (!writes && !cell.write.thread)
      report("uninitialised", where_is(pc),
             "thread %u reads byte %zu of %s, which no thread has written",
             group.current->ids.index, i - array->start, array->name);
    touch(cell, writes, atomic, IN_THREADGROUP, array->name, i - array->start, pc);
  }
}

static Buffer* nearest_buffer(const unsigned char* p) {
  for (int i = 0; i < buffer_count; i++) {
    Buffer& b = buffers[(last_buffer + i) % buffer_count];
    if (p >= b.region.start && p < b.region.start + b.region.bytes) {
      last_buffer = (int)(&b - buffers);
      return &b;
    }
  }
  Buffer* nearest = nullptr;  // outside all: name the one it most likely belongs to
  uintptr_t distance = ~(uintptr_t)0;
  for (int i = 0; i < buffer_count; i++) {
    const uintptr_t start = (uintptr_t)buffers[i].region.start,
                    end = start + buffers[i].region.bytes;
    const uintptr_t d = (uintptr_t)p < start ? start - (uintptr_t)p : (uintptr_t)p - end;
    if (d < distance) nearest = &buffers[i], distance = d;
  }
  return nearest;
}

static void in_buffers(const unsigned char* p, size_t n, bool writes, bool atomic, const void* pc) {
  Buffer* b = nearest_buffer(p);
  if (!b || p < b->region.start || p + n > b->region.start + b->region.bytes) {
    report("out of bounds", where_is(pc),
           "%s of %zu bytes at byte %ld of %s, which has %zu; by thread %u of threadgroup %u",
           writes ? "write" : "read", n, b ? (long)(p - b->region.start) : 0,
           b ? b->region.name : "no buffer", b ? b->region.bytes : 0, group.current->ids.index,
           group.number);
    stop_launch();
  }
  if (writes && b->region.read_only) {
    report("write through const", where_is(pc), "%s is const in the kernel's signature",
           b->region.name);
    return;
  }
  if (!b->cells) return;
  const size_t start = p - b->region.start;
  for (size_t i = 0; i < n; i++)
    touch(b->cells[start + i], writes, atomic, IN_DEVICE, b->region.name, start + i, pc);
}

// Program-scope constants and literals: readable if mapped. Remembers pages it has asked about.
static void elsewhere(const unsigned char* p, bool writes, const void* pc) {
  static uintptr_t known[64];
  static const uintptr_t page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
  const uintptr_t page = (uintptr_t)p / page_bytes;
  if (!writes && known[page & 63] == page) return;
  if (!writes && msync((void*)(page * page_bytes), 1, MS_ASYNC) == 0) {
    known[page & 63] = page;
    return;
  }
  report("out of bounds", where_is(pc), "%s of address %p, outside every buffer",
         writes ? "write" : "read", (const void*)p);
  stop_launch();
}

static void access(const void* address, size_t n, bool writes, bool atomic, size_t align,
                   const void* pc) {
  const unsigned char* p = (const unsigned char*)address;
  const Fiber* f = group.current;
  if (!f || !checker.on || (p >= f->stack && p < f->stack + STACK_BYTES)) return;
  if (p >= checker.stacks && p < checker.stacks_end) {
    report("out of bounds", where_is(pc), "access to another thread's private memory");
    stop_launch();
  }
  const bool in_arena = p >= checker.arena && p < checker.arena_end;
  const bool in_threadgroup = p >= threadgroup_memory && p < threadgroup_memory + THREADGROUP_ARENA;
  if ((in_arena || in_threadgroup) && ((uintptr_t)p & (align - 1)))
    report("misaligned", where_is(pc), "%zu-byte access at an address that is no multiple of %zu",
           n, align);
  if (in_threadgroup)
    in_threadgroup_memory(p, n, writes, atomic, pc);
  else if (in_arena)
    in_buffers(p, n, writes, atomic, pc);
  else
    elsewhere(p, writes, pc);
}

// ---- hooks ------------------------------------------------------------------------------------
extern "C" void msl_rt_atomic(const void* p, unsigned size, int writes) {
  access(p, size, writes, true, size, __builtin_return_address(0));
}

#define PC __builtin_return_address(0)
#define HOOKS(n, align)                                                                    \
  extern "C" void __tsan_read##n(void* p) { access(p, n, false, false, align, PC); }       \
  extern "C" void __tsan_write##n(void* p) { access(p, n, true, false, align, PC); }       \
  extern "C" void __tsan_unaligned_read##n(void* p) { access(p, n, false, false, 1, PC); } \
  extern "C" void __tsan_unaligned_write##n(void* p) { access(p, n, true, false, 1, PC); }
HOOKS(1, 1)
HOOKS(2, 2)
HOOKS(4, 4)
HOOKS(8, 8)
HOOKS(16, 8)
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void* __tsan_memcpy(void* to, const void* from, size_t n) {
  access(from, n, false, false, 1, PC);
  access(to, n, true, false, 1, PC);
  return memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, size_t n) {
  access(from, n, false, false, 1, PC);
  access(to, n, true, false, 1, PC);
  return memmove(to, from, n);
}
void* __tsan_memset(void* to, int value, size_t n) {
  access(to, n, true, false, 1, PC);
  return memset(to, value, n);
}
}

// Arrays whose size the compiler sees, private ones above all: -fsanitize=array-bounds.
struct ArrayType {
  uint16_t kind, info;
  char name[];  // quoted
};
struct ArrayBounds {
  msl_site site;
  const ArrayType *array, *index;
};
extern "C" void __ubsan_handle_out_of_bounds(const ArrayBounds* bounds, intptr_t index) {
  report("out of bounds", where_is(PC), "index %ld of %s, by thread %u", (long)index,
         bounds->array->name, group.current->ids.index);
  stop_launch();
}
