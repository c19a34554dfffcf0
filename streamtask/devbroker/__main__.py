"""`python -m streamtask.devbroker`: runs brokers until Ctrl-C or SIGTERM, or makes Java's ahead-of-time cache once."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time

from streamtask.devbroker.cluster import DevBroker
from streamtask.errors import DevBrokerUnavailable


def main() -> int:
    """Run until Ctrl-C or SIGTERM (exit code 0), or until a node dies (1)."""
    parser = argparse.ArgumentParser(prog="python -m streamtask.devbroker", description="A local Apache Kafka.")
    parser.add_argument("--brokers", type=int, default=1)
    parser.add_argument("--port", type=int, default=0, help="first client port; none: free ones")
    parser.add_argument("--dir", default=None, help="kept and reused; none: temporary")
    parser.add_argument("--heap", default="256m")
    parser.add_argument("--config", action="append", default=[], metavar="NAME=VALUE", help="broker setting")
    parser.add_argument("--train-aot", action="store_true", help="make Java's ahead-of-time cache and exit")
    args = parser.parse_args()
    asked_to_stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked_to_stop.set())
    ports = list(range(args.port, args.port + 2 * args.brokers)) if args.port else None
    config = dict(setting.split("=", 1) for setting in args.config)
    began = time.monotonic()
    try:
        if args.train_aot:
            from streamtask.devbroker.aot_training import train_aot

            print(train_aot())
            return 0
        with DevBroker(args.brokers, args.dir, ports, config, heap=args.heap) as kafka:
            print(f"up in {time.monotonic() - began:.1f} s  bootstrap.servers={kafka.bootstrap}", flush=True)
            while not asked_to_stop.wait(0.5):
                dead = [node for node in kafka.nodes if not kafka.alive(node)]
                if dead:
                    print(f"Kafka node {dead[0]} died:\n{kafka.log_tail(dead[0])}", file=sys.stderr)
                    return 1
    except DevBrokerUnavailable as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
