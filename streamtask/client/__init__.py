"""Clients: AsyncClient, and Client for synchronous code.

asynchronous.py is the client. build.py turns arguments into records. transport.py is the border to Kafka (or, in tests,
to memory): sending.py sends the records, watching.py and tracking.py wait for status events. service.py calls a query
service. receipt.py is what a submit returns. blocking.py is the synchronous shell.
"""

from streamtask.client.asynchronous import AsyncClient
from streamtask.client.blocking import Client, SyncReceipt
from streamtask.client.receipt import Receipt
from streamtask.domain.options import Headers

__all__ = ["AsyncClient", "Client", "Headers", "Receipt", "SyncReceipt"]
