"""An extraction by many Slurm jobs: dask-jobqueue asks for workers, bieff gives them shards.

    pip install dask-jobqueue
    python extract.py --dataset k400 --videos /data/k400 --frames 32

runs where jobs may be submitted, until the store is finished, and takes the options of `bieff
extract`.  Each job is one worker on one GPU; edit what a job is to be.  A worker that is lost,
or preempted, costs the shard it was at.
"""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

JOBS = 4
JOB = {
    "cores": 1,  # threads of the worker, which embeds; its decoders take the job's processors
    "processes": 1,
    "job_cpu": 16,
    "memory": "64GB",
    "walltime": "08:00:00",
    "job_extra_directives": ["--gpus=1", "--requeue"],
    "worker_extra_args": ["--memory-limit", "0"],  # docs/cluster.md says why
}


def extract(cluster: Any, jobs: int, arguments: Sequence[str]) -> int:
    """Run `bieff extract` on so many jobs of a cluster; returns its exit code."""
    with cluster:
        cluster.scale(jobs=jobs)
        cluster.wait_for_workers(1)
        command = ["bieff", "extract", *arguments, "--scheduler", cluster.scheduler_address]
        return subprocess.call(command)


if __name__ == "__main__":
    from dask_jobqueue import SLURMCluster

    sys.exit(extract(SLURMCluster(**JOB), JOBS, sys.argv[1:]))
