"""What goes wrong on ranks, on purpose; run by the tests of the launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import torch
import torch.distributed as dist

from labkit.parallel.group import device


def reduce_ones():
    """An all-reduce in which every rank waits for all; read on the host, since NCCL's only queues the wait."""
    values = torch.ones(4, device=device())
    dist.all_reduce(values)
    return values.cpu()


def raises(rank):
    if dist.get_rank() == rank:
        raise ValueError(f"no such batch on {rank}")
    reduce_ones()


def killed(rank, number=signal.SIGKILL):
    """`rank` is killed while the others wait for it."""
    reduce_ones()
    if dist.get_rank() == rank:
        os.kill(os.getpid(), number)
    reduce_ones()


def exits(rank, status):
    if dist.get_rank() == rank:
        os._exit(status)
    reduce_ones()


def never_comes(rank):
    """`rank` sleeps; the others are in an all-reduce."""
    reduce_ones()
    if dist.get_rank() == rank:
        time.sleep(600)
    reduce_ones()


def loops(rank):
    """`rank` computes for ever, and holds the interpreter most of the time."""
    while dist.get_rank() == rank:
        pass
    reduce_ones()


def leaves_early(rank):
    """`rank` returns; the others call one collective more."""
    reduce_ones()
    if dist.get_rank() != rank:
        reduce_ones()


def shapes(operation, sizes, pause=0.0):
    values = torch.ones(sizes[dist.get_rank()])
    if operation == "broadcast":
        dist.broadcast(values, 0)
    else:
        dist.all_reduce(values)
    time.sleep(pause)
    return values


def different_operations():
    values = torch.ones(4)
    if dist.get_rank():
        dist.broadcast(values, 0)
    else:
        dist.all_reduce(values)


def unpicklable(rank):
    return threading.Lock() if dist.get_rank() == rank else 1


def leaves_processes(folder):
    """Each rank starts a process that starts another and ends: an orphan with a session of its own."""
    code = "import subprocess, sys; sleep = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
    code += "subprocess.Popen(sleep, start_new_session=True)"
    subprocess.run([sys.executable, "-c", code], check=True)
    (folder / f"{dist.get_rank()}").write_text(str(os.getpid()))


def deaf(rank):
    """`rank` raises; the others ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    reduce_ones()
    if dist.get_rank() == rank:
        raise KeyError("gone")
    while True:
        time.sleep(1)
