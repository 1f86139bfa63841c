"""Jobs for ranks, each a module that runs by torchrun as it is, and by `launch` from a notebook.

torchrun --standalone --nproc-per-node 4 -m labkit.parallel.jobs.hello
sbatch labkit/parallel/jobs/slurm.sh hello

from labkit.parallel.jobs.hello import hello
launch(hello, 4)
"""
