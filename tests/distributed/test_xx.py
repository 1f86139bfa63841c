"""The jobs under torchrun: two agents that meet by c10d, as on two nodes, started by the SLURM script as it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from leftovers import gone, marked

import labkit.parallel.jobs
from labkit.paths import ROOT

SLURM = Path(labkit.parallel.jobs.__file__).with_name("slurm.sh")
# What the script needs of SLURM: the names of the nodes, and a task on each, all ended when one fails.
SCONTROL = "#!/bin/bash\n[ \"$1 $2 $3\" = 'show hostnames nodes[1-2]' ] && printf '127.0.0.1\\n127.0.0.1\\n'\n"
SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] || exit 9
shift
"$@" & one=$!
"$@" & two=$!
wait -n || { status=$?; kill $one $two 2>/dev/null; wait; exit $status; }
wait -n
"""


@pytest.fixture
def cluster(tmp_path):
    """An environment as sbatch makes it, for two nodes with two GPUs each, of which there are none."""
    for name, text in [("scontrol", SCONTROL), ("srun", SRUN)]:
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "nodes[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    slurm |= {"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    return {**os.environ, **slurm, **paths}


def sbatch(environment, *arguments):
    return subprocess.run(
        ["bash", str(SLURM), *arguments], env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_slurm_script_runs_a_job_on_two_agents(cluster):
    with marked() as mark:
        done = sbatch({**cluster, "LABKIT_TEST_MARK": mark}, "hello")
        assert done.returncode == 0, done.stderr
        assert gone(mark, 1.0) == []
    lines = re.findall(r"^(\d) of 4 on \S+: cpu, gloo, \d+\.\d\d GB/s$", done.stdout, re.MULTILINE)
    assert lines == ["0", "1", "2", "3"]


def test_a_job_that_does_not_exist_fails_on_all_nodes_at_once(cluster):
    with marked() as mark:
        done = sbatch({**cluster, "LABKIT_TEST_MARK": mark}, "no_such_job")
        assert done.returncode != 0 and "No module named labkit.parallel.jobs.no_such_job" in done.stderr
        assert gone(mark, 5.0) == []


def test_a_job_without_torchrun_says_how_to_start_it():
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "MASTER_ADDR")}
    command = [sys.executable, "-m", "labkit.parallel.jobs.hello"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "torchrun --standalone" in done.stderr.splitlines()[-1]


# Rank 0 leaves while its collective waits for rank 1, which joins only when rank 0 is at its end, one way or the other.
# With sys.exit(0) in leave's place that is within the interpreter's end, and gloo's thread aborts the process.
LATE = """
import os, sys, time
import torch, torch.distributed as dist
from labkit.parallel.group import process_group
from labkit.parallel.system import leave

class Last:
    def __del__(self, open=open, sleep=time.sleep):
        open(sys.argv[1], "w").close()
        sleep(2)

with process_group("cpu"):
    pids = [None, None]
    dist.all_gather_object(pids, os.getpid())
    if dist.get_rank() == 1:
        while not os.path.exists(sys.argv[1]) and os.path.exists(f"/proc/{pids[0]}/exe"):
            time.sleep(0.01)
    parts = list(torch.zeros(2, 2))
    work = dist.all_gather(parts, torch.ones(2), async_op=True)
    kept, last = dist.group.WORLD, Last() if dist.get_rank() == 0 else None  # with `kept` the group is not destroyed
    del parts, work
    print("rank", dist.get_rank())
sys.exit(0)
"""


def test_a_rank_ends_in_order_while_gloo_still_holds_tensors(tmp_path):
    path = tmp_path / "late.py"
    path.write_text(LATE)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(path),
        str(tmp_path / "over"),
    ]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0 and sorted(done.stdout.split("\n"))[1:] == ["rank 0", "rank 1"], done.stderr[-2000:]


def test_the_slurm_script_travels_with_the_package():
    """Hatch packs every file of the package that git does not ignore."""
    ignored = subprocess.run(["git", "check-ignore", "-q", str(SLURM)], cwd=ROOT, capture_output=True)
    assert SLURM.is_file() and os.access(SLURM, os.X_OK) and ignored.returncode != 0
