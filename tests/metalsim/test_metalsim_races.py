"""The race checker against an oracle that compares every pair of accesses.

Random programs: threads of three simdgroups and two threadgroups read and write a few cells, with
barriers of random scope and flags in between. The oracle knows no schedule, no shadow memory and
no epochs: two accesses race iff they conflict and no barrier with the right flag lies between.
"""

import itertools
import re

import numpy as np
import pytest

import metalsim

SOURCE = """
#include <metal_stdlib>
using namespace metal;
// steps: per thread and phase, (0 none, 1 read, 2 write) * 8 + cell
// syncs: per phase, scope * 4 + flags
kernel void program(device int* cells, device const int* steps, device const int* syncs,
                    device int* sink, device const int& phases,
                    uint gid [[thread_position_in_grid]], uint t [[thread_index_in_threadgroup]],
                    uint size [[threads_per_threadgroup]]) {
  threadgroup int local[4];
  for (uint i = t; i < 4; i += size) local[i] = 0;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  int sum = 0;
  for (int p = 0; p < phases; p++) {
    const int step = steps[gid * phases + p], kind = step / 8, cell = step % 8;
    if (kind == 1) sum += cell < 4 ? cells[cell] : local[cell - 4];
    if (kind == 2 && cell < 4) cells[cell] = int(gid);
    if (kind == 2 && cell >= 4) local[cell - 4] = int(gid);
    const int scope = syncs[p] / 4, flags = syncs[p] % 4;
    if (scope == 1 && flags == 0) simdgroup_barrier(mem_flags::mem_none);
    if (scope == 1 && flags == 1) simdgroup_barrier(mem_flags::mem_device);
    if (scope == 1 && flags == 2) simdgroup_barrier(mem_flags::mem_threadgroup);
    if (scope == 2 && flags == 0) threadgroup_barrier(mem_flags::mem_none);
    if (scope == 2 && flags == 1) threadgroup_barrier(mem_flags::mem_device);
    if (scope == 2 && flags == 2) threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  sink[gid] = sum;
}
"""
GROUP, GROUPS, PHASES = 80, 2, 6  # simdgroups of 32, 32 and 16 lanes
ACTORS = [0, 1, 31, 32, 33, 70, GROUP, GROUP + 40]  # the threads that do anything


def ordered(a: tuple, b: tuple, syncs: np.ndarray) -> bool:
    """Whether barriers order access a (thread, phase, kind, cell) before access b."""
    (ta, pa, _, cell), (tb, pb, _, _) = a, b
    if ta == tb:
        return True
    if ta // GROUP != tb // GROUP:
        return False
    flag = 1 if cell < 4 else 2
    same_simdgroup = ta % GROUP // 32 == tb % GROUP // 32
    between = syncs[min(pa, pb) : max(pa, pb)]
    return any(s % 4 == flag and (s // 4 == 2 or (s // 4 == 1 and same_simdgroup)) for s in between)


def races(steps: np.ndarray, syncs: np.ndarray) -> set[frozenset[int]]:
    """The pairs of threads with unordered accesses to one cell, one of them a write."""
    accesses = [
        (t, p, steps[t, p] // 8, steps[t, p] % 8)
        for t in ACTORS
        for p in range(PHASES)
        if steps[t, p] >= 8
    ]
    return {
        frozenset((a[0], b[0]))
        for a, b in itertools.combinations(accesses, 2)
        if a[3] == b[3] and (a[3] < 4 or a[0] // GROUP == b[0] // GROUP)
        if 2 in (a[2], b[2]) and not ordered(a, b, syncs)
    }


def named(findings: list[metalsim.Finding]) -> set[frozenset[int]]:
    """The pairs of threads that messages blame."""
    number = re.compile(r"threadgroup (\d+) thread (\d+)")
    pairs = [number.findall(f.message) for f in findings]
    return {frozenset(int(g) * GROUP + int(t) for g, t in pair) for pair in pairs}


def random_program(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    steps = np.zeros((GROUP * GROUPS, PHASES), np.int32)
    actors = rng.choice(ACTORS, rng.integers(2, 5), replace=False)
    cells = rng.choice(8, 2, replace=False)
    for t in actors:
        kinds = rng.choice(3, PHASES, p=[0.5, 0.35, 0.15])
        steps[t] = kinds * 8 + rng.choice(cells, PHASES)
    syncs = rng.integers(0, 3, PHASES) * 4 + rng.choice(3, PHASES, p=[0.1, 0.45, 0.45])
    return steps, syncs.astype(np.int32)


def test_checker_agrees_with_the_oracle(compiler):
    library = metalsim.compile_shader(SOURCE, check=True, name="program.metal")
    rng = np.random.default_rng(11)
    verdicts = []
    for seed in range(600):
        library.seed = seed
        steps, syncs = random_program(rng)
        expected = races(steps, syncs)
        cells, sink = np.zeros(4, np.int32), np.zeros(GROUP * GROUPS, np.int32)
        phases = np.array([PHASES], np.int32)
        findings: list[metalsim.Finding] = []
        try:
            library.program(
                cells, steps, syncs, sink, phases, threads=GROUP * GROUPS, group_size=GROUP
            )
        except metalsim.Diagnostics as caught:
            findings = caught.findings
        program = f"program {seed}: {findings}\n{steps[ACTORS]}\n{syncs}"
        assert {f.kind for f in findings} <= {"race", "wrong memory flag"}
        assert bool(findings) == bool(expected), program
        assert named(findings) <= expected, program
        verdicts.append(bool(expected))
    assert 0.2 < np.mean(verdicts) < 0.8  # both answers were tried


@pytest.mark.parametrize("seed", range(3))
def test_the_oracle_tells_order_from_disorder(seed):
    steps = np.zeros((GROUP * GROUPS, PHASES), np.int32)
    steps[0, 0], steps[32, 1] = 2 * 8 + 5, 1 * 8 + 5
    syncs = np.zeros(PHASES, np.int32)
    assert races(steps, syncs) == {frozenset((0, 32))}
    syncs[0] = [2 * 4 + 2, 2 * 4 + 1, 1 * 4 + 2][seed]
    assert bool(races(steps, syncs)) == (seed > 0)
