"""Clients: AsyncClient, and Client for plain code.

asynchronous.py is the client; build.py makes records of what callers hand over, sending.py sends them, watching.py
and tracking.py wait for status events, service.py asks a query service, receipt.py is what a submit returns,
blocking.py the thin shell for plain code.
"""

from streamtask.client.asynchronous import AsyncClient
from streamtask.client.blocking import Client, SyncReceipt
from streamtask.client.build import Headers
from streamtask.client.receipt import Receipt

__all__ = ["AsyncClient", "Client", "Headers", "Receipt", "SyncReceipt"]
