"""Offsets that nobody moves are committed again: the group is subscribed to the lead topic alone, so Kafka would forget the
others (KIP-211), and a transactional id that is never used."""

from __future__ import annotations

from streamtask.core import ownership
from streamtask.domain.ports import EndTransaction, SendOffsets
from tests.core.desk import Desk


def test_a_recommit_sends_every_cell_again_in_one_transaction_and_then_rests() -> None:
    d = Desk(shards=(0, 1))
    d.ready()
    d.asked.clear()
    d.settle()
    assert not [ask for ask in d.asked if isinstance(ask, SendOffsets)], "it is at rest"
    ownership.recommit(d.engine)
    d.settle()
    (sent,) = [ask for ask in d.asked if isinstance(ask, SendOffsets)]
    cells = {(item.band, item.shard) for item in sent.plan.offsets}
    assert cells == {(band, shard) for band in range(3) for shard in (0, 1)}
    assert not sent.plan.events
    assert len([ask for ask in d.asked if isinstance(ask, EndTransaction)]) == 1
    d.asked.clear()
    d.settle()
    assert not d.asked
