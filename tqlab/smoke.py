"""One setting, TQLAB_SMOKE=1, shrinks every notebook and example to seconds."""

import os
from typing import TypeVar

T = TypeVar("T")


def smoke(full: T, small: T) -> T:
    """`small` where the environment says TQLAB_SMOKE=1, `full` everywhere else."""
    return small if os.environ.get("TQLAB_SMOKE") == "1" else full
