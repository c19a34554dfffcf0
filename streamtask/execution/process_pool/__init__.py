"""Handlers in processes of their own, which can be killed: the pool in the worker, the pipe, the child, the guard.

    pool.py   in the worker: starts children, gives each one execution at a time, stops, kills and replaces them
    pipe.py   what travels between the two, and how
    child.py  `python -m streamtask.execution.process_pool.child`: loads the app once, then runs one execution after the other
    quarantine.py, quarantine_child.py  the same for groups of suspects, which run in one child at the same time
    reaper.py, reaper_client.py  one tiny process a worker: ends what a worker that was killed leaves behind

Always true: a child ends with its worker, however that dies, and so does all that the child had started; the death of a
child is that of the one execution that it runs, or of one group of suspects, never of the worker.
"""
