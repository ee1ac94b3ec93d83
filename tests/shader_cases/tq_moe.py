"""tq_moe.metal: any number of experts and slots, shared and separate rows, experts without work."""

import torch

from tqlab import ops

from . import DTYPES, case, gaussian
from .linear import TYPES, close, dense, weights


def route(tokens: int, top_k: int, n_experts: int) -> torch.Tensor:
    """Different experts for each token; expert 0 is popular, the last one always in use."""
    draw = torch.Generator().manual_seed(tokens + n_experts)
    ids = torch.stack([torch.randperm(n_experts, generator=draw)[:top_k] for _ in range(tokens)])
    ids[::2, 0] = 0
    ids[-1, -1] = n_experts - 1
    return ids


def routes(type, dtype, tokens, top_k, n_experts, shared, n_out=5, n_in=64) -> None:
    """Each slot against its expert's matrix."""
    w = weights(type, n_experts, n_out, n_in, seed=n_experts)
    x = gaussian(*((tokens,) if shared else (tokens, top_k)), n_in, seed=tokens, dtype=dtype)
    experts = route(tokens, top_k, n_experts)
    y = ops.tq_moe_linear(x, w, type, experts)
    assert y.shape == (tokens, top_k, n_out)
    rows = x[:, None].expand(tokens, top_k, n_in) if shared else x
    for e in experts.unique().tolist():
        close(y[experts == e], rows[experts == e], dense(type, w[e]))


def unknown_experts(tokens: int) -> None:
    """Ids outside 0 .. E - 1 give NaN in their own slot and nothing else."""
    w, x = weights("tq4_1s", 5, 70, 32), gaussian(tokens, 32)
    experts = torch.arange(tokens * 2).view(tokens, 2).int() % 7 - 1
    y = ops.tq_moe_linear(x, w, "tq4_1s", experts)
    with ops.reference():
        expected = ops.tq_moe_linear(x, w, "tq4_1s", experts)
    assert torch.equal(y.isnan(), expected.isnan())
    assert y.isnan().any()
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


f32 = torch.float32
CASES = [
    *(case(routes, t, d, 1, 3, 8, True) for t in TYPES for d in DTYPES),
    *(case(routes, t, d, 9, 2, 4, False) for t in TYPES for d in DTYPES),
    case(routes, "tq4_1s", f32, 8, 8, 128, False, 7, 288),
    case(routes, "tq4_1s", f32, 3, 5, 256, True, 3, 32),
    case(routes, "tq3_1s", f32, 1, 96, 96, True, 2, 32),  # llama.cpp's warm-up: every expert
    case(routes, "tq4_1s", f32, 70, 2, 3, True, 67, 64),  # more than one tile an expert
    case(routes, "tq3_1s", f32, 9, 8, 96, False, 3, 32),
    case(routes, "tq4_1s", f32, 10, 4, 128, True, 3, 32),
    case(routes, "tq4_1s", f32, 12, 2, 256, True, 3, 32),
    *(case(unknown_experts, tokens) for tokens in (3, 12)),
]
