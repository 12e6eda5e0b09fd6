"""The job files: Kubernetes manifests valid by their schemas, consistent, and with a config that fits the replicas."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models

from ssd_dist.core.config_files import load_config
from ssd_dist.core.errors import CheckpointError, DataError, RestartError, UsageError
from ssd_dist.training.batch_division import divide_batch

FOLDER = Path(__file__).parents[2] / "launch" / "train"
MODELS = {
    "JobSet": models.JobsetV1alpha2JobSet,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
    "TrainJob": models.TrainerV1alpha1TrainJob,
}
# The oldest version that jobset.yaml states, and the newest that the package has.
VERSIONS = ("1.31", "1.37")


def read_documents() -> dict[str, dict[str, Any]]:
    files = ("jobset.yaml", "trainjob.yaml")
    documents = [document for file in files for document in yaml.safe_load_all((FOLDER / file).read_text())]
    return {document["kind"]: document for document in documents}


def find_job_set(kind: str) -> dict[str, Any]:
    spec = read_documents()[kind]["spec"]
    return spec["template"]["spec"] if kind == "TrainingRuntime" else spec


def parse(document: dict[str, Any]) -> dict[str, Any]:
    """Returns what the models of the schema read: they check types and required keys, and drop unknown keys."""
    return MODELS[document["kind"]].from_dict(document).to_dict()


def list_dropped(written: Any, parsed: Any, path: str = "") -> list[str]:
    """Returns the paths of values that are written but not parsed; a parsed document also has default values."""
    if isinstance(written, dict) and isinstance(parsed, dict):
        parts = [(key, value, parsed.get(key)) for key, value in written.items()]
    elif isinstance(written, list) and isinstance(parsed, list) and len(written) == len(parsed):
        parts = [(str(index), *pair) for index, pair in enumerate(zip(written, parsed, strict=True))]
    else:
        return [] if written == parsed else [path]
    return [each for key, ours, theirs in parts for each in list_dropped(ours, theirs, f"{path}.{key}")]


@pytest.mark.parametrize("kind", MODELS)
def test_a_manifest_is_valid_and_has_no_unknown_keys(kind: str) -> None:
    document = read_documents()[kind]
    assert list_dropped(document, parse(document)) == []


@pytest.mark.parametrize("kind", ["JobSet", "TrainingRuntime"])
def test_the_check_finds_unknown_keys(kind: str) -> None:
    document = read_documents()[kind]
    spec = document["spec"]["template"]["spec"] if kind == "TrainingRuntime" else document["spec"]
    spec["replicatedJobs"][0]["template"]["spec"]["backofLimit"] = 0
    (path,) = list_dropped(document, parse(document))
    assert path.endswith(".replicatedJobs.0.template.spec.backofLimit")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["JobSet", "TrainingRuntime"])
def test_the_job_template_is_valid_for_kubernetes(kind: str, version: str) -> None:
    (job,) = find_job_set(kind)["replicatedJobs"]
    manifest = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": job["template"]["spec"]}
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("kind", ["JobSet", "TrainingRuntime"])
def test_only_exit_codes_that_a_restart_can_fix_cause_a_restart(kind: str) -> None:
    spec = find_job_set(kind)
    (job,) = spec["replicatedJobs"]
    rules = job["template"]["spec"]["podFailurePolicy"]["rules"]
    by_code = {
        code: rule["action"] for rule in rules if "onExitCodes" in rule for code in rule["onExitCodes"]["values"]
    }
    permanent = [error.exit_code for error in (UsageError, DataError, CheckpointError)]
    assert by_code == {**dict.fromkeys(permanent, "FailJob"), RestartError.exit_code: "Ignore"}
    # A job that its own policy marked as failed is not restarted.
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_the_pods_know_the_number_and_the_names_of_their_peers() -> None:
    documents = read_documents()
    (job,) = find_job_set("JobSet")["replicatedJobs"]
    pods = job["template"]["spec"]
    (container,) = pods["template"]["spec"]["containers"]
    (trainer_job,) = find_job_set("TrainingRuntime")["replicatedJobs"]
    trainer = documents["TrainJob"]["spec"]["trainer"]
    cases = (
        (documents["JobSet"], job, container["env"], pods["parallelism"]),
        (documents["TrainJob"], trainer_job, trainer["env"], trainer["numNodes"]),
    )
    for document, replicated, variables, count in cases:
        values = {variable["name"]: variable.get("value") for variable in variables}
        name = document["metadata"]["name"]
        assert int(values["SSD_DIST_PEERS"]) == count == 2
        # JobSet's DNS names: <JobSet>-<replicated job>-<index of the job>-<index of the pod>.<JobSet>
        assert values["SSD_DIST_PEER_PATTERN"] == f"{name}-{replicated['name']}-0-{{}}.{name}"
    assert pods["completions"] == pods["parallelism"]


def test_the_train_job_uses_the_runtime_of_its_file() -> None:
    documents = read_documents()
    reference = documents["TrainJob"]["spec"]["runtimeRef"]
    assert reference == {"kind": "TrainingRuntime", "name": documents["TrainingRuntime"]["metadata"]["name"]}
    (job,) = find_job_set("TrainingRuntime")["replicatedJobs"]
    # Trainer recognizes its job by these names.
    assert job["name"] == "node"
    assert job["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert [container["name"] for container in job["template"]["spec"]["template"]["spec"]["containers"]] == ["node"]


def test_the_flags_of_each_job_file_fit_its_replicas() -> None:
    (job,) = find_job_set("JobSet")["replicatedJobs"]
    pods = job["template"]["spec"]
    (container,) = pods["template"]["spec"]["containers"]
    trainer = read_documents()["TrainJob"]["spec"]["trainer"]
    pools = yaml.safe_load((FOLDER / "vertex.yaml").read_text())["workerPoolSpecs"]
    jobs = [
        (container["args"], pods["parallelism"], container["resources"]["limits"]["nvidia.com/gpu"]),
        (trainer["args"], trainer["numNodes"], trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]),
        (
            pools[0]["containerSpec"]["args"],
            sum(pool["replicaCount"] for pool in pools),
            pools[0]["machineSpec"]["acceleratorCount"],
        ),
    ]
    for arguments, hosts, gpus in jobs:
        values = [argument.removeprefix("--set=") for argument in arguments if argument.startswith("--set=")]
        (config,) = (Path(argument).name for argument in arguments if argument.startswith("--config="))
        # Raises an error if the batch or its batch-norm groups do not fit.
        assert divide_batch(load_config(config.removesuffix(".yaml"), values), hosts * gpus).images_at_once == 8
