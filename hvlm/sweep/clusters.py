"""The launchers for jobs that run elsewhere: ``launcher=submitit`` and ``launcher=ray``."""

from __future__ import annotations

from typing import Any

from hvlm.errors import UserError
from hvlm.io.processors import usable_processors
from hvlm.sweep.engine import Engine
from hvlm.sweep.job import Job
from hvlm.sweep.launcher import JobLauncher, plain

KEY = "hydra.launcher"
CLUSTERS = ("slurm", "local")
# submitit's parameters that follow from a job's own settings, or have a setting of their own here.
OURS = ("nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "slurm_array_parallelism", "slurm_signal_delay_s")


class SubmititLauncher(JobLauncher):
    """Settings as in conf/launcher/submitit.yaml."""

    __module__ = "hydra_plugins.hvlm"

    def __init__(
        self,
        cluster: str = "slurm",
        jobs: int | None = None,
        threads: int = 8,
        timeout_min: float = 240,
        partition: str | None = None,
        warning_s: int = 90,
        retries: int = 3,
        parameters: Any = None,
        script: str | None = None,
    ) -> None:
        super().__init__(jobs, script)
        if cluster not in CLUSTERS:
            raise UserError(f"{KEY}.cluster={cluster}: expected slurm, or local (this machine, to try it out)")
        for name, value in (("threads", threads), ("timeout_min", timeout_min), ("warning_s", warning_s)):
            if value <= 0:
                raise UserError(f"{KEY}.{name}={value}: expected more than 0")
        if warning_s >= timeout_min * 60:
            raise UserError(f"{KEY}.warning_s={warning_s}: a job has {timeout_min * 60:g} s; expected fewer")
        self.cluster, self.threads, self.retries = cluster, threads, retries
        self.parameters = plain(parameters)
        for name in OURS:
            if name in self.parameters or f"slurm_{name}" in self.parameters:
                raise UserError(
                    f"{KEY}.parameters.{name}: follows from trainer.devices, trainer.num_nodes, {KEY}.threads, "
                    f"{KEY}.jobs and {KEY}.warning_s; set those"
                )
        if cluster == "local":
            self.parameters = {"timeout_min": timeout_min, "signal_delay_s": warning_s}
            return
        # Jobs beyond hydra.launcher.jobs are not submitted yet, so an array never holds some of its own back.
        self.parameters |= {"timeout_min": timeout_min, "slurm_signal_delay_s": warning_s}
        self.parameters |= {"slurm_array_parallelism": jobs or 256}
        self.parameters |= {"slurm_partition": partition} if partition else {}

    def check(self, job: Job) -> None:
        """UserError for a job whose number of processes nobody can ask SLURM for."""
        if self.cluster == "slurm" and job.needs.devices is None:
            raise UserError(
                f"job {' '.join(job.overrides)}: trainer.devices=auto does not say how many GPUs to ask SLURM for; "
                "give a number"
            )

    def make_engine(self) -> Engine:
        from hvlm.sweep.on_slurm import Submitit

        return Submitit(self.folder, self.cluster, self.threads, self.parameters, self.retries)  # type: ignore[arg-type]


class RayLauncher(JobLauncher):
    """Settings as in conf/launcher/ray.yaml."""

    __module__ = "hydra_plugins.hvlm"

    def __init__(
        self,
        address: str | None = None,
        cpus: int | None = None,
        jobs: int | None = None,
        threads: int = 1,
        gpus: float | None = None,
        resources: Any = None,
        script: str | None = None,
    ) -> None:
        super().__init__(jobs, script)
        there = cpus or usable_processors()
        if threads < 1 or (address is None and threads > there):
            raise UserError(f"{KEY}.threads={threads}: expected 1 to {there}, the processors of a Ray started here")
        self.address, self.cpus, self.threads, self.gpus = address, there, threads, gpus
        self.resources = plain(resources)

    def check(self, job: Job) -> None:
        """UserError for a job on several machines, which one task of Ray's is not."""
        if job.needs.nodes > 1:
            raise UserError(
                f"job {' '.join(job.overrides)}: trainer.num_nodes={job.needs.nodes}; launcher=ray runs a job on one "
                "machine; launcher=submitit runs it on several"
            )

    def make_engine(self) -> Engine:
        from hvlm.sweep.on_ray import Ray

        return Ray(self.address, self.cpus, self.threads, self.gpus, self.resources)
