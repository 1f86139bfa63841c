"""The process between a notebook and its ranks: torch elastic's agent, and the guard that ends everything.

    python -m labkit.parallel.supervisor FOLDER

Its standard input is a pipe that the launching process holds open; the pipe's end is that process's end, however it
came. The ranks are forked from this process, which has imported torch and computed nothing: forking a notebook that
has run a backward pass deadlocks, and importing torch again in each rank takes longer than most cells. Ranks on GPUs
are started afresh, as CUDA demands.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.parallel import traces
from labkit.parallel.diagnose import Report
from labkit.parallel.folder import SETTINGS, Folder
from labkit.parallel.guard import Guard
from labkit.parallel.system import adopt_orphans
from labkit.probe import cores

# A launch inside another's rank, or under torchrun, is a launch of its own.
_FOREIGN = ["RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"]
_FOREIGN += ["ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"]


def main() -> None:
    """Run the launch that the folder describes; does not return."""
    folder = Folder(Path(sys.argv[1]))
    settings = folder.read_json(SETTINGS)
    adopt_orphans()
    guard = Guard(folder, settings["ranks"], settings["timeout_s"], settings["stall_s"])
    guard.start()
    _set_environment(settings)
    try:
        failures = _launch(folder, settings)
    except LabError as problem:
        report = Report(False, None, problem.cause, problem.remedy)
        guard.end(lambda: report)
    if failures:
        for rank, status in failures.items():
            guard.deaths.setdefault(rank, (time.time(), status))
        guard.end(guard.failure)
    guard.end(lambda: _finished(folder, settings["ranks"]))


def _set_environment(settings: dict[str, Any]) -> None:
    for name in [*_FOREIGN, *(name for name in os.environ if name.startswith("TORCHELASTIC_"))]:
        os.environ.pop(name, None)
    os.environ["OMP_NUM_THREADS"] = str(max(1, cores() // settings["ranks"]))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault(traces.VARIABLE, traces.LENGTH)
    # is_available would otherwise wake CUDA, after which this process must not fork.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    if settings["check"]:
        os.environ["TORCH_DISTRIBUTED_DEBUG"] = "DETAIL"
    # All ranks are here: gloo need not ask for this machine's name, which not every machine can look up.
    if sys.platform in ("linux", "darwin"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")


def _launch(folder: Folder, settings: dict[str, Any]) -> dict[int, int]:
    """Run the ranks under torch elastic; the exit status of each that failed, by rank."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from labkit.parallel import worker
    from labkit.parallel.group import choose_device

    settings["device"] = choose_device(settings["ranks"], settings["device"])
    folder.write_json(SETTINGS, settings)
    fork = sys.platform == "linux" and settings["device"] == "cpu"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=settings["ranks"],
        run_id=folder.path.name,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",  # a port that is free
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.2,
        start_method="fork" if fork else "spawn",
        logs_specs=DefaultLogsSpecs(log_dir=str(folder.path / "elastic")),
    )
    try:
        elastic_launch(config, worker.run)(str(folder.path))
    except ChildFailedError as problem:
        return {rank: failure.exitcode for rank, failure in problem.failures.items()}
    return {}


def _finished(folder: Folder, ranks: int) -> Report:
    """All returned; what they returned is worth nothing if they disagreed on their collectives."""
    differs = traces.difference({rank: folder.read_json(folder.of(rank, "trace")) for rank in range(ranks)})
    if not differs:
        return Report()
    remedy = "Give every rank the same collectives, on tensors of one shape: gloo compares nothing, and gives rubbish."
    return Report(False, None, differs, remedy)


if __name__ == "__main__":
    main()
