"""Tests the Dataflow job without a cloud: its submitted graph, the launch script, the container and the template."""

import json
import pickle
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import apache_beam as beam
import jsonschema
import pytest
from absl import flags
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.portability import common_urns

from pipelines.classes import ClassRules
from pipelines.flags import define_flags
from pipelines.job import build_pipeline, run_job, submit_job
from pipelines.options import PrepareJob
from pipelines.readers.sources import Source
from pipelines.runners import make_runner, parse_beam_options, step_names
from ssd_dist.core.config import Config

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch/prepare_dataflow.sh"
DATAFLOW = [
    "--runner=DataflowRunner", "--project=my-project-1", "--region=us-central1", "--temp_location=gs://bucket/tmp",
    "--dry_run=True",
]  # fmt: skip
STEPS = [
    "Read/Create seeds", "Read/Spread seeds", "Read/List files", "Read/Spread files", "Read/Parse annotations",
    "Group into shards/Group by image", "Group into shards/Assemble images", "Group into shards/Group by bucket",
    "Group into shards/Number images", "Group into shards/Group by shard", "Write shards", "Gather reports",
    "Write manifest",
]  # fmt: skip


IMAGES = 20


@pytest.fixture
def job(tmp_path):
    """Returns a job on a small YOLO dataset of JPEG images."""
    sys.path.insert(0, str(ROOT / "tests/pipelines"))
    from raw_sets import make_yolo

    images = {f"image{number}": ["0 0.5 0.5 0.25 0.25"] for number in range(IMAGES)}
    folder = make_yolo(tmp_path / "raw", images, ["thing"])
    source = Source((str(folder),), output_split="train")
    return PrepareJob("yolo", (source,), str(tmp_path / "out"), 4, ClassRules(), 1.0, Config())


def test_a_dry_run_lists_the_steps_and_writes_nothing(job):
    steps = submit_job(job, PipelineOptions(DATAFLOW))
    assert [step for step in steps if step in STEPS] == STEPS
    assert not Path(job.output).exists()


def test_the_submitted_graph_reads_images_after_the_last_shuffle(job):
    options = PipelineOptions(DATAFLOW)
    pipeline = beam.Pipeline(runner=make_runner(options), options=options)
    build_pipeline(pipeline, job)
    components = pipeline.run().job.proto_pipeline.components
    consumers, producers = {}, {}
    for transform in components.transforms.values():
        if not transform.subtransforms:
            for collection in transform.inputs.values():
                consumers.setdefault(collection, []).append(transform)
            producers.update(dict.fromkeys(transform.outputs.values(), transform))
    (writer,) = [t for t in components.transforms.values() if t.unique_name == "Write shards"]
    leaves = [
        t for t in components.transforms.values() if t.unique_name.startswith("Write shards") and not t.subtransforms
    ]
    assert [producers[c].unique_name for leaf in leaves for c in leaf.inputs.values()] == [
        "Group into shards/Group by shard"
    ]
    # The step that reads images is followed only by the step that gathers the paths of reports.
    (collection,) = writer.outputs.values()
    assert [t.unique_name for t in consumers[collection]] == ["Gather reports"]
    assert not [t.unique_name for t in components.transforms.values() if "SideInput" in t.unique_name]
    grouping = common_urns.primitives.GROUP_BY_KEY.urn
    groupings = {t.unique_name for t in components.transforms.values() if t.spec.urn == grouping}
    assert {"Group into shards/Group by image", "Group into shards/Group by shard", "Gather reports"} <= groupings


def test_no_image_byte_crosses_a_shuffle(job, monkeypatch):
    """Every element that enters a grouping is small and contains no JPEG."""
    sizes = Path(job.output).parent / "sizes"
    sizes.mkdir()
    group_by_key = beam.GroupByKey

    class CheckedGroupByKey(beam.PTransform):
        def expand(self, collection):
            return collection | beam.Map(check_element, str(sizes)) | group_by_key()

    monkeypatch.setattr(beam, "GroupByKey", CheckedGroupByKey)
    run_job(job, PipelineOptions([]))
    element_sizes = [int(line) for path in sizes.iterdir() for line in path.read_text().split()]
    # Each image passes three groupings.
    assert len(element_sizes) > 3 * IMAGES
    assert max(element_sizes) < 4096
    shards = sum(path.stat().st_size for path in Path(job.output).glob("train/*.tfrecord"))
    assert shards > 50_000


def check_element(element, folder):
    data = pickle.dumps(element)
    assert b"\xff\xd8\xff" not in data, "a JPEG passes through a shuffle"
    with (Path(folder) / "sizes").open("a") as file:
        file.write(f"{len(data)}\n")
    return element


def run_script(*arguments):
    return subprocess.run(
        [str(SCRIPT), f"--python={sys.executable}", *arguments], capture_output=True, text=True, check=False
    )


COMPLETE = ["--project=my-project-1", "--region=us-central1", "--bucket=gs://bucket", "--image=worker:1"]


def test_the_script_submits_with_a_dry_run(job, tmp_path):
    done = run_script(
        *COMPLETE, "--workers=7", "--", "--input_format=yolo", f"--input={job.sources[0].inputs[0]}", "--split=train",
        f"--output={tmp_path / 'out'}", f"--config={ROOT / 'configs/base.yaml'}", "--dry_run=True",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps = [line.strip() for line in done.stdout.splitlines()]
    assert [step for step in steps if step in STEPS] == STEPS


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--project is missing"),
        ([*COMPLETE[:-1], "--", "x"], "--image is missing"),
        (COMPLETE, "after --"),
        ([*COMPLETE, "--machine=x"], "--machine=x"),
    ],
)
def test_the_script_refuses_an_incomplete_call(arguments, word):
    done = run_script(*arguments)
    assert done.returncode == 2
    assert word in done.stderr


def test_local_paths_are_refused_on_dataflow(job):
    from pipelines.runners import require_remote
    from ssd_dist.core.errors import UsageError

    options = PipelineOptions(DATAFLOW[:-1])
    with pytest.raises(UsageError, match="gs://"):
        require_remote(options, ["gs://b/in", "", job.output])
    require_remote(options, ["gs://b/in", "", "gs://b/out"])
    require_remote(PipelineOptions([]), [job.output])


def test_beam_accepts_every_option_of_the_script():
    given = re.findall(r"^  (--\w+)=", SCRIPT.read_text(), re.MULTILINE)
    assert len(given) > 10
    numbers = {"--max_num_workers", "--disk_size_gb", "--number_of_worker_harness_threads"}
    words = {"--autoscaling_algorithm": "THROUGHPUT_BASED"}
    parse_beam_options([f"{name}={words.get(name, 1 if name in numbers else 'x')}" for name in given], [])


@pytest.fixture
def own_flags():
    """Returns the names of prepare's flags; they are defined only to list them."""
    before = set(flags.FLAGS)
    define_flags()
    own = set(flags.FLAGS) - before
    flags.FLAGS.remove_flag_values(own)
    return own


def test_the_documented_commands_use_existing_options(own_flags):
    """Flink and Spark are not available in the tests; at least Beam must accept their options and values."""
    text = (ROOT / "docs/dataflow.md").read_text().replace("\\\n", " ")
    commands = [line.partition("  #")[0] for line in re.findall(r"^    .*pipelines\.prepare (.*)$", text, re.MULTILINE)]
    commands += re.findall(r"^    launch/prepare_dataflow\.sh .* -- (.*)$", text, re.MULTILINE)
    assert len(commands) == 8
    runners = set()
    for command in commands:
        given = [argument for argument in command.split() if argument.partition("=")[0].lstrip("-") not in own_flags]
        arguments = [argument for argument in given if argument != "..."]
        options = parse_beam_options(arguments, sorted(own_flags))
        runners.add(options.view_as(StandardOptions).runner)
    assert runners >= {"DaskRunner", "FlinkRunner", "SparkRunner", "PortableRunner"}


def test_the_template_uses_existing_flags(own_flags):
    template = json.loads((ROOT / "launch/prepare/flex_template.json").read_text())
    assert {parameter["name"] for parameter in template["parameters"]} <= own_flags


def test_the_template_follows_the_published_schema_of_dataflow():
    # The discovery document of the Dataflow API, which Google's client library contains.
    documents = files("googleapiclient.discovery_cache.documents")
    schemas = json.loads((documents / "dataflow.v1b3.json").read_text())["schemas"]
    # References there are names, and unknown properties are not forbidden.
    for schema in schemas.values():
        schema["additionalProperties"] = False
    document = json.dumps({"$ref": "TemplateMetadata", "$defs": schemas})
    document = re.sub(r'"\$ref": "(\w+)"', r'"$ref": "#/$defs/\1"', document)
    validator = jsonschema.Draft202012Validator(json.loads(document))
    template = json.loads((ROOT / "launch/prepare/flex_template.json").read_text())
    validator.validate(template)
    for wrong in ({"parameter": []}, {"parameters": [{"name": "input", "paramType": "FOLDER"}]}):
        assert not validator.is_valid(template | wrong)


def test_the_container_uses_the_locked_beam_version():
    dockerfile = (ROOT / "launch/prepare/Dockerfile").read_text()
    lock = (ROOT / "requirements.lock").read_text()
    beam_version = re.search(r"^apache-beam(?:\[[\w,-]+\])?==([\d.]+)", lock, re.MULTILINE).group(1)
    assert f"beam_python3.11_sdk:{beam_version}" in dockerfile
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", dockerfile, re.MULTILINE)
    assert all((ROOT / name).exists() for names in copied for name in names.split())


def test_step_names_have_at_most_two_levels(job):
    pipeline = beam.Pipeline()
    build_pipeline(pipeline, job)
    names = step_names(pipeline)
    assert len(names) == len(set(names)) < 30
    assert all(name.count("/") <= 1 for name in names)
