"""Threads for calls that wait for the host."""

from __future__ import annotations

import threading
import time

from kvmpy.workers import Workers


def test_calls_run_side_by_side_up_to_a_number_of_threads() -> None:
    workers = Workers("test", most=3)
    barrier = threading.Barrier(3, timeout=10)
    names = []

    def call() -> None:
        names.append(threading.current_thread().name)
        barrier.wait()

    for _ in range(6):
        workers.submit(call)
    workers.close()
    assert names == ["test"] * 6 and threading.active_count() < 20
    assert not any(thread.name == "test" for thread in threading.enumerate())


def test_one_thread_is_enough_for_calls_that_come_one_by_one() -> None:
    workers = Workers("test")
    seen = set()
    for _ in range(20):
        workers.submit(lambda: seen.add(threading.get_ident()))
        workers.wait()
        while not workers._waiting:
            time.sleep(0.001)
    assert len(seen) == 1
    workers.close()
    workers.close()


def test_wait_is_for_all() -> None:
    workers, gate, done = Workers("test"), threading.Event(), []
    for number in range(8):
        workers.submit(lambda number=number: (gate.wait(10), done.append(number)))
    threading.Timer(0.05, gate.set).start()
    workers.wait()
    assert sorted(done) == list(range(8))
    workers.close()
