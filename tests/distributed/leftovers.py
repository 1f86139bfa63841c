"""Which processes a test has started, directly or not: they inherit a mark in their environment."""

from __future__ import annotations

import contextlib
import os
import time
import uuid

import psutil

VARIABLE = "LABKIT_TEST_MARK"


@contextlib.contextmanager
def marked():
    """Within, whatever is started bears a new mark, which is given."""
    mark = uuid.uuid4().hex
    os.environ[VARIABLE] = mark
    try:
        yield mark
    finally:
        os.environ.pop(VARIABLE, None)


def bearing(mark):
    """The live processes with `mark`, without this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            alive = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(VARIABLE) == mark:
                found.append(process)
    return found


def gone(mark, patience_s=10.0):
    """The processes with `mark` that are left when `patience_s` is over; as soon as there are none, an empty list."""
    deadline = time.monotonic() + patience_s
    while (left := bearing(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [(process.pid, process.name()) for process in left]


def appears(mark, condition, patience_s=60.0):
    """Wait until `condition` of the marked processes holds."""
    deadline = time.monotonic() + patience_s
    while not condition(bearing(mark)):
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.1)
