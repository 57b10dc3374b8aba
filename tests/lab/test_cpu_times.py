from __future__ import annotations

import os
import threading
import time

from prfaas_lab.lab.cpu_times import cpu_times


def test_the_work_of_every_thread_is_counted() -> None:
    before, over = cpu_times(os.getpid()), threading.Event()
    if before is None:
        return  # a kernel that does not count

    def work() -> None:
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass
        over.set()
        gone.wait()

    gone = threading.Event()
    worker = threading.Thread(target=work)
    worker.start()
    over.wait()
    after = cpu_times(os.getpid())
    gone.set()
    worker.join()
    assert after is not None
    assert after[0] - before[0] >= 0.045
    assert after[1] >= 0.0


def test_a_process_that_is_gone_has_no_times() -> None:
    assert cpu_times(2**22 + 1) is None
