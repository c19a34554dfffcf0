"""The developer's day: `streamtask dev APP` and `streamtask new NAME`.

session.py   the loop: broker, worker, service, one after the other and all together; reload, Ctrl-C
part.py      what runs in the child processes: the look at the app, the worker, the query service
child.py     one such process: its lines, its end
screen.py    the one place that prints: lines of all parts as text, in colour or as JSON
follow.py    how tasks end, as lines
watch.py     which files have changed
place.py     the folder `.streamtask/dev` and free ports
new.py       a project from template/

Only the session owns processes; every one of them dies with it, however it dies.
"""
