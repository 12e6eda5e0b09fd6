"""The files of `ssd-fit` in the run folder; each is the result of a stage, and shows that the stage is finished.

RUN/fit/request.json   what was asked for       RUN/config.yaml           the choices, with all other keys
RUN/fit/survey.json    the dataset              RUN/data/dataset.json     the shards
RUN/fit/choices.json   the choices and reasons  RUN/metrics.json          the evaluation of the trained model
                                                RUN/export/FORMAT/export.json
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssd_dist.core.errors import CheckpointError, UsageError, first_line
from ssd_dist.core.folder_names import CONFIG_NAME, SUMMARY_NAME
from ssd_dist.core.manifest import MANIFEST_NAME
from ssd_dist.core.storage import write_text


@dataclass(frozen=True)
class FitFiles:
    """The paths of the files of a run."""

    folder: Path

    @property
    def request(self) -> Path:
        """What the user asked for."""
        return self.folder / "fit/request.json"

    @property
    def survey(self) -> Path:
        """The survey of the dataset."""
        return self.folder / "fit/survey.json"

    @property
    def choices(self) -> Path:
        """The choices and their reasons."""
        return self.folder / "fit/choices.json"

    @property
    def config(self) -> Path:
        """The config of the run."""
        return self.folder / CONFIG_NAME

    @property
    def manifest(self) -> Path:
        """The manifest of the shards."""
        return self.folder / "data" / MANIFEST_NAME

    @property
    def metrics(self) -> Path:
        """The metrics of the trained model."""
        return self.folder / "metrics.json"

    def export(self, kind: str) -> Path:
        """The export summary of a format."""
        return self.folder / "export" / kind / SUMMARY_NAME


@dataclass(frozen=True)
class FitRequest:
    """What the user asked for.

    Attributes:
      input: the labeled dataset.
      config: YAML file or name of a config of the package; None for the choices alone.
      overrides: `a.b=c` overrides.
      minutes: time limit of the whole command; None without a limit.
      started: time of the start, in seconds since 1970.
      fixed: the values that the config and the overrides set, by key; None in a request of an earlier version.
    """

    input: str
    config: str | None = None
    overrides: tuple[str, ...] = ()
    minutes: float | None = None
    started: float = 0.0
    fixed: dict[str, Any] | None = None

    @classmethod
    def read(cls, path: Path) -> "FitRequest":
        """Reads the request of a run.

        Raises:
          CheckpointError: if the file is damaged.
        """
        try:
            values = json.loads(path.read_text())
            return cls(**{**values, "overrides": tuple(values["overrides"])})
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{path} is damaged ({first_line(error)}); restore it, or use another --output"
            ) from None

    def write_or_compare(self, files: FitFiles) -> None:
        """Writes the request of a new run; checks that a resumed run has the same one.

        Before the choices are made, this request replaces an earlier one, so that a corrected command can use the
        folder, and the time limit starts again.

        Raises:
          UsageError: if the run in the folder was started with another request, or not by `ssd-fit`.
        """
        is_known = files.request.exists()
        if files.config.exists():
            if not is_known:
                raise UsageError(
                    f"--output={files.folder} is a run of ssd-train; use another --output, or resume it with ssd-train"
                )
            self._compare(FitRequest.read(files.request), files.folder)
            return
        if is_known and FitRequest.read(files.request).input != self.input:
            files.survey.unlink(missing_ok=True)
        write_text(files.request, json.dumps(asdict(self), indent=1) + "\n")

    def _compare(self, before: "FitRequest", folder: Path) -> None:
        for name in ("input", "config", "overrides", "minutes"):
            if vars(before)[name] != vars(self)[name]:
                flag = {"overrides": "set"}.get(name, name)
                raise UsageError(
                    f"--output={folder} was started with --{flag}: {_describe(vars(before)[name])}, now it is "
                    f"{_describe(vars(self)[name])}; use another --output, or the same flags to resume the run"
                )
        if before.fixed is not None and self.fixed is not None and before.fixed != self.fixed:
            changed = [key for key in {**before.fixed, **self.fixed} if before.fixed.get(key) != self.fixed.get(key)]
            raise UsageError(
                f"--config={self.config}: {', '.join(changed)} changed since the run in {folder} was started; use "
                "another --output, or undo the change to resume the run"
            )


def _describe(value: Any) -> str:
    """Returns the value of a flag, or the values of a flag that may be repeated, for a message."""
    values = value if isinstance(value, tuple) else () if value is None else (value,)
    return ", ".join(map(str, values)) or "none"
