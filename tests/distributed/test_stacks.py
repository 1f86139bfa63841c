"""A rank's stacks are read in its main thread, which then stands still, and only after that is it asked for more."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest

from labkit.parallel.stacks import position, tells
from labkit.parallel.system import signal_main_thread

# The main thread refuses the signal for a while; the kernel would give it to the other thread, which does not.
CHILD = """
import faulthandler, signal, sys, threading
faulthandler.register(signal.SIGUSR1, file=open(sys.argv[1], "a"), all_threads=True)
threading.Thread(target=threading.Event().wait, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print(threading.main_thread().ident, flush=True)
sys.stdin.readline()
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere any thread may get it")
def test_the_main_thread_gets_the_signal_although_another_is_free(tmp_path):
    told = tmp_path / "stack"
    command = [sys.executable, "-c", CHILD, str(told)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        main = int(child.stdout.readline())
        signal_main_thread(child.pid, signal.SIGUSR1)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "done\n"
        text = told.read_text()
        child.communicate("\n", timeout=10)
    [current] = re.findall(r"^Current thread 0x([0-9a-f]+)", text, re.MULTILINE)
    assert int(current, 16) == main and tells(text, main)
    signal_main_thread(child.pid, signal.SIGUSR1)  # a process that is gone is not an error


def test_a_dump_that_has_not_come_to_the_main_thread_is_not_an_answer():
    waiting = 'Thread 0x00000000000000b2 (most recent call first):\n  File "/lib/python3.11/a.py", line 3 in wait\n\n'
    main = 'Current thread 0x00000000000000a1 (most recent call first):\n  File "train.py", line 7 in step\n'
    assert not tells("", 0xA1) and not tells(waiting, 0xA1)
    assert tells(waiting + main, 0xA1)
    assert position(waiting + main, 0xA1).frame.place == "line 7 of train.py, in step"
