"""Tests that flags are parsed, and that errors give exit code 2 and one line."""

import re
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    '''Greets.'''
    import sys
    from absl import flags, logging
    from ssd_dist.core.commands import config_from_flags, define_config_flags, required_flag, run_command
    from ssd_dist.core.errors import DataError

    def main(argv):
        if required_flag("name") == "nobody":
            raise DataError("nobody is missing; name\\nsomebody")
        if required_flag("name") == "^C":
            raise KeyboardInterrupt
        if required_flag("name") == "evil":
            logging.warning("log \\x1b[31m")
            raise DataError("class \\x1b[31m\\u202e" + "x" * 10_000 + "; rename it")
        print(argv, flags.FLAGS.count, config_from_flags().train.epochs)

    if __name__ == "__main__":
        define_config_flags()
        flags.DEFINE_string("name", None, "Whom to greet.")
        flags.DEFINE_integer("count", 1, "How often.")
        run_command(main, keep_unknown={keep_unknown})
"""


def run(tmp_path, *arguments, keep_unknown=False):
    program = tmp_path / "greet.py"
    program.write_text(textwrap.dedent(PROGRAM).replace("{keep_unknown}", str(keep_unknown)))
    (tmp_path / "x.yaml").write_text("train: {epochs: 7}\n")
    command = [sys.executable, str(program), *(a.replace("X.YAML", str(tmp_path / "x.yaml")) for a in arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_flags_and_config_reach_main(tmp_path):
    done = run(tmp_path, "--name=you", "--config=X.YAML", "--set", "train.epochs=3", "--count=2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "[] 2 3\n", "")


@pytest.mark.parametrize("module", ["cli.predict", "cli.evaluate", "cli.export", "cli.benchmark", "cli.inspect"])
def test_results_are_not_written_to_an_object_store(module):
    required = {
        "cli.predict": ["--images=x"], "cli.evaluate": ["--model_dir=r", "--split=val"],
        "cli.export": ["--model_dir=r", "--format=onnx"], "cli.benchmark": ["--model_dir=r"],
        "cli.inspect": ["--model_dir=r"],
    }[module]  # fmt: skip
    command = [sys.executable, "-m", f"ssd_dist.{module}", "--output=gs://b/x", *required]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--output=gs://b/x: cannot write to remote storage; give a local path" in done.stderr


def test_unknown_arguments_are_kept_on_request(tmp_path):
    done = run(tmp_path, "--name=you", "--runner=X", "--config=X.YAML", "--no_auth", keep_unknown=True)
    assert (done.returncode, done.stdout) == (0, "['--runner=X', '--no_auth'] 1 7\n")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--name=you"], 2, ["--config is missing"]),
        (["--config=X.YAML"], 2, ["--name is missing", "Whom to greet"]),
        (["--name=you", "--nane=me"], 2, ["nane", "--name"]),
        (["--count=many"], 2, ["count", "many"]),
        (["--name"], 2, ["name"]),
        (["stray"], 2, ["stray"]),
        (["--name=you", "--config=nowhere.yaml"], 2, ["nowhere.yaml"]),
        (["--name=you", "--config=X.YAML", "--set", "train.epoch=3"], 2, ["train.epoch", "train.epochs"]),
        (["--name=nobody"], 3, ["nobody is missing"]),
        (["--name=^C"], 130, ["stopped"]),
    ],
)
def test_user_errors_are_reported_in_one_line(tmp_path, arguments, code, words):
    done = run(tmp_path, *arguments)
    assert done.returncode == code
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert all(word in done.stderr for word in words), done.stderr


def test_hostile_text_in_an_error_or_a_log_line_is_escaped_and_shortened(tmp_path):
    done = run(tmp_path, "--name=evil")
    assert done.returncode == 3
    log, error = done.stderr.splitlines()
    assert log.endswith("] log \\x1b[31m")
    assert error.startswith("error: class \\x1b[31m\\u202exxx")
    assert error.endswith("xxx; rename it")
    assert len(error) == 1000


def test_help_shows_the_docstring_and_the_flags(tmp_path):
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    assert "Greets." in done.stdout
    for flag in ("--config", "--set", "--name", "--count"):
        assert flag in done.stdout


def test_help_describes_each_flag_in_one_line_that_ends_in_one_period(tmp_path):
    lines = run(tmp_path, "--help").stdout.splitlines()
    described = [line for line in lines if line.startswith("  --")]
    assert lines[-len(described) :] == described
    assert all(re.fullmatch(r"  --\w+: .*\w\. \(default: .+\)", line) for line in described), described


def test_help_shows_defaults_and_none_for_empty_ones(tmp_path):
    text = run(tmp_path, "--help").stdout
    defaults = dict(re.findall(r"^  --(\w+): .* \(default: (.*)\)$", text, re.MULTILINE))
    assert defaults == {"config": "none", "set": "none", "name": "none", "count": "'1'"}
