"""A seeded cluster that runs the real core: a model of Kafka, many workers, an adversary, and the promises.

python -m tests.sim --seeds 10000            every seed from 0 on; the first failure prints its seed and last steps
python -m tests.sim --seed 4711 --verbose    one run again, step by step
"""
