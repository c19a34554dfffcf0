"""The network between workers and brokers: TCP proxies that can be slow, deaf, cut, or reset every connection.

Brokers have one more listener for each network and advertise the proxy's port on it, so whoever comes in through network A
stays in it; the harness and the brokers among themselves use the listener without a proxy. The proxies are a process of
their own, `python -m tests.chaos.network LISTEN:TARGET:NETWORK …`, which takes orders as JSON lines and ends with its
standard input.

    pass    as it is
    delay   each piece arrives later, in order
    hole    nothing arrives; connections stay open, and what was sent arrives when the hole is gone, as TCP repeats it
    cut     every connection is closed, and each new one at once
    reset   every connection is reset (RST), once; new ones pass
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import subprocess
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

from streamtask.devbroker.cluster import DevBroker, free_ports

NETWORKS = ("A", "B")
PIECE_BYTES = 64 * 1024
ROOT = Path(__file__).parents[2]


class ProxiedBroker(DevBroker):
    """A DevBroker that workers reach through proxies. inner, outer: network → port by node."""

    def _open_once(self) -> None:
        count = len(self.nodes)
        ports = free_ports(2 * count * len(NETWORKS))
        self.inner = {name: ports[i * count : (i + 1) * count] for i, name in enumerate(NETWORKS)}
        rest = ports[count * len(NETWORKS) :]
        self.outer = {name: rest[i * count : (i + 1) * count] for i, name in enumerate(NETWORKS)}
        super()._open_once()

    def properties(self, node: int) -> dict[str, str]:
        given = super().properties(node)
        listen = [f"NET{name}://127.0.0.1:{self.inner[name][node - 1]}" for name in NETWORKS]
        advertise = [f"NET{name}://127.0.0.1:{self.outer[name][node - 1]}" for name in NETWORKS]
        return given | {
            "listeners": ",".join((given["listeners"], *listen)),
            "advertised.listeners": ",".join((given["advertised.listeners"], *advertise)),
            "listener.security.protocol.map": ",".join(
                (given["listener.security.protocol.map"], *(f"NET{name}:PLAINTEXT" for name in NETWORKS))
            ),
        }


class Network:
    """The proxies of a ProxiedBroker that runs. bootstraps: what workers of each network connect to."""

    def __init__(self, kafka: ProxiedBroker) -> None:
        self.bootstraps = {name: ",".join(f"127.0.0.1:{port}" for port in ports) for name, ports in kafka.outer.items()}
        routes = [
            f"{outer}:{inner}:{name}"
            for name in NETWORKS
            for outer, inner in zip(kafka.outer[name], kafka.inner[name], strict=True)
        ]
        argv = [sys.executable, "-m", "tests.chaos.network", *routes]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self._answer()

    def order(self, network: str, mode: str, delay_s: float = 0.0) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([network, mode, delay_s]) + "\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ok\n", f"the proxies have ended: {self._process.poll()}"

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


# --- The process of the proxies ---------------------------------------------------------------------------------------


class _Net:
    def __init__(self) -> None:
        self.mode = "pass"
        self.delay_s = 0.0
        self.flows = asyncio.Event()
        self.flows.set()
        self.writers: set[asyncio.StreamWriter] = set()

    def order(self, mode: str, delay_s: float) -> None:
        if mode in ("reset", "cut"):
            for writer in list(self.writers):
                if mode == "reset":
                    _linger(writer)
                writer.close()
        self.mode = "pass" if mode == "reset" else mode
        self.delay_s = delay_s if mode == "delay" else 0.0
        if mode == "hole":
            self.flows.clear()
        else:
            self.flows.set()


def _linger(writer: asyncio.StreamWriter) -> None:
    """Its end is a reset."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):  # closed already by its own end, a moment ago
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def _pump(net: _Net, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(PIECE_BYTES):
            if net.delay_s:
                await asyncio.sleep(net.delay_s)
            await net.flows.wait()
            writer.write(piece)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def _connected(net: _Net, target: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if net.mode == "cut":
        writer.close()
        return
    net.writers.add(writer)
    there = None
    try:
        await net.flows.wait()
        from_there, there = await asyncio.open_connection("127.0.0.1", target)
        net.writers.add(there)
        async with asyncio.TaskGroup() as both:
            both.create_task(_pump(net, reader, there), name="up")
            both.create_task(_pump(net, from_there, writer), name="down")
    except OSError:  # the broker is away
        pass
    finally:
        writer.close()
        net.writers.discard(writer)
        if there is not None:
            there.close()
            net.writers.discard(there)


async def _serve(routes: list[str]) -> None:
    nets: dict[str, _Net] = defaultdict(_Net)
    for route in routes:
        listen, target, name = route.split(":")
        net = nets[name]
        await asyncio.start_server(
            partial(_connected, net, int(target)),
            "127.0.0.1",
            int(listen),
        )
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    print("ok", flush=True)
    while line := await orders.readline():
        name, mode, delay_s = json.loads(line)
        nets[name].order(mode, delay_s)
        print("ok", flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1:]))
