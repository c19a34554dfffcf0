"""Jobs that wait for a child: their order, and how much of them a child is handed."""

from __future__ import annotations

from streamtask.execution.process_pool.waiting import AHEAD_BYTES, AHEAD_MAX_MS, AHEAD_MS, JOBS_MAX, Job, Waiting


def jobs(*tokens: int, lead: bool = False, shares: bool = True, size: int = 0, task_type: str = "t") -> list[Job]:
    return [Job(token, task_type, b"x" * size, lead=lead, shares=shares) for token in tokens]


def waiting(*added: Job, ms: float = 1.0) -> Waiting:
    made = Waiting()
    made.ran("t", ms)
    made.add(added)
    return made


def taken(made: Waiting, children: int = 1, ms: float = 0.0, size: int = 0) -> list[int]:
    return [job.token for job in made.take(children, ms, size)]


def test_the_lead_band_is_before_all_others_and_each_is_in_its_order() -> None:
    made = waiting(*jobs(1, 2), *jobs(3, 4, lead=True), *jobs(5))
    assert list(made) == [3, 4, 1, 2, 5]
    assert taken(made) == [3, 4, 1, 2, 5]


def test_what_comes_back_is_before_what_waits_in_its_band() -> None:
    made = waiting(*jobs(1, 2, 3), *jobs(4, lead=True))
    four, one, two = made.take(1)[:3]
    made.add(jobs(5))
    for job in (two, one, four):
        made.put_back(job)
    assert list(made) == [4, 1, 2, 5]


def test_one_that_is_stopped_waits_no_longer() -> None:
    made = waiting(*jobs(1, 2), *jobs(3, lead=True))
    assert [made.pop(token) is not None for token in (3, 1, 1, 9)] == [True, True, False, False]
    assert list(made) == [2]


def test_a_child_is_handed_so_many_as_it_works_on_for_some_time() -> None:
    many = jobs(*range(1_000))
    assert len(taken(waiting(*many))) == AHEAD_MS // 1.05
    assert len(taken(waiting(*many), ms=10.0)) == 6 // 1.05
    assert len(taken(waiting(*many, ms=0.01))) == JOBS_MAX // 2
    assert len(taken(waiting(*many, ms=100.0))) == 1


def test_a_child_is_handed_no_more_than_its_share() -> None:
    made = waiting(*jobs(*range(5)))
    assert [taken(made, children=2) for _ in range(4)] == [[0, 1, 2], [3], [4], []]


def test_one_that_is_not_short_is_handed_over_alone() -> None:
    made = waiting(*jobs(1, 2), *jobs(3, shares=False), *jobs(4))
    assert [taken(made) for _ in range(3)] == [[1, 2], [3], [4]]


def test_a_child_is_handed_no_more_bytes_than_its_pipe_holds() -> None:
    made = waiting(*jobs(*range(10), size=AHEAD_BYTES // 4))
    assert len(taken(made)) == 4
    assert len(taken(made, size=AHEAD_BYTES // 2)) == 2
    assert len(taken(waiting(*jobs(1, 2, size=2 * AHEAD_BYTES)))) == 1, "a large one is handed over alone"


def test_a_run_that_took_far_too_long_says_little_about_the_next() -> None:
    made = waiting(*jobs(*range(100)))
    for ms in (1.0, 1_000.0, 1.0, 1.0):
        made.ran("t", ms)
    assert len(taken(made)) >= 13
    for _ in range(100):
        made.ran("t", 8.0)
    assert len(taken(made)) == 1, "but a type that has become slower is known for it soon"


def test_children_get_more_while_their_pool_is_too_slow_and_less_when_it_is_not() -> None:
    made = Waiting()
    for _ in range(10):
        made.handed_over(in_time=False)
    assert made.ahead_ms == AHEAD_MAX_MS
    for _ in range(100):
        made.handed_over(in_time=True)
    assert made.ahead_ms == AHEAD_MS
