"""Seeds of which `make test` takes the first few, and `make test-slow` the others."""

import pytest
from _pytest.mark import ParameterSet


def seeds(first: int, total: int) -> list[ParameterSet]:
    """Return seeds from 0 on, of which those after the ``first`` few are marked ``slow``."""
    marks = [() if seed < first else (pytest.mark.slow,) for seed in range(total)]
    return [pytest.param(seed, marks=each) for seed, each in enumerate(marks)]
