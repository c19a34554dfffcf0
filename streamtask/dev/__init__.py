"""The commands for everyday development: `streamtask dev APP` and `streamtask new NAME`.

session.py   the main loop: starts broker, worker and service, and ends them; reload, Ctrl-C
part.py      what runs in the child processes: the inspection of the app, the worker, the query service
child.py     one such process: its output lines and its end
screen.py    the only module that prints: lines of all parts as text, in colour or as JSON
follow.py    how tasks end, as lines
watch.py     which files have changed
place.py     the folder `.streamtask/dev` and free ports
new.py       a project from template/

Only the session owns processes, and every one of them ends with it, however it ends.
"""
