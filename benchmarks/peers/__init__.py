"""`python -m benchmarks throughput --peers`: the same jobs on other task systems, side by side in one run.

catalogue.py      who takes part, how each is configured, what each promises
environments.py   each peer's own virtual environment, of the pinned versions in requirements/NAME.txt
stores.py         a Redis of its own for each measurement; topics and results on the benchmark's broker
drive.py          puts the backlog in, starts the worker, waits, refuses what is not complete
report.py         rows, ratios, medians, chart
publish.py        the tables as Markdown, and their place in README.md and docs/performance.md
apps/             one script for each peer; runs in the peer's environment and knows nothing of this project
"""
