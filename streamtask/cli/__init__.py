"""The command line: `streamtask …` and `python -m streamtask …`.

command.py has what all commands share. tasks.py has the commands about tasks, run.py those that start something,
cluster.py those that maintain a cluster, schemas.py those about schemas, workers.py those about worker processes,
dev.py those for developers, config.py the one that shows settings. complete.py completes words in the shell. Commands
import what they need when they run, so that help and usage errors are fast.
"""

from __future__ import annotations

import typer

from streamtask.cli import cluster, config, dev, run, schemas, tasks, workers
from streamtask.cli.command import OneLineGroup, accept_options_before_the_command

__all__ = ["app", "main"]

app = typer.Typer(
    name="streamtask",
    cls=OneLineGroup,
    help="A task system on Kafka: exactly-once status, at-least-once handlers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
accept_options_before_the_command(app)
run.register(app)
tasks.register(app)
cluster.register(app)
schemas.register(app)
workers.register(app)
dev.register(app)
config.register(app)


def main() -> None:
    """The entry point of the console script."""
    app()
