"""Inner products and attention weights behind a quantiser: bias, variance, KL."""

import torch
from torch import Tensor

from .. import codebook as cb
from ..innerproduct import InnerProductQuantizer
from .errors import round_trip
from .vectors import gaussian, rotated

Row = dict


def inner_product_rows(n: int, bits=(1, 2, 3, 4), dim: int = 128, repeats: int = 8, seed: int = 0):
    """Bias and variance of <y, x^> for the MSE quantiser and for the two-stage variant.

    n unit vectors x for each of `repeats` draws of the rotation and of S. Slopes: regression of
    <y, x^> on <y, x>, the latter spread over -1 .. 1; 1 is unbiased. Errors: y independent of x.
    Row: bits, slope_mse, slope_theory (1 - D), slope_prod, d_mse and d_prod (E (error)^2 * d),
    d_prod_theory
    """
    draws = [seed + 100 * i for i in range(repeats)]
    return [_inner_product_row(n, b, dim, draws) for b in bits]


def _inner_product_row(n, bits, dim, draws):
    columns = [_estimates(n, bits, dim, seed) for seed in draws]
    true, mse, prod = torch.cat(columns, -1).double()  # each [2, n * repeats]: spread, independent
    (x, _), scale = true, (true[0] * true[0]).sum()
    return {
        "bits": bits,
        "slope_mse": float((x * mse[0]).sum() / scale),
        "slope_theory": 1 - cb.distortion(*cb.lloyd_max(bits)),
        "slope_prod": float((x * prod[0]).sum() / scale),
        "d_mse": float((mse - true)[1].square().mean() * dim),
        "d_prod": float((prod - true)[1].square().mean() * dim),
        "d_prod_theory": cb.inner_product_distortion(bits),
    }


def _estimates(n, bits, dim, seed):
    """<y, x>, its MSE-quantised and its two-stage estimate: [3, 2, n], y spread and independent."""
    x = torch.nn.functional.normalize(gaussian(n, dim, seed + 2), dim=-1)
    w = torch.nn.functional.normalize(gaussian(n, dim, seed + 3), dim=-1)
    rho = torch.linspace(-1, 1, n)[:, None]
    y = torch.nn.functional.normalize(rho * x + (1 - rho * rho).sqrt() * w, dim=-1)
    two_stage = InnerProductQuantizer(dim, bits, seed)
    one_stage = InnerProductQuantizer(dim, bits + 1, seed)  # its first stage has `bits` bits
    mse = one_stage.mean_only(one_stage.quantize(x))
    prod = two_stage.dequantize(two_stage.quantize(x))
    return torch.stack([torch.stack([(v * u).sum(-1) for u in (y, w)]) for v in (x, mse, prod)])


def attention_rows(n_keys: int, n_queries: int, bits=(2, 3, 4), dim: int = 128, seed: int = 0):
    """KL of attention weights when keys are quantised: Gaussian heads, logits of variance 1.

    Row: bits, mse (nats, the MSE quantiser with norm correction), prod (nats, two-stage variant)
    """
    keys, queries = gaussian(n_keys, dim, seed), gaussian(n_queries, dim, seed + 1)
    exact = (queries @ keys.T / dim**0.5).log_softmax(-1)
    rows = []
    for b in bits:
        z, q = round_trip(keys, b, "wht")
        size = keys.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True)
        two_stage = InnerProductQuantizer(dim, b, seed)
        prod = queries @ two_stage.dequantize(two_stage.quantize(keys)).T
        mse = rotated(queries, "wht") @ (q * size).T
        rows.append({"bits": b, "mse": _kl(exact, mse, dim), "prod": _kl(exact, prod, dim)})
    return rows


def _kl(exact: Tensor, products: Tensor, dim: int) -> float:
    other = (products / dim**0.5).log_softmax(-1)
    return float((exact.exp() * (exact - other)).sum(-1).mean())
