"""Weighted least squares of a few unknowns, without a library of matrices."""

from collections.abc import Sequence


def weighted_product(a: Sequence[float], b: Sequence[float], weights: Sequence[float]) -> float:
    """Return the sum of the products of two vectors, each with its weight."""
    return sum(x * y * w for x, y, w in zip(a, b, weights, strict=True))


def solved(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """Return the solution of a positive definite system, by elimination."""
    lines = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    size = len(lines)
    for i in range(size):
        for k in range(i + 1, size):
            factor = lines[k][i] / lines[i][i]
            lines[k] = [b - factor * a for a, b in zip(lines[i], lines[k], strict=True)]
    found = [0.0] * size
    for i in reversed(range(size)):
        rest = sum(lines[i][k] * found[k] for k in range(i + 1, size))
        found[i] = (lines[i][size] - rest) / lines[i][i]
    return found
