"""`ssd-train --preflight`: finds what would stop a run on many workers, before GPU time is spent.

on every worker      cluster, data, shards, classes, run, weights, folder    without TensorFlow and communication
on the chief         compares findings, config, versions and clocks          over the connections that training uses
on all workers       batch, memory, a timed all-reduce                       only if all checks so far have passed

The chief prints a table; each failed check states how to fix it.
"""

import json
import os
import secrets
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import tensorflow as tf

from ssd_dist.checks.dry_run import MEBI, estimate_memory
from ssd_dist.checks.findings import Finding, Findings, WorkerReport, compare_reports, print_table
from ssd_dist.cluster.collectives import WorkerCollectives
from ssd_dist.cluster.failures import restart_on_lost_peer
from ssd_dist.cluster.rendezvous import wait_for_workers
from ssd_dist.cluster.rendezvous_messages import WorkerDescription, read_secret
from ssd_dist.cluster.strategy import WorkerRole, check_strategy, create_strategy, read_worker_role
from ssd_dist.core.config import Config
from ssd_dist.core.config_files import flatten_config
from ssd_dist.core.errors import RestartError, SsdDistError, UsageError
from ssd_dist.core.manifest import TRAIN_SPLIT, Manifest
from ssd_dist.data.pipeline import plan_training
from ssd_dist.model.backbone import check_weights_file
from ssd_dist.model.cost import count_cost
from ssd_dist.runs.run_folder import check_same_run, has_saved_run
from ssd_dist.training.assembly import create_state, load_checked_manifest
from ssd_dist.training.batch_division import BatchDivision, divide_batch
from ssd_dist.training.run import make_reproducible
from ssd_dist.training.run_checks import describe_worker
from ssd_dist.training.source_weights import check_source_exists

# Shorter than for training: all workers are started for this check and do not wait in a queue.
WAIT_SECONDS = 120
TIMED_ALL_REDUCES = 5


def run_preflight(config: Config, model_dir: str, allow_new_data: bool = False) -> int:
    """Checks this worker and, together with the other workers, the cluster; prints the table on the chief.

    Args:
      config: the config of the run.
      model_dir: the run folder.
      allow_new_data: whether a run may be resumed on other data than it was trained on so far.

    Returns:
      The exit code. The chief's is the result of all workers; another worker returns 0 if its own checks passed.

    Raises:
      UsageError: on workers other than the chief, if they cannot reach the chief.
    """
    role = read_worker_role()
    found = Findings(role.index)
    table: list[Finding] = []
    token = secrets.token_hex(8)
    probe = Path(model_dir) / f".preflight-{role.index}"
    manifest = check_worker(found, config, role, model_dir, probe, token, allow_new_data)
    facts = {} if manifest is None else describe_worker(role, flatten_config(config), manifest, ()).facts
    try:
        all_passed = gather_findings(found, table, role, facts, probe, token)
    finally:
        with suppress(OSError):
            probe.unlink()
    if all_passed and manifest is not None:
        cluster_findings = Findings(role.index)
        try:
            with restart_on_lost_peer(role):
                check_cluster(cluster_findings, config, role, manifest)
        except SsdDistError as error:
            if not role.is_chief:
                raise
            # The table of the other checks is printed nevertheless.
            check = "workers" if isinstance(error, RestartError) else "model"
            cluster_findings.append(Finding(role.index, check, str(error), error.exit_code))
        found.extend(cluster_findings)
        table.extend(cluster_findings)
    if not role.is_chief:
        return found.exit_code
    print_table(table, role)
    return next((finding.exit_code for finding in table if finding.exit_code), 0)


def check_worker(
    found: Findings,
    config: Config,
    role: WorkerRole,
    model_dir: str,
    probe: Path,
    token: str,
    allow_new_data: bool = False,
) -> Manifest | None:
    """Runs the checks that need no other worker.

    Args:
      found: receives the findings.
      config: the config of the run.
      role: the role of this worker.
      model_dir: the run folder.
      probe: a file in the run folder that this worker writes.
      token: the content of the file, by which the chief recognizes it.
      allow_new_data: whether a run may be resumed on other data.

    Returns:
      The manifest of the data; None if the data failed its check.
    """
    manifests: list[Manifest] = []

    def data() -> str:
        manifests.append(load_checked_manifest(config))
        split = manifests[0].split(TRAIN_SPLIT, config.data.dir)
        return f"{config.data.dir}: {split.images:,} images, prepared for this config ({manifests[0].fingerprint[:12]})"

    def shards() -> str:
        split = manifests[0].split(TRAIN_SPLIT, config.data.dir)
        plan = plan_training(config.data, config.train, split, role.index, role.count)
        files = len(plan.files[0])
        return f"{files} per augmented copy, all found; {files // role.count} for each of {role.count} workers"

    def classes() -> str:
        return f"{len(manifests[0].classes)}, without background"

    def run() -> str:
        check_same_run(model_dir, config, manifests[0], allow_new_data)
        return "the folder has a run that this config resumes" if has_saved_run(model_dir) else "a new run"

    def weights() -> str:
        check_source_exists(config.model.init_from)
        check_weights_file(config.backbone)
        return config.model.init_from or config.backbone.weights

    def folder() -> str:
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.write_text(token)
        except OSError as error:
            raise UsageError(f"--model_dir={model_dir} cannot be written: {error}; use a writable folder") from None
        return f"{model_dir} is writable"

    def cluster() -> str:
        check_strategy(config.cluster, role)
        return f"worker {role.index} of {role.count} {role.addresses[role.index]}"

    found.run_check("cluster", cluster)
    found.run_check("data", data)
    if manifests:
        found.run_check("shards", shards)
        found.run_check("classes", classes)
        found.run_check("run", run)
    found.run_check("weights", weights)
    found.run_check("folder", folder)
    return manifests[0] if manifests else None


def gather_findings(
    found: Findings,
    table: list[Finding],
    role: WorkerRole,
    facts: Mapping[str, str],
    probe: Path,
    token: str,
) -> bool:
    """Sends the findings of all workers to the chief, which compares the workers and fills the table.

    Args:
      found: the findings of this worker.
      table: receives all findings, on the chief.
      role: the role of this worker.
      facts: what must be equal on all workers; empty if this worker has no valid data.
      probe: the file that this worker wrote in the run folder.
      token: the content of the file.

    Returns:
      Whether all checks of all workers passed.

    Raises:
      UsageError: on workers other than the chief, if they cannot reach the chief.
    """
    report = json.dumps(asdict(WorkerReport(list(found), dict(facts), token)))
    # The facts are part of the report: `wait_for_workers` would stop at the first difference, but the table lists all.
    own = WorkerDescription(role.index, role.addresses, {}, report)
    compared = False

    def compare(descriptions: Sequence[WorkerDescription]) -> str | None:
        nonlocal compared
        compared = True
        table.extend(compare_reports(descriptions, probe))
        failed = sum(finding.exit_code > 0 for finding in table)
        return f"{failed} checks failed; see the chief's table" if failed else None

    try:
        wait_for_workers(own, WAIT_SECONDS, read_secret(), compare)
    except SsdDistError as error:
        if role.is_chief and not compared:
            table.extend([*found, Finding(0, "rendezvous", str(error), UsageError.exit_code)])
        elif not role.is_chief and not found.exit_code and "the chief's table" not in str(error):
            raise UsageError(str(error)) from None
        return False
    return True


def check_cluster(found: Findings, config: Config, role: WorkerRole, manifest: Manifest) -> None:
    """Runs the checks that need TensorFlow and all workers; a collective, so all workers must call it."""
    # Measured before TensorFlow uses a GPU: it then allocates nearly all of its memory.
    free = free_memory()
    strategy = create_strategy(config.cluster, role)
    make_reproducible(config)
    collectives = WorkerCollectives(strategy, role.count)
    with strategy.scope():
        state = create_state(config, len(manifest.classes), max(config.train.steps, 1))
    replicas = strategy.num_replicas_in_sync
    divisions: list[BatchDivision] = []

    def batch() -> str:
        divisions.append(divide_batch(config, replicas))
        images, group = divisions[0].images, divisions[0].group
        return f"{images} images on {replicas} replicas, batch norm in groups of {group}"

    found.run_check("batch", batch)
    if not divisions:
        return
    pairs = estimate_memory(state, count_cost(state.model), divisions[0], config.amp.enabled)
    needed = sum(size for _, size in pairs)
    # Replicas on the CPU share the memory of the host.
    replicas_per_device = 1 if tf.config.list_physical_devices("GPU") else replicas // role.count
    own_free = free / replicas_per_device
    for worker in range(role.count):
        found.append(check_memory(worker, needed, collectives.sum(own_free if worker == role.index else 0.0)))
    if role.count > 1:
        size = sum(variable.shape.num_elements() for variable in state.model.trainable_variables)
        found.append(time_all_reduce(strategy, size))


def free_memory() -> float:
    """Returns the free bytes of the GPU with the least free memory, or of the host without GPUs; 0 if unknown."""
    if tf.config.list_physical_devices("GPU"):
        # TensorFlow does not report free memory; the driver's tool does.
        command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
            command.append(f"--id={visible}")
        with suppress(OSError, subprocess.SubprocessError, ValueError):
            lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()
            return min(float(line) for line in lines) * MEBI
        return 0.0
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def check_memory(worker: int, needed: int, free: float) -> Finding:
    """Checks whether the estimated bytes of a replica fit into its free bytes (0 if unknown)."""
    estimate = f"a replica needs about {needed / MEBI:,.0f} MiB"
    if not free:
        return Finding(worker, "memory", f"{estimate}; the free memory is unknown (nvidia-smi not found)")
    if needed <= free:
        return Finding(worker, "memory", f"{estimate}, {free / MEBI:,.0f} MiB are free")
    return Finding(
        worker,
        "memory",
        f"{estimate}, only {free / MEBI:,.0f} MiB are free; "
        "lower train.global_batch_size, or raise train.accumulate_steps",
        UsageError.exit_code,
    )


def time_all_reduce(strategy: tf.distribute.Strategy, size: int) -> Finding:
    """Sums `size` float32 values over all replicas several times, checks the sum and measures the bandwidth.

    Args:
      strategy: distributes the replicas.
      size: number of values, equal to the number of the model's gradients.
    """
    replicas = strategy.num_replicas_in_sync

    @tf.function(autograph=False)
    def reduce() -> tf.Tensor:
        def contribute() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            own = tf.fill([size], tf.cast(context.replica_id_in_sync_group + 1, tf.float32))
            total = context.all_reduce(tf.distribute.ReduceOp.SUM, own)
            return tf.stack([tf.reduce_min(total), tf.reduce_max(total)])

        return strategy.experimental_local_results(strategy.run(contribute))[0]

    seconds = []
    for _ in range(1 + TIMED_ALL_REDUCES):
        started = time.perf_counter()
        bounds = reduce().numpy()
        seconds.append(time.perf_counter() - started)
    expected = replicas * (replicas + 1) / 2
    if not np.array_equal(bounds, [expected, expected]):
        detail = f"the sum over {replicas} replicas is {bounds.tolist()}, not {expected:g}; check the network and NCCL"
        return Finding(0, "all-reduce", detail, UsageError.exit_code)
    best = min(seconds[1:])
    # NCCL's bus bandwidth: bytes per second that each link of a ring transfers.
    bandwidth = 4 * size * 2 * (replicas - 1) / replicas / best
    return Finding(
        0, "all-reduce", f"{4 * size / MEBI:.1f} MiB in {best * 1e3:.1f} ms, {bandwidth / 1e9:.2f} GB/s per link"
    )
