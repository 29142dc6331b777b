import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from iog_export.networks import IOG, NetworkSpec

GOLDEN = Path(__file__).parents[1] / "golden"
fill = runpy.run_path(str(GOLDEN / "weights.py"))["fill"]


@pytest.fixture(scope="session")
def filled() -> Callable[..., IOG]:
    """Networks with weights and batch norm statistics as of training, the same ones every time."""

    def make(spec: NetworkSpec, *, seed: int = 7, dtype: torch.dtype = torch.float64) -> IOG:
        network = IOG(spec)
        values = fill({key: tuple(value.shape) for key, value in network.state_dict().items()}, seed)
        network.load_state_dict({key: torch.from_numpy(value) for key, value in values.items()})
        return network.to(dtype).eval()

    return make
