import subprocess
import sys
import time
from queue import Empty
from threading import Event, Thread, Timer, current_thread, main_thread

import pytest

from worker.mailbox import Mailbox

PATIENCE_S = 10


def test_items_come_out_in_the_order_in_which_they_were_put() -> None:
    mailbox: Mailbox[int] = Mailbox()
    for item in (1, 2, 3):
        mailbox.put(item)

    assert len(mailbox) == 3
    assert [mailbox.take() for _ in range(3)] == [1, 2, 3]
    assert not mailbox.wait(0)
    with pytest.raises(Empty):
        mailbox.take()


def test_a_wait_ends_with_an_item() -> None:
    mailbox: Mailbox[int] = Mailbox()
    other = Thread(target=mailbox.put, args=(7,))
    begun_s = time.monotonic()
    other.start()

    assert mailbox.wait(PATIENCE_S)

    other.join(PATIENCE_S)
    assert mailbox.take() == 7
    assert time.monotonic() - begun_s < PATIENCE_S


def test_a_wait_for_several_items_ends_with_the_last_of_them() -> None:
    mailbox: Mailbox[int] = Mailbox()
    early: list[int] = []

    def put() -> None:
        for item in range(3):
            early.append(len(mailbox))
            mailbox.put(item)

    other = Thread(target=put)
    mailbox.put(7)
    begun_s = time.monotonic()
    other.start()

    assert mailbox.wait(PATIENCE_S, items=4)

    assert len(mailbox) == 4
    other.join(PATIENCE_S)
    assert early == [1, 2, 3]
    assert time.monotonic() - begun_s < PATIENCE_S


def test_a_wait_for_several_items_that_do_not_all_come_takes_its_time() -> None:
    mailbox: Mailbox[int] = Mailbox()
    other = Thread(target=mailbox.put, args=(7,))
    begun_s = time.monotonic()
    other.start()

    assert mailbox.wait(0.2, items=2)

    assert time.monotonic() - begun_s >= 0.2
    other.join(PATIENCE_S)
    assert [mailbox.take() for _ in range(len(mailbox))] == [7]


def test_an_item_that_came_after_a_wait_does_not_end_a_later_one() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.wait(0)
    mailbox.put(7)
    mailbox.take()
    begun_s = time.monotonic()

    assert not mailbox.wait(0.1)

    assert time.monotonic() - begun_s >= 0.1


@pytest.mark.parametrize("items", [1, 3])
def test_no_item_is_missed_where_waits_run_out_while_it_comes(items: int) -> None:
    mailbox: Mailbox[int] = Mailbox()

    def put() -> None:
        for item in range(3_000):
            mailbox.put(item)

    threads = [Thread(target=put) for _ in range(2)]
    for thread in threads:
        thread.start()
    deadline_s = time.monotonic() + PATIENCE_S
    taken = 0
    while taken < 6_000:
        assert time.monotonic() < deadline_s, f"{taken} items came"
        if mailbox.wait(0.00001, items):
            mailbox.take()
            taken += 1

    for thread in threads:
        thread.join(PATIENCE_S)
    assert not mailbox.wait(0)


def test_a_ring_that_comes_after_its_item_was_taken_ends_no_wait() -> None:
    go_on = Event()

    class SlowToRing(Mailbox[int]):
        """Lets the thread that puts stand still between the item and the ring."""

        def __len__(self) -> int:
            items = super().__len__()
            if current_thread() is not main_thread():
                assert go_on.wait(PATIENCE_S)
            return items

    mailbox = SlowToRing()
    other = Timer(0.05, mailbox.put, args=(7,))
    other.start()
    assert mailbox.wait(0.2)
    assert mailbox.take() == 7
    Timer(0.05, go_on.set).start()
    begun_s = time.monotonic()

    assert not mailbox.wait(0.2)

    assert time.monotonic() - begun_s >= 0.2
    other.join(PATIENCE_S)


def test_every_item_of_many_threads_is_waited_for_once() -> None:
    mailbox: Mailbox[int] = Mailbox()

    def put(first: int) -> None:
        for item in range(first, first + 2_000):
            mailbox.put(item)

    threads = [Thread(target=put, args=(first,)) for first in (0, 2_000, 4_000)]
    for thread in threads:
        thread.start()

    taken = [mailbox.take() for _ in range(6_000) if mailbox.wait(PATIENCE_S)]

    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(taken) == list(range(6_000))


def test_a_wait_keeps_its_time_though_a_signal_takes_the_rest_of_it() -> None:
    script = """
import signal, time
from worker.mailbox import Mailbox

signal.signal(signal.SIGALRM, lambda *_: time.sleep(0.2))
signal.setitimer(signal.ITIMER_REAL, 0.05)
mailbox = Mailbox()
for _ in range(2):
    mailbox.wait(0.1)
print("waited")
"""

    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=3 * PATIENCE_S, check=True
    )

    assert ended.stdout == "waited\n"
