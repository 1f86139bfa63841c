"""Work for ranks without end, in a module that a process can name without importing torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time


def for_ever(folder, how=""):
    """Every rank leaves its process's number, then works until it is ended.

    `how` is "child" for ranks that have started a process of their own, "deaf" for ranks that ignore SIGINT.
    """
    if how == "child":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    if how == "deaf":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch
    import torch.distributed as dist

    dist.barrier()
    (folder / str(dist.get_rank())).write_text(str(os.getpid()))
    while True:
        dist.all_reduce(torch.ones(2))
        time.sleep(0.05)
