"""The short form of `make chaos`: the same driver, fewer faults."""

import random
from collections.abc import Iterator

import pytest

from tests.chaos.cluster import Cluster, running_cluster
from tests.chaos.driver import Plan, drive
from tests.chaos.members import PROTOCOLS, Changes, Protocol, change_members
from tests.chaos.verifier import DELIVERIES, Delivery

RECORDS = 3_000
KILLS = 5
BOUNCES = 1
CHANGES = 8


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def seed() -> int:
    number = random.randrange(10_000)  # noqa: S311 - a schedule, no secret
    print(f"seed {number}")  # noqa: T201 - pytest shows it where the test fails
    return number


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_every_record_is_accounted_for_whatever_is_killed(cluster: Cluster, seed: int, delivery: Delivery) -> None:
    run = drive(cluster, Plan(delivery, RECORDS, KILLS, BOUNCES, seed), print)

    assert run.problems == ()
    assert run.report.duplicates <= run.allowed_duplicates


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_members_that_join_and_leave_cost_and_repeat_nothing(
    cluster: Cluster, seed: int, protocol: Protocol, delivery: Delivery
) -> None:
    run = change_members(cluster, Changes(delivery, protocol, CHANGES, seed), print)

    assert run.problems == ()
    assert run.report.duplicates == 0 or run.lost_sessions
