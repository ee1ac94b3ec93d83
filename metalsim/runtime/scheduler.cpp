// One threadgroup: fibers, simdgroup rendezvous and barriers under a randomised schedule.
#include <string.h>

#include "runtime.h"

Group group;
const msl_thread_ids* msl_current;
static Context scheduler_context;

uint32_t random_below(uint32_t n) {  // splitmix64
  uint64_t z = (group.random += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return (uint32_t)((z ^ (z >> 31)) % n);
}

static void yield(State state) {
  group.current->state = state;
  context_switch(&group.current->context, &scheduler_context);
}
static void fiber_main() {
  group.run(group.buffers);
  yield(DONE);
  __builtin_trap();
}
void stop_launch() {
  group.stopped = true;
  yield(DONE);
  __builtin_trap();
}

// ---- what a kernel calls ----------------------------------------------------------------------
static void wait_at(State state, msl_site site, const char* name, unsigned flags) {
  Fiber* f = group.current;
  f->site = site;
  f->name = name;
  f->flags = flags;
  yield(state);
}
static unsigned char* slot_of(const Fiber* f) {
  return group.offered[f->ids.simdgroup][f->ids.lane];
}

extern "C" void msl_rt_barrier(int scope, unsigned flags, msl_site site) {
  if (scope)
    wait_at(AT_THREADGROUP_BARRIER, site, "threadgroup_barrier", flags);
  else
    wait_at(AT_SIMDGROUP_BARRIER, site, "simdgroup_barrier", flags);
}

extern "C" unsigned msl_rt_gather(const void* value, void* slots, unsigned size, msl_site site,
                                  const char* name) {
  Fiber* f = group.current;
  if (size) memcpy(slot_of(f), value, size);
  f->shuffles = false;
  wait_at(AT_COLLECTIVE, site, name, 0);
  for (unsigned i = 0; size && i < LANES; i++)
    memcpy((unsigned char*)slots + i * size, group.taken[f->ids.simdgroup][i], size);
  return f->active;
}

extern "C" void msl_rt_shuffle(void* value, unsigned size, unsigned source, msl_site site,
                               const char* name) {
  Fiber* f = group.current;
  memcpy(slot_of(f), value, size);
  f->shuffles = true;
  f->source = source;
  wait_at(AT_COLLECTIVE, site, name, 0);
  if (source < LANES && (f->active >> source & 1)) {
    memcpy(value, group.taken[f->ids.simdgroup][source], size);
    return;
  }
  memset(value, 0xFD, size);  // what an inactive lane holds is undefined: make it show
}

// ---- rendezvous of one simdgroup --------------------------------------------------------------
static bool waits_at_collective(const Fiber& f) {
  return f.state == AT_COLLECTIVE || f.state == AT_SIMDGROUP_BARRIER;
}
static bool same_place(const Fiber& a, const Fiber& b) {
  return a.state == b.state && a.name == b.name && a.site.line == b.site.line &&
         a.site.column == b.site.column && a.site.file == b.site.file;
}
static bool earlier(const Fiber& a, const Fiber& b) {
  if (a.site.line != b.site.line) return a.site.line < b.site.line;
  return a.site.column < b.site.column;
}

static void check_collective(Fiber* lanes, unsigned n, unsigned mask, const Fiber& first) {
  const unsigned everyone = n == LANES ? ~0u : (1u << n) - 1;
  const Where where = {first.site.file, first.site.line};
  if (mask != everyone && (first.state == AT_SIMDGROUP_BARRIER || !group.allow_partial)) {
    bool elsewhere = false;
    for (unsigned i = 0; i < n; i++) elsewhere |= !(mask >> i & 1) && lanes[i].state != DONE;
    report(first.state == AT_SIMDGROUP_BARRIER ? "divergent barrier" : "divergent collective",
           where, "%s reached by %d of %u lanes of simdgroup %u (mask %08x); the others %s",
           first.name, __builtin_popcount(mask), n, first.ids.simdgroup, mask,
           elsewhere ? "wait elsewhere" : "have returned");
  }
  for (unsigned i = 0; i < n; i++) {
    const Fiber& f = lanes[i];
    if (!(mask >> i & 1) || f.state != AT_COLLECTIVE || !f.shuffles) continue;
    if (f.source < LANES && (mask >> f.source & 1)) continue;
    report("inactive lane", where,
           "%s: lane %u reads lane %u, which is inactive (undefined on a GPU)", f.name, i,
           f.source);
  }
}

// Releases the lanes that wait at the earliest collective once no lane of the simdgroup can run.
static void resolve_simdgroup(unsigned simdgroup) {
  Fiber* lanes = group.fibers + simdgroup * LANES;
  const unsigned left = group.threads - simdgroup * LANES, n = left < LANES ? left : LANES;
  const Fiber* first = nullptr;
  for (unsigned i = 0; i < n; i++) {
    if (lanes[i].state == RUNNING) return;
    if (waits_at_collective(lanes[i]) && (!first || earlier(lanes[i], *first))) first = &lanes[i];
  }
  if (!first) return;
  unsigned mask = 0;
  for (unsigned i = 0; i < n; i++)
    if (same_place(lanes[i], *first)) mask |= 1u << i;
  if (checker.on) check_collective(lanes, n, mask, *first);
  if (first->state == AT_SIMDGROUP_BARRIER) checker.simdgroup[simdgroup].barrier(first->flags);
  // A copy: a lane that runs ahead offers its next value before the others have read this one.
  memcpy(group.taken[simdgroup], group.offered[simdgroup], sizeof group.taken[simdgroup]);
  for (unsigned i = 0; i < n; i++)
    if (mask >> i & 1) {
      lanes[i].active = mask;
      lanes[i].state = RUNNING;
    }
}

// ---- the threadgroup --------------------------------------------------------------------------
static void run_lanes(unsigned simdgroup) {
  unsigned order[LANES], n = 0;
  for (unsigned i = simdgroup * LANES; i < group.threads && i < (simdgroup + 1) * LANES; i++)
    if (group.fibers[i].state == RUNNING) order[n++] = i;
  while (n && !group.stopped) {
    const unsigned pick = random_below(n);
    Fiber* f = &group.fibers[order[pick]];
    order[pick] = order[--n];
    group.current = f;
    msl_current = &f->ids;
    context_switch(&scheduler_context, &f->context);
    group.current = nullptr;
  }
}

// All live threads wait at threadgroup barriers: check that it is the same one, and let them go.
static bool release_barrier() {
  const Fiber* first = nullptr;
  unsigned waiting = 0;
  bool same = true;
  for (unsigned i = 0; i < group.threads; i++) {
    const Fiber& f = group.fibers[i];
    if (f.state == DONE) continue;
    waiting++;
    if (!first)
      first = &f;
    else
      same = same && same_place(f, *first);
  }
  if (!first) return false;
  const Where where = {first->site.file, first->site.line};
  if (checker.on && waiting != group.threads)
    report("divergent barrier", where, "%u threads wait at threadgroup_barrier, %u have returned",
           waiting, group.threads - waiting);
  if (checker.on && !same)
    report("divergent barrier", where, "the threads of a threadgroup wait at different barriers");
  checker.threadgroup.barrier(first->flags);
  for (unsigned i = 0; i < group.threads; i++)
    if (group.fibers[i].state != DONE) group.fibers[i].state = RUNNING;
  return true;
}

// A random simdgroup at a time, its lanes in random order: simdgroups drift apart as on a GPU.
void run_group() {
  for (unsigned i = 0; i < group.threads; i++) {
    Fiber& f = group.fibers[i];
    f.state = RUNNING;
    context_prepare(&f.context, f.stack, STACK_BYTES, fiber_main);
  }
  while (!group.stopped) {
    unsigned ready[MAX_SIMDGROUPS], n = 0;
    for (unsigned s = 0; s < group.simdgroups; s++)
      for (unsigned i = s * LANES; i < group.threads && i < (s + 1) * LANES; i++)
        if (group.fibers[i].state == RUNNING) {
          ready[n++] = s;
          break;
        }
    if (n) {
      const unsigned s = ready[random_below(n)];
      run_lanes(s);
      if (!group.stopped) resolve_simdgroup(s);
    } else if (!release_barrier()) {
      return;
    }
  }
}
