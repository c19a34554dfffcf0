"""A worker process whose long waits are short: `python -m tests.acceptance.short MODULE:app SLOT`.

The waits of the engine that nobody may set from outside (ACCEPTANCE_ENGINE, JSON: fields of EngineConfig), and the one between
two recommits (ACCEPTANCE_RECOMMIT_S); all else is streamtask.worker.process as it is.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys

from streamtask.config import EngineConfig
from streamtask.worker import loop, process, worker


class ShortWorker(worker.Worker):
    def _engine_config(self) -> EngineConfig:
        return dataclasses.replace(super()._engine_config(), **json.loads(os.environ["ACCEPTANCE_ENGINE"]))


if __name__ == "__main__":
    worker.Worker = ShortWorker  # type: ignore[misc]
    loop.RECOMMIT_S = float(os.environ.get("ACCEPTANCE_RECOMMIT_S", loop.RECOMMIT_S))
    sys.exit(process.main(sys.argv[1:]))
