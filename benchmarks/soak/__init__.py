"""An hour at steady load with a rebalance every minute: does anything grow?

`python -m benchmarks soak --minutes 60`; tests/acceptance/test_soak.py runs the same for two minutes. What is run: plant.py;
the load: load.py; what is looked at: sampling.py; what counts as growth: judge.py; the whole: measure.py.
"""
