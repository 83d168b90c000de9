"""One real broker for the tests of a run, and three new topics for each of them."""

from collections.abc import Iterator

import pytest

from tests.broker.kafka import Kafka, Topics, create_topic, start_kafka

MAX_MESSAGE_BYTES = 32 * 1024 * 1024

_ROUTE = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Kafka]:
    broker = start_kafka(tmp_path_factory.mktemp("broker"))
    pytestconfig.stash[_ROUTE] = broker.route
    yield broker
    broker.close()


@pytest.fixture
def topics(kafka: Kafka, request: pytest.FixtureRequest) -> Topics:
    """Make new topics; `parametrize("topics", [1], indirect=True)` sets the partitions of the input."""
    names = Topics.named_anew()
    config = {"max.message.bytes": str(MAX_MESSAGE_BYTES)}
    create_topic(kafka.bootstrap_servers, names.input, getattr(request, "param", 4), config)
    create_topic(kafka.bootstrap_servers, names.output, 1, config)
    create_topic(kafka.bootstrap_servers, names.dead_letters, 1, config)
    return names


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _ROUTE in config.stash:
        terminalreporter.write_line(f"real broker: {config.stash[_ROUTE]}")
