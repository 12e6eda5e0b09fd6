"""`ssd-train --preflight`: what would stop a run on many workers, found before an hour of GPUs is spent.

on every worker:  cluster, data, shards, classes, weights, folder    no TensorFlow, no word to the others
all to the chief: findings, config, versions, clocks                 where training's workers meet, too
on all together:  batch over replicas, memory, a timed all-reduce    only if all is well so far

The chief prints the table; every line that failed says how to mend it.
"""

import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssd_dist.checks.dry_run import MEBI, estimate_memory
from ssd_dist.cluster.collectives import WorkerCollectives
from ssd_dist.cluster.failures import restart_on_lost_peer
from ssd_dist.cluster.rendezvous import WorkerDescription, find_disagreement, wait_for_workers
from ssd_dist.cluster.strategy import WorkerRole, check_strategy, create_strategy, read_worker_role
from ssd_dist.core.config import Config
from ssd_dist.core.config_files import flatten_config
from ssd_dist.core.errors import CheckpointError, SsdDistError, UsageError
from ssd_dist.core.manifest import TRAIN_SPLIT, Manifest
from ssd_dist.data.pipeline import plan_training
from ssd_dist.model.backbone import check_weights_file
from ssd_dist.model.cost import count_cost
from ssd_dist.runs.run_folder import CONFIG_NAME, read_run_folder
from ssd_dist.training.assembly import create_state, distribute_training, load_checked_manifest
from ssd_dist.training.run import make_reproducible
from ssd_dist.training.run_checks import describe_worker

# Nobody waits for a queue here: all workers were started for this.
MEETING_SECONDS = 120
TIMED_ALL_REDUCES = 5


@dataclass(frozen=True)
class Finding:
    """One line of the table; `exit_code` 0 is a pass, and `detail` of a failure says how to mend it."""

    worker: int
    check: str
    detail: str
    exit_code: int = 0


class Findings(list[Finding]):
    """What one worker found."""

    def __init__(self, worker: int) -> None:
        super().__init__()
        self._worker = worker

    def note(self, check: str, look: Callable[[], str]) -> None:
        """Adds what `look` says, or why it failed."""
        try:
            self.append(Finding(self._worker, check, look()))
        except SsdDistError as error:
            self.append(Finding(self._worker, check, str(error), error.exit_code))

    @property
    def exit_code(self) -> int:
        """0 if all passed, else the code of the first failure: 2, 3 or 4."""
        return next((finding.exit_code for finding in self if finding.exit_code), 0)


def run_preflight(config: Config, model_dir: str) -> int:
    """Checks this worker and, with the others, the cluster; the chief prints the table. Returns the exit code.

    A worker that is well itself returns 0 though another is not: the chief's code is the verdict.

    Raises:
      UsageError: on the other workers, if the chief cannot be met.
    """
    role = read_worker_role()
    found = Findings(role.index)
    table: list[Finding] = []
    token = secrets.token_hex(8)
    probe = Path(model_dir) / f".preflight-{role.index}"
    manifest = check_worker(found, config, role, model_dir, probe, token)
    try:
        all_well = meet_others(found, table, config, role, manifest, probe, token)
    finally:
        with suppress(OSError):
            probe.unlink()
    if all_well and manifest is not None:
        together = Findings(role.index)
        with restart_on_lost_peer(role):
            check_together(together, config, role, manifest)
        found.extend(together)
        table.extend(together)
    if not role.is_chief:
        return found.exit_code
    print_table(table, role)
    return next((finding.exit_code for finding in table if finding.exit_code), 0)


def check_worker(
    found: Findings, config: Config, role: WorkerRole, model_dir: str, probe: Path, token: str
) -> Manifest | None:
    """What a worker can find out alone; the manifest if it is fit."""
    manifests: list[Manifest] = []

    def data() -> str:
        manifests.append(load_checked_manifest(config))
        split = manifests[0].split(TRAIN_SPLIT, config.data.dir)
        return f"{config.data.dir}: {split.images:,} images, made for this config ({manifests[0].fingerprint[:12]})"

    def shards() -> str:
        plan = plan_training(config, manifests[0].split(TRAIN_SPLIT, config.data.dir), role.index, role.count)
        files = len(plan.files[0])
        return f"{files} a view, all here; {files // role.count} for each of {role.count} workers"

    def classes() -> str:
        names = manifests[0].classes
        if (Path(model_dir) / CONFIG_NAME).is_file() and (before := read_run_folder(model_dir)[1].classes) != names:
            raise CheckpointError(
                f"the run in {model_dir} has {len(before)} classes, the data {len(names)}, or others: "
                "give another --model_dir, or the data it was trained on"
            )
        return f"{len(names)} and background"

    def weights() -> str:
        check_weights_file(config.backbone)
        return config.backbone.weights

    def folder() -> str:
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.write_text(token)
        except OSError as error:
            raise UsageError(f"--model_dir={model_dir} cannot be written: {error}") from None
        return f"{model_dir} can be written"

    def cluster() -> str:
        check_strategy(config.cluster, role)
        return f"worker {role.index} of {role.count} {role.addresses[role.index]}"

    found.note("cluster", cluster)
    found.note("data", data)
    if manifests:
        found.note("shards", shards)
        found.note("classes", classes)
    found.note("weights", weights)
    found.note("folder", folder)
    return manifests[0] if manifests else None


def meet_others(
    found: Findings,
    table: list[Finding],
    config: Config,
    role: WorkerRole,
    manifest: Manifest | None,
    probe: Path,
    token: str,
) -> bool:
    """Brings all findings to the chief, who fills the table; whether all is well on all workers.

    Raises:
      UsageError: on the other workers, if the chief cannot be met.
    """
    facts = dict(describe_worker(role, flatten_config(config), manifest, ()).facts) if manifest is not None else {}
    report = json.dumps({"findings": [asdict(finding) for finding in found], "facts": facts, "token": token})
    # The config may differ, and the table is to say so: compared by the chief, when all have told what they found.
    me = WorkerDescription(role.index, role.addresses, {}, report)
    judged = False

    def judge(present: Sequence[WorkerDescription]) -> str | None:
        nonlocal judged
        judged = True
        table.extend(compare_reports(present, probe))
        failed = sum(finding.exit_code > 0 for finding in table)
        return f"{failed} checks failed; the chief's table says which" if failed else None

    try:
        wait_for_workers(me, MEETING_SECONDS, judge)
    except SsdDistError as error:
        if role.is_chief and not judged:
            table.extend([*found, Finding(0, "workers meet", str(error), UsageError.exit_code)])
        elif not role.is_chief and not found.exit_code and "the chief's table" not in str(error):
            raise UsageError(str(error)) from None
        return False
    return True


def compare_reports(present: Sequence[WorkerDescription], probe: Path) -> list[Finding]:
    """On the chief: everybody's findings, and what only shows side by side."""
    reports = [json.loads(one.report) for one in present]
    table = [Finding(**finding) for report in reports for finding in report["findings"]]
    chief = replace(present[0], facts=reports[0]["facts"])
    for one, report in zip(present[1:], reports[1:], strict=True):
        # A worker without facts has no data: said already.
        if chief.facts and report["facts"]:
            problem = find_disagreement(chief, replace(one, facts=report["facts"]))
            same = "config, data and versions are the chief's"
            table.append(Finding(one.index, "agreement", problem or same, UsageError.exit_code if problem else 0))
        table.append(Finding(one.index, "clock", f"{one.skew:+.1f} s from the chief's"))
        try:
            shared = (probe.parent / f".preflight-{one.index}").read_text() == report["token"]
        except OSError:
            shared = False
        if shared:
            table.append(Finding(one.index, "shared folder", "the chief sees what it writes"))
        else:
            mend = f"the chief does not see what it writes into {probe.parent}: mount one folder on all workers"
            table.append(Finding(one.index, "shared folder", mend, UsageError.exit_code))
    return table


def check_together(found: Findings, config: Config, role: WorkerRole, manifest: Manifest) -> None:
    """What takes TensorFlow and all workers; collective."""
    # TensorFlow takes nearly all of a GPU's memory as soon as it uses it.
    free = free_memory()
    strategy = create_strategy(config.cluster, role)
    make_reproducible(config)
    collectives = WorkerCollectives(strategy, role.count)
    plan = plan_training(config, manifest.split(TRAIN_SPLIT, config.data.dir), role.index, role.count)
    with strategy.scope():
        state = create_state(config, len(manifest.classes), max(config.train.steps, 1))

    def batch() -> str:
        with strategy.scope():
            distribute_training(config, strategy, plan, state)
        replicas = strategy.num_replicas_in_sync
        return f"{config.train.global_batch_size} images over {replicas} replicas"

    found.note("batch", batch)
    if found.exit_code:
        return
    pairs = estimate_memory(config, state, count_cost(state.model), strategy.num_replicas_in_sync)
    needed = sum(size for _, size in pairs)
    on_one_device = 1 if tf.config.list_physical_devices("GPU") else strategy.num_replicas_in_sync // role.count
    own = free / on_one_device
    for worker in range(role.count):
        found.append(check_memory(worker, needed, collectives.sum(own if worker == role.index else 0.0)))
    if role.count > 1:
        size = sum(variable.shape.num_elements() for variable in state.model.trainable_variables)
        found.append(time_all_reduce(strategy, size))


def free_memory() -> float:
    """Bytes free on the fullest GPU that this process sees, or on the host; 0 is unknown."""
    if tf.config.list_physical_devices("GPU"):
        # TensorFlow does not tell; the driver's own tool does.
        command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        if seen := os.environ.get("CUDA_VISIBLE_DEVICES"):
            command.append(f"--id={seen}")
        with suppress(OSError, subprocess.SubprocessError, ValueError):
            lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()
            return min(float(line) for line in lines) * MEBI
        return 0.0
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def check_memory(worker: int, needed: int, free: float) -> Finding:
    """Whether the estimate for a replica fits into what is free."""
    told = f"a replica takes about {needed / MEBI:,.0f} MiB"
    if not free:
        return Finding(worker, "memory", f"{told}; what is free is not known (no nvidia-smi)")
    if needed <= free:
        return Finding(worker, "memory", f"{told}, {free / MEBI:,.0f} are free")
    mend = "lower train.global_batch_size, or raise train.accumulate_steps"
    return Finding(worker, "memory", f"{told}, only {free / MEBI:,.0f} are free: {mend}", UsageError.exit_code)


def time_all_reduce(strategy: tf.distribute.Strategy, size: int) -> Finding:
    """Sums as many numbers over all replicas as the model has gradients, some times, and looks at the sum."""
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
        detail = (
            f"the sum over {replicas} replicas is {bounds.tolist()}, not {expected:g}: the network or NCCL is broken"
        )
        return Finding(0, "all-reduce", detail, UsageError.exit_code)
    best = min(seconds[1:])
    # NCCL's bus bandwidth: what each link of a ring carries.
    bandwidth = 4 * size * 2 * (replicas - 1) / replicas / best
    return Finding(
        0, "all-reduce", f"{4 * size / MEBI:.1f} MiB in {best * 1e3:.1f} ms, {bandwidth / 1e9:.2f} GB/s a link"
    )


def print_table(table: Sequence[Finding], role: WorkerRole) -> None:
    """Prints all findings, and a last line with the verdict."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        # A log has no edge: a finding stays one line.
        console.width = 400
    sheet = Table(box=None, title_justify="left", title="Preflight", title_style="bold")
    for column in ("worker", "check", "verdict", "found, and how to mend it"):
        sheet.add_column(column, overflow="fold")
    for finding in table:
        verdict = Text("FAIL", style="bold red") if finding.exit_code else Text("pass", style="green")
        sheet.add_row(str(finding.worker), finding.check, verdict, Text(" ".join(finding.detail.split())))
    console.print(sheet)
    failed = sum(finding.exit_code > 0 for finding in table)
    console.print(f"{failed} of {len(table)} checks failed" if failed else f"{role.count} workers are ready to train")
