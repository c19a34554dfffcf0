"""Handlers in their own processes, which can be killed: the pool in the worker, the pipe, the child, the guard.

    pool.py   in the worker: starts children, gives them executions, stops, kills and replaces them
    waiting.py  the jobs that wait for a child, and how much of them a child is handed
    pipe.py   what travels between the two, and how
    child.py  `python -m streamtask.execution.process_pool.child`: loads the app once, then runs one execution at a time
    quarantine.py, quarantine_child.py  the same for groups of suspects, which run in one child at the same time
    reaper.py, reaper_client.py  one tiny process per worker: ends what a killed worker leaves behind

Always true: a child ends with its worker, however that dies, and so does everything that the child had started; the death of a
child affects only the execution that it runs, or its group of suspects, never the worker.
"""
