"""The GPU's benchmark counts what it should; on the CPU, since what is counted does not depend on the device."""

import gpu
from iog.backends import open_backend
from iog.bundle import Bundle


def test_only_clicks_after_warming_up_are_in_the_rows_and_stages_are_those_of_each_kind() -> None:
    times = gpu.end_to_end(Bundle.open(), open_backend("ort"), clicks=3)
    rows = {"first click": ("crop", "encoder", "clicks", "head", "mask"), "correction": ("clicks", "head", "mask")}
    assert times.keys() == {*rows, *(f"{name}: {stage}" for name, stages in rows.items() for stage in stages)}
    assert {len(values) for values in times.values()} == {3}
    for name, stages in rows.items():
        for whole, *parts in zip(times[name], *(times[f"{name}: {stage}"] for stage in stages), strict=True):
            assert 0 < sum(parts) < whole
