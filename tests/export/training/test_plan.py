from dataclasses import replace

import numpy as np
import pytest
from iog_export.networks import NetworkSpec
from iog_export.training.plan import CLICKS_FROM_TRAINED, Plan, differences
from iog_export.training.samples import Stage


@pytest.fixture
def plan(geometry) -> Plan:
    return Plan(
        NetworkSpec("resnet18", width=8),
        geometry,
        minutes=1,
        stages=((0.0, Stage(64, 2, 1.0)), (0.5, Stage(96, 1, 1.0))),
    )


def test_rate_rises_then_falls_to_nothing_and_once_more_for_the_settled_network(plan: Plan):
    plan = replace(plan, warm_up=0.1, settled=0.8, settled_rate=0.2)
    rates = [plan.rate(p) for p in (0.0, 0.05, 0.1, 0.5, 0.799999)]
    assert rates[0] < rates[1] < rates[2] == plan.learning_rate
    assert rates[2] > rates[3] > rates[4] == pytest.approx(plan.learning_rate / 1000, rel=1e-3)
    rates = [plan.rate(p) for p in (0.8, 0.9, 1.0, 1.5)]
    assert rates[0] == pytest.approx(plan.learning_rate / 5)
    assert rates[0] > rates[1] > rates[2] == rates[3] == pytest.approx(plan.learning_rate / 5000)


def test_rate_of_a_polished_network_never_exceeds_its_own_peak(plan: Plan):
    plan = replace(plan, warm_up=0.1, settled=0.0, settled_rate=0.2)
    assert max(plan.rate(p) for p in np.linspace(0, 1, 101)) == pytest.approx(plan.learning_rate / 5)


def test_rate_of_a_training_that_never_settles_falls_to_its_end(plan: Plan):
    assert replace(plan, settled=2.0).rate(1.0) == pytest.approx(plan.learning_rate / 1000)


def test_stages_and_clicks_follow_the_time(plan: Plan):
    assert [plan.stage(p) for p in (0.0, 0.49, 0.5, 1.2)] == [0, 0, 1, 1]
    assert [replace(plan, settled=s).stage(0.2) for s in (0.3, 0.2, 0.0)] == [0, 1, 1]
    rng = np.random.default_rng(0)
    early, middle, late = ({plan.corrections(p, rng) for _ in range(200)} for p in (0.1, 0.3, 0.9))
    assert (early, middle, late) == ({0}, {0, 1}, {0, 1, 2, 3, 4})


def test_a_network_that_segments_already_is_corrected_from_the_start(plan: Plan):
    plan = replace(plan, clicks=CLICKS_FROM_TRAINED)
    rng = np.random.default_rng(0)
    assert {plan.corrections(0.0, rng) for _ in range(200)} == {0, 1, 2, 3}
    assert {plan.corrections(0.9, rng) for _ in range(1000)} == set(range(9))


def test_plans_differ_in_what_decides_the_result_and_in_nothing_else(plan: Plan):
    other = replace(plan, learning_rate=1e-3, spec=NetworkSpec("resnet18", width=16), save_every_s=1.0)
    assert differences(plan.settings, other.settings) == [
        "width is 8 there and 16 here",
        "learning_rate is 0.002 there and 0.001 here",
    ]
    assert differences({}, plan.settings) == []
