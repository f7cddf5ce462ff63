import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _infinite_numbers():
    """The interpreter computes with NumPy, which warns of infinities where a GPU does not."""
    with np.errstate(all="ignore"):
        yield
