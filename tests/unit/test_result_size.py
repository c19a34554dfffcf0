"""How large a result may be: what the topic takes now, not what it took when the worker started."""

from __future__ import annotations

from streamtask.domain.model import Ending, Outcome
from streamtask.errors import Unreachable
from streamtask.worker.result_size import (
    AGAIN_S,
    EVENT_SPARE_BYTES,
    RECORD_SPARE_BYTES,
    SURELY_FITS_BYTES,
    EventSize,
)

SPARE = EVENT_SPARE_BYTES + RECORD_SPARE_BYTES


class Broker:
    """Takes records of `bytes_max`, and counts who asks."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max, self.asked, self.now_s, self.away = bytes_max, 0, 1_000.0, False

    def ask(self, _within_s: float) -> int:
        self.asked += 1
        if self.away:
            raise Unreachable("nobody answers")
        return self.bytes_max


def seen(broker: Broker) -> EventSize:
    size = EventSize(broker.ask, clock=lambda: broker.now_s)
    size.look(1.0)
    return size


def result(count: int) -> Outcome:
    return Outcome(Ending.RETURNED, result=b"r" * count)


def test_a_result_fits_up_to_the_limit_less_what_its_record_and_its_labels_need() -> None:
    size = seen(Broker(20_000))
    fits, too_large = result(20_000 - SPARE), result(20_000 - SPARE + 1)
    assert size.fitting(fits, None) is fits
    refused = size.fitting(too_large, None)
    assert (refused.ending, refused.code, refused.retryable) == (Ending.RAISED, "result_too_large", False)
    assert refused.error == "the result has 16929 bytes; an event holds 17952"
    assert size.fitting(fits, {"a": "b"}).code == "result_too_large", "two letters and what they need around them"
    assert size.fitting(result(20_000 - SPARE - 10), {"a": "b"}).ending is Ending.RETURNED


def test_a_limit_that_was_raised_holds_for_the_next_large_result() -> None:
    """Bug: it was asked for once; a worker that started while it was low refused results until its own end."""
    broker = Broker(20_000)
    size, large = seen(broker), result(30_000)
    broker.bytes_max = 1_000_000
    broker.now_s += AGAIN_S
    assert size.fitting(large, None) is large
    assert broker.asked == 2
    assert not size.may_not_fit(b"r" * 30_000), "known from now on"


def test_the_limit_is_asked_for_at_most_once_in_five_seconds() -> None:
    broker = Broker(20_000)
    size = seen(broker)
    for _ in range(100):
        assert size.fitting(result(30_000), None).code == "result_too_large"
    assert broker.asked == 1
    broker.now_s += AGAIN_S
    for _ in range(100):
        size.fitting(result(30_000), None)
    assert broker.asked == 2


def test_where_the_limit_cannot_be_asked_for_the_broker_is_to_say_whether_it_takes_the_result() -> None:
    broker = Broker(20_000)
    size, large = seen(broker), result(30_000)
    broker.away = True
    broker.now_s += AGAIN_S
    assert size.fitting(large, None) is large


def test_what_is_far_below_the_limit_is_not_looked_at() -> None:
    size = seen(Broker(1_000_000))
    assert not size.may_not_fit(b"r" * (1_000_000 - SPARE - SURELY_FITS_BYTES))
    assert size.may_not_fit(b"r" * (1_000_000 - SPARE - SURELY_FITS_BYTES + 1))
