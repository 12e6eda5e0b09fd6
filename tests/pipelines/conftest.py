"""Fixtures that run prepare in this process and read the records it wrote."""

import os
import sys
from pathlib import Path

import pytest
from absl import flags
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.classes import ClassRules
from pipelines.flags import define_flags
from pipelines.job import run_job
from pipelines.manifest_writer import read_manifest
from pipelines.options import PrepareJob
from pipelines.prepare import run_until_stopped
from pipelines.readers.sources import Source
from pipelines.runners import quiet_logs
from ssd_dist.core.commands import run_command
from ssd_dist.core.config import Config
from ssd_dist.core.records import Record
from ssd_dist.core.tfrecord_io import read_records

SHARED = Path(os.environ.get("SSD_DIST_SHARED") or Path(__file__).parents[3] / "shared")


@pytest.fixture(autouse=True)
def quiet_beam():
    quiet_logs(PipelineOptions([]))


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command in this process: command("--split=train", ...) -> (exit code, output, errors)."""
    before = set(flags.FLAGS)
    define_flags()

    def run(*arguments):
        flags.FLAGS.unparse_flags()
        for name in set(flags.FLAGS) - before:
            flags.FLAGS[name].unparse()
        monkeypatch.setattr(sys, "argv", ["ssd-prepare", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_command(run_until_stopped, keep_unknown=True)
        return end.value.code or 0, *capsys.readouterr()

    yield run
    flags.FLAGS.remove_flag_values(set(flags.FLAGS) - before)


@pytest.fixture
def prepare_folder(tmp_path, command):
    """Runs the command on tmp_path/raw: prepare_folder(flags...) -> (manifest, output)."""

    def run(*arguments, name="out"):
        output = tmp_path / name
        code, out, err = command(
            f"--input={tmp_path / 'raw'}", f"--output={output}", "--set=model.input_size=64", *arguments
        )
        assert (code, err) == (0, ""), out + err
        return read_manifest(str(output)), out

    return run


@pytest.fixture(scope="session")
def shared_data():
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}; set SSD_DIST_SHARED")
    return folder


@pytest.fixture(scope="session")
def prepare():
    """Runs prepare in this process: prepare("voc", input, output, split="train", ...) -> manifest."""

    def run(input_format, inputs, output, split="train", *, options=(), config=None, rules=None, **rest):
        inputs = (inputs,) if isinstance(inputs, str | Path) else inputs
        source_keys = {key: rest.pop(key) for key in ("image_dir", "split_by") if key in rest}
        source = Source(tuple(map(str, inputs)), split=rest.pop("source_split", ""), output_split=split, **source_keys)
        job = PrepareJob(
            input_format=input_format,
            sources=(source,),
            output=str(output),
            shards=rest.pop("shards", 0),
            rules=rules or ClassRules(),
            max_rejected_fraction=rest.pop("max_rejected_fraction", 1.0),
            config=config or Config(),
            **rest,
        )
        beam_options = PipelineOptions(list(options))
        FileSystems.set_options(beam_options)
        return run_job(job, beam_options)

    return run


@pytest.fixture(scope="session")
def records_of():
    """Reads one copy of a split: records_of(output, manifest, split="train", view=0) -> {source id: record}."""

    def read(output, manifest, split="train", view=0):
        records = {}
        for shard in manifest.splits[split].views[view].shards:
            path = Path(output) / shard.file
            with path.open("rb") as file:
                parsed = [Record.from_bytes(data) for data in read_records(file, str(path))]
            assert len(parsed) == shard.examples
            records.update((record.source_id, record) for record in parsed)
        return records

    return read
