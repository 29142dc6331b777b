from dataclasses import replace

import pytest
from iog_export.evaluation.protocol import Protocol


def test_moved_inside_points_depend_on_object_and_seed_alone(data):
    one, other = data[0], data[1]
    protocol = Protocol(inside_radius=60)
    assert protocol.opening(one) == protocol.opening(one)
    assert protocol.opening(one) != replace(protocol, seed=1).opening(one)
    inside = protocol.opening(other).inside
    assert other.mask[int(inside.y), int(inside.x)]
    assert inside != Protocol().opening(other).inside


def test_fewer_than_three_clicks_are_no_prompt():
    with pytest.raises(ValueError, match="2 clicks"):
        Protocol(clicks=2)
