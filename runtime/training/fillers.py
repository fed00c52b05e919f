"""First values of weights.

A matrix is [inputs, outputs], as in x W, or [outputs, inputs], as in W x, if `transposed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt

import numpy as np

Shape = Sequence[int]


def fans(shape: Shape, transposed: bool = False) -> tuple[int, int]:
    """How many inputs an output has, and how many outputs an input.

    Tensors with more than two dimensions are convolution kernels [outputs, inputs, *window] if `transposed`, else
    stacks of matrices [..., inputs, outputs].
    """
    if len(shape) < 2:
        size = int(np.prod(shape, dtype=int)) or 1
        return size, size
    if len(shape) == 2 or not transposed:
        inputs, outputs = shape[-2], shape[-1]
        return (outputs, inputs) if transposed else (inputs, outputs)
    window = int(np.prod(shape[2:], dtype=int))
    return shape[1] * window, shape[0] * window


def glorot_uniform(random: np.random.Generator, shape: Shape, transposed: bool = False) -> np.ndarray:
    """Uniform within sqrt(6 / (inputs + outputs)) (Glorot and Bengio 2010, eq. 16)."""
    bound = sqrt(6 / sum(fans(shape, transposed)))
    return random.uniform(-bound, bound, shape)


def glorot_normal(random: np.random.Generator, shape: Shape, transposed: bool = False) -> np.ndarray:
    """Truncated normal with the variance 2 / (inputs + outputs)."""
    return truncated(random, shape, sqrt(2 / sum(fans(shape, transposed))))


def he_uniform(random: np.random.Generator, shape: Shape, transposed: bool = False) -> np.ndarray:
    """Uniform within sqrt(6 / inputs) (arXiv 1502.01852, eq. 10)."""
    bound = sqrt(6 / fans(shape, transposed)[0])
    return random.uniform(-bound, bound, shape)


def he_normal(random: np.random.Generator, shape: Shape, transposed: bool = False) -> np.ndarray:
    """Truncated normal with the variance 2 / inputs."""
    return truncated(random, shape, sqrt(2 / fans(shape, transposed)[0]))


def lecun_uniform(random: np.random.Generator, shape: Shape, transposed: bool = False) -> np.ndarray:
    """Uniform within sqrt(3 / inputs)."""
    bound = sqrt(3 / fans(shape, transposed)[0])
    return random.uniform(-bound, bound, shape)


def lecun_normal(random: np.random.Generator, shape: Shape, transposed: bool = False) -> np.ndarray:
    """Truncated normal with the variance 1 / inputs (LeCun et al. 1998, section 4.6)."""
    return truncated(random, shape, sqrt(1 / fans(shape, transposed)[0]))


def orthogonal(random: np.random.Generator, shape: Shape, transposed: bool = False) -> np.ndarray:
    """Matrices whose rows or columns, whichever are fewer, are orthonormal (arXiv 1312.6120)."""
    *batch, rows, columns = shape if len(shape) >= 2 else (1, *shape)
    result = np.empty((int(np.prod(batch, dtype=int)), rows, columns))
    for matrix in result:
        q, r = np.linalg.qr(random.standard_normal((max(rows, columns), min(rows, columns))))
        q *= np.sign(np.diag(r))
        matrix[:] = q if rows >= columns else q.T
    return result.reshape(shape)


def truncated(random: np.random.Generator, shape: Shape, deviation: float = 0.05) -> np.ndarray:
    """Normal numbers with that standard deviation after those beyond two standard deviations were drawn again."""
    numbers = random.standard_normal(shape)
    while (beyond := np.abs(numbers) > 2).any():
        numbers[beyond] = random.standard_normal(int(beyond.sum()))
    return numbers * (deviation / 0.87962566103423978)


def normal(random: np.random.Generator, shape: Shape, deviation: float = 0.05) -> np.ndarray:
    """Normal numbers with that standard deviation."""
    return random.standard_normal(shape) * deviation


def uniform(random: np.random.Generator, shape: Shape, bound: float = 0.05) -> np.ndarray:
    """Uniform numbers from -bound to bound."""
    return random.uniform(-bound, bound, shape)


def constant(random: np.random.Generator, shape: Shape, value: float = 0.0) -> np.ndarray:
    """One number everywhere."""
    return np.full(shape, value)


FILLERS: Mapping[str, Callable[..., np.ndarray]] = {
    function.__name__: function
    for function in (
        glorot_uniform,
        glorot_normal,
        he_uniform,
        he_normal,
        lecun_uniform,
        lecun_normal,
        orthogonal,
        constant,
        uniform,
        normal,
        truncated,
    )
}
"""By name: `filler(random, shape, ...)` gives float64 numbers of a shape."""
