"""One side of a comparison in a process of its own: python -m benchmarks.side CASE SIDE FOLDER N.

Prints seconds of N calls after one that is not counted (of the first alone where the case is cold),
and what this framework makes of a plain product of matrices, in FLOP/s.
"""

import importlib.util
import json
import sys
import time
from pathlib import Path

from benchmarks.all import CASES
from benchmarks.cases import Case

MATRIX = 2048


def main() -> None:
    name, side, folder, repeats = sys.argv[1:]
    case = CASES[name]
    torch = "torch" in case.sides[side].needs
    if torch:
        declare_torchvision()
    call = case.sides[side].build(Path(folder))
    print(json.dumps({"seconds": timed(case, call, int(repeats)), "peak": matmul_peak(torch)}))


def timed(case: Case, call, repeats: int) -> list[float]:
    seconds = []
    for _ in range(1 if case.cold else repeats + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds if case.cold else seconds[1:]


def matmul_peak(in_torch: bool) -> float:
    """The fastest of ten products of two square float32 matrices."""
    if in_torch:
        import torch

        a = torch.ones((MATRIX, MATRIX))

        def call():
            return a @ a
    else:
        import jax
        import jax.numpy as jnp

        a = jnp.ones((MATRIX, MATRIX))
        product = jax.jit(jnp.dot)

        def call():
            return jax.block_until_ready(product(a, a))

    call()
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return 2 * MATRIX**3 / best


def declare_torchvision() -> None:
    """torchvision's compiled operators are missing with a PyTorch that is not PyPI's; none is used.

    Whatever imports torchvision would fail for want of their declarations.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    import torch

    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision.declarations = library  # they end with it


if __name__ == "__main__":
    main()
