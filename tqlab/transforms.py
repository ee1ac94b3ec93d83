"""What happens to keys before they are quantised, and what makes up for it when they are read.

A transform works on one layer's keys as the cache gets them: behind rope. `encode` makes what is
quantised. When attention reads a tile, either `decode` brings the keys back to where they came from
(pre-RoPE transforms: d^2 multiply-adds a key) or `query` moves the queries to the keys (nothing a
key). `centre` is taken off every key of the layer, the exact ones too: a constant added to all
logits of a query, which softmax does not see.
Source: spec beyond 4.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .calibration import LayerStats
from .rotation import padded, rotate_product, unrotate_product

EPS = 1e-3  # share of the mean variance added to both covariances before they are inverted
# Post-RoPE statistics are means over positions below this. A longer range costs short contexts
# (slow pairs keep less of their offset there), a shorter one long contexts: see LOG.md.
RANGE = 4096
POSITIONS = 256  # of them, at random, for products


class Plain:
    """Keys as they are.

    Shapes: of all transforms: encode: k float32 [B, H_kv, T, D], positions int64 [T] or [B, 1, T]
    -> [B, H_kv, T, D]; query: q [B, H_kv, N, D] -> [B, H_kv, N, D']; decode: y, decoded by the
    format but still rotated by it, [B, H_kv, n, padded D], positions -> [B, H_kv, n, D'].
    Fields: centre, float32 [H_kv, 1, D] or None; turns (does decode need the keys' positions).
    """

    centre: Tensor | None = None
    turns = False

    def __init__(self, rotation: str | None, padded_dim: int):
        self.rotation, self.padded_dim = rotation, padded_dim

    def encode(self, k: Tensor, positions: Tensor) -> Tensor:
        """What is quantised."""
        return k

    def query(self, q: Tensor) -> Tensor:
        """The queries in the domain of decoded keys."""
        return self._rotate(q)

    def decode(self, y: Tensor, positions: Tensor | None) -> Tensor:
        """Keys that `query` can be multiplied with."""
        return y

    @property
    def nbytes(self) -> int:
        """Bytes of the layer's matrices and vectors, which all caches of a model share."""
        return sum(x.nbytes for x in vars(self).values() if isinstance(x, Tensor))

    def _rotate(self, x: Tensor) -> Tensor:
        return rotate_product(padded(x, self.padded_dim), self.rotation)


class Centred(Plain):
    """k - E[k], the mean over positions: the offset of pairs that turn slowly, for all alike."""

    def __init__(self, stats: LayerStats, turn, rotation: str | None, padded_dim: int):
        super().__init__(rotation, padded_dim)
        self.centre = mean_position(stats.mean[:, None], turn).float().to(turn.device)


class PairScaled(Centred):
    """Centred, and one scale for the two channels of each RoPE pair: it commutes with rope."""

    def __init__(self, stats: LayerStats, turn, rotation: str | None, padded_dim: int):
        super().__init__(stats, turn, rotation, padded_dim)
        variances = [x.diagonal(dim1=-2, dim2=-1) for x in regular(stats)]
        cov, second = (v + turn.mates(v) for v in variances)
        self.scale = (second / cov).pow(0.25)[:, None].float().to(turn.device)

    def encode(self, k, positions):
        return k * self.scale

    def query(self, q):
        return self._rotate(q / self.scale)


class Balanced(Plain):
    """T (k_pre - mu): before rope, undone at read. T balances keys against queries ("bal")."""

    turns = True

    def __init__(self, stats: LayerStats, turn, rotation: str | None, padded_dim: int):
        super().__init__(rotation, padded_dim)
        self._turn = turn
        forward, inverse = balance(*regular(stats))
        identity = unrotate_product(torch.eye(padded_dim), rotation)[:, : forward.shape[-1]]
        self.mean = stats.mean[:, None].float().to(turn.device)
        self.forward = forward.mT.float().to(turn.device)
        self.inverse = (identity.double() @ inverse.mT).float().to(turn.device)

    def encode(self, k, positions):
        return (self._turn(k, positions, back=True) - self.mean) @ self.forward

    def query(self, q):
        return q

    def decode(self, y, positions):
        return self._turn(y @ self.inverse + self.mean, positions)


class PostRope(Plain):
    """T (k - RoPE_p(mu)): behind rope, for all positions alike ("x"); the queries take T^-T.

    The bias q . RoPE_p(mu) is a product of what q and mu say about each pair with cos and sin of
    the key's position: decoded keys carry these behind their values, the queries their factors.
    """

    turns = True

    def __init__(self, stats: LayerStats, turn, rotation: str | None, padded_dim: int):
        super().__init__(rotation, padded_dim)
        self._turn = turn
        cov, second = (mean_product(x, turn) for x in regular(stats))
        forward, inverse = balance(cov, second)
        self.mean = stats.mean[:, None].float().to(turn.device)
        self.forward = forward.mT.float().to(turn.device)
        self.adjoint = self._rotate(inverse.float()).to(turn.device)

    def encode(self, k, positions):
        return (k - self._turn(self.mean, positions)) @ self.forward

    def query(self, q):
        return torch.cat([q @ self.adjoint, self._turn.factors(q, self.mean)], -1)

    def decode(self, y, positions):
        table = self._turn.columns(positions)
        return torch.cat([y, table.expand(*y.shape[:-1], -1)], -1)


KINDS: dict[str, Callable] = {
    "none": lambda stats, turn, *storage: Plain(*storage),
    "centre": Centred,
    "pair-scale": PairScaled,
    "bal": Balanced,
    "x": PostRope,
}


def regular(stats: LayerStats) -> tuple[Tensor, Tensor]:
    """Covariance of keys and second moment of queries, float64 [H, D, D], safe to invert."""
    return tuple(_regular(x.double()) for x in (stats.cov, stats.second))


def _regular(x: Tensor) -> Tensor:
    dim = x.shape[-1]
    share = EPS / dim * x.diagonal(dim1=-2, dim2=-1).sum(-1)
    return x + share[:, None, None] * torch.eye(dim, dtype=x.dtype)


def balance(cov: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """T and its inverse with T'T = C^-1 # A, the geometric mean of the two matrices.

    It minimises tr(A (T'T)^-1) tr(C T'T), the expected squared error of a logit under a quantiser
    whose error is the same in all directions and grows with the vector's length.
    Shapes: covariance C of keys, second moment A of queries: float64 [..., D, D] -> two of them
    """
    root, inverse_root = _power(cov, 0.5), _power(cov, -0.5)
    values, vectors = torch.linalg.eigh(root @ second @ root)
    quarter = values.clamp(min=torch.finfo(values.dtype).tiny).pow(0.25)
    forward = quarter[..., None] * (vectors.mT @ inverse_root)
    return forward, (root @ vectors) / quarter[..., None, :]


def _power(x: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(x)
    return (vectors * values.pow(exponent)[..., None, :]) @ vectors.mT


def positions(seed: int = 0) -> Tensor:
    """Random positions over which post-RoPE statistics are averaged: int64 [256]."""
    source = torch.Generator().manual_seed(seed)
    return torch.randint(RANGE, (POSITIONS,), generator=source)


def mean_position(x: Tensor, turn) -> Tensor:
    """E[RoPE_p(x)] over every position below RANGE: [H, 1, D] -> float64 [H, 1, D]."""
    turn.reserve(RANGE)
    every = torch.arange(RANGE, device=turn.device)
    return turn(x.float().to(turn.device), every).cpu().double().mean(-2, keepdim=True)


def mean_product(x: Tensor, turn) -> Tensor:
    """E[R_p X R_p'] over random positions p: float64 [H, D, D] -> the same."""
    turn.reserve(RANGE)
    total = torch.zeros_like(x)
    for part in positions().to(turn.device).split(16):
        spread = partial(turn, positions=part[:, None, None])
        turned = spread(spread(x.float().to(turn.device)[None]).mT.contiguous())
        total += turned.cpu().double().sum(0)  # MPS has no float64
    return total / POSITIONS
