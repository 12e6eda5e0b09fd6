"""Loads a `Config` from YAML files and flags; errors state the key, the value and the fix.

load_config("configs/x.yaml", ["train.epochs=3"])
    read x.yaml and the files it extends -> merge, x.yaml last -> apply --set -> expand ${NAME} -> validate
"""

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ssd_dist.core.config import Config
from ssd_dist.core.errors import UsageError
from ssd_dist.core.printable import shorten
from ssd_dist.core.removed_keys import convert_stored_config, explain_removed_key
from ssd_dist.core.yaml_text import MAX_BYTES, MAX_DEPTH, TypedLoader, YamlError, parse_yaml

# A default ends at the next reference, so that the time is linear in the length of the text.
_ENVIRONMENT_REFERENCE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(:-(?P<default>(?:[^}$]|\$(?!\{))*))?\}")
# No path, split or name contains a control character, and no system call accepts NUL.
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# The configs of the project; in a checkout, a link to the top-level folder.
_PACKAGED = Path(__file__).parents[1] / "configs"
# Longest value, key or flag in a message, in characters.
_SHOWN_LENGTH = 200


class _Dumper(yaml.SafeDumper):
    """Writes YAML for `TypedLoader`; quotes strings such as "1e-3"."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def load_config(path: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and the files it extends, applies overrides and validates the result.

    Args:
      path: the YAML file, or the bare name of a config that the package contains, such as `base`; None starts from
        the default of every key.
      overrides: values of `--set`, as `a.b=c`.

    Raises:
      UsageError: with one line that states file or flag, key, value, valid values and the most similar key.
    """
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for file, content in [] if path is None else _read_chain(_locate_config(os.fspath(path), Path())):
        _merge(tree, content, str(file), origins)
    for override in overrides:
        _merge(tree, _parse_override(override), f"--set {shorten(override, _SHOWN_LENGTH)}", origins)
    return _validate(_expand_environment(tree), origins, "--set" if path is None else str(path))


def load_stored_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Reads a config that `dump_config` of this or an earlier version wrote; converts removed keys.

    References to environment variables in the file are plain text.

    Args:
      path: the YAML file.
      overrides: values of `--set`, as `a.b=c`.

    Raises:
      UsageError: as `load_config`.
    """
    tree = _read_yaml(Path(path))
    convert_stored_config(tree)
    origins: dict[str, str] = {}
    for override in overrides:
        content = _expand_environment(_parse_override(override))
        _merge(tree, content, f"--set {shorten(override, _SHOWN_LENGTH)}", origins)
    return _validate(tree, origins, str(path))


def dump_config(config: Config) -> str:
    """Returns the config as YAML; `load_stored_config` reads it back to an equal `Config`."""
    return str(yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False))


def format_override(key: str, value: Any) -> str:
    """Returns a key and its value, of a type that JSON has, or a path, as a value of `--set`.

    >>> format_override("anchors.sizes", [1, 2]), format_override("data.dir", Path("/data"))
    ('anchors.sizes=[1, 2]', 'data.dir="/data"')
    """
    # Not as escape sequences: those of emoji are surrogates, which YAML does not allow.
    return f"{key}={json.dumps(value, default=os.fspath, ensure_ascii=False)}"


def flatten_config(config: BaseModel, only_set: bool = False) -> dict[str, Any]:
    """Returns every value of the config by its dotted key, in schema order.

    Args:
      config: the config.
      only_set: omits the keys that no file and no override has set.
    """
    return dict(_leaves(config.model_dump(mode="json", exclude_unset=only_set)))


def _locate_config(name: str, folder: Path) -> Path:
    """Returns the file that `--config` or `extends` gives: a path relative to `folder`, or a config of the package."""
    path, packaged = folder / name, _list_packaged_configs().get(name)
    return packaged if packaged and not path.is_file() else path


def _list_packaged_configs() -> dict[str, Path]:
    return {file.stem: file for file in _PACKAGED.glob("*.yaml")}


def _read_chain(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Returns the files from the outermost base to `path`, each with its content without `extends`."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    seen: set[str] = set()
    current: Path | None = path
    while current is not None:
        # Unlike Path.resolve, it accepts links that form a loop; opening the file reports them.
        real = os.path.realpath(current)
        if real in seen:
            raise UsageError(f"{path}: extends forms a cycle through {current}; remove one `extends:`")
        seen.add(real)
        content = _read_yaml(current)
        base = content.pop("extends", None)
        if base is not None and not (base and isinstance(base, str) and not _CONTROL_CHARACTER.search(base)):
            raise UsageError(f"{current}: extends: got {_show(base)}; allowed: the path of one YAML file, or `base`")
        chain.insert(0, (current, content))
        current = _locate_config(base, current.parent) if base else None
    return chain


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UsageError(f"config file {path} has more than {MAX_BYTES / 1e6:g} MB; give the YAML file of a config")
        content = parse_yaml(data.decode("utf-8"), TypedLoader)
    except FileNotFoundError:
        raise UsageError(f"config file {path} does not exist{_suggest_config(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"config file {path} cannot be read: {error}; give a readable UTF-8 file") from None
    except YamlError as error:
        raise UsageError(f"config file {path} is not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"config file {path} must contain `key: value` sections, got a {type(content).__name__}")
    return content


def _suggest_config(path: Path) -> str:
    """Returns the end of the message about a missing config file: the most similar config, or nothing."""
    packaged = _list_packaged_configs()
    beside = [file.name for file in path.parent.glob("*.y*ml")]
    if path.stem not in packaged and (near := difflib.get_close_matches(path.name, beside, n=1)):
        return f"; did you mean {path.parent / near[0]}?"
    if near := difflib.get_close_matches(path.stem, packaged, n=1):
        return f"; did you mean {near[0]}, the config that the package contains?"
    return ""


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    shown, parts = shorten(override, _SHOWN_LENGTH), key.split(".")
    if not equals or not all(parts) or len(parts) > MAX_DEPTH:
        raise UsageError(f"--set {shown}: expected KEY=VALUE with a dotted key, e.g. --set train.epochs=3")
    try:
        value: Any = parse_yaml(text, TypedLoader) if text else ""
    except YamlError as error:
        raise UsageError(f"--set {shown}: the value is not valid YAML: {error}") from None
    for part in reversed(parts):
        value = {part: value}
    return dict(value)


def _merge(
    tree: dict[str, Any], content: Mapping[Any, Any], origin: str, origins: dict[str, str], at: str = ""
) -> None:
    """Merges `content` into `tree`, section by section; records the last origin of each key in `origins`."""
    for name, value in content.items():
        key = f"{at}{name}"
        origins[key] = origin
        if isinstance(value, Mapping) and isinstance(tree.get(name), dict):
            _merge(tree[name], value, origin, origins, f"{key}.")
        elif isinstance(value, Mapping):
            tree[name] = {}
            _merge(tree[name], value, origin, origins, f"{key}.")
        else:
            tree[name] = value


def _expand_environment(value: Any) -> Any:
    """Replaces ${NAME} and ${NAME:-default} in every string of the tree."""
    if isinstance(value, dict):
        return {key: _expand_environment(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand_environment(item) for item in value]
    if isinstance(value, str):
        return _ENVIRONMENT_REFERENCE.sub(_environment_value, value)
    return value


def _environment_value(reference: re.Match[str]) -> str:
    value = os.environ.get(reference["name"], reference["default"])
    if value is None:
        name = reference["name"]
        raise UsageError(f"the config uses ${{{name}}}, but it is not set; export it or write ${{{name}:-default}}")
    return value


def _validate(tree: dict[str, Any], origins: Mapping[str, str], path: str) -> Config:
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        location = [str(part) for part in problem["loc"]]
        key = ".".join(_schema_path(location))
        origin = _find_origin(key, origins, path)
        if problem["type"] == "extra_forbidden":
            raise UsageError(f"{origin}: {_explain_unknown_key(location, problem['input'])}") from None
        if problem["type"] == "value_error":
            raise UsageError(f"{origin}: {problem['msg'].removeprefix('Value error, ')}") from None
        if problem["type"] == "model_type":
            raise UsageError(
                f"{origin}: {key}: got {_show(problem['input'])}; allowed: a section of keys, not a value"
            ) from None
        messages = dict.fromkeys(p["msg"] for p in error.errors() if _same_key(p["loc"], key))
        allowed = " or ".join(message.removeprefix("Input should be ") for message in messages)
        allowed = allowed.replace("a valid tuple", "a list")
        raise UsageError(f"{origin}: {key}: got {_show(problem['input'])}; allowed: {allowed}") from None
    for key, value in flatten_config(config).items():
        if isinstance(value, str) and _CONTROL_CHARACTER.search(value):
            origin = _find_origin(key, origins, path)
            raise UsageError(f"{origin}: {key}: got {_show(value)}; allowed: text without control characters")
    return config


def _find_origin(key: str, origins: Mapping[str, str], path: str) -> str:
    """Returns the file or flag that set a key or, if none did, the nearest section around it; else `path`."""
    return next((origins[name] for name in (key, *_parents(key)) if name in origins), path)


def _show(value: Any) -> str:
    return shorten(repr(value), _SHOWN_LENGTH)


def _explain_unknown_key(location: Sequence[str], given: Any) -> str:
    key = shorten(".".join(location), _SHOWN_LENGTH)
    if removed := explain_removed_key(key, given):
        return removed
    if dotted := next((part for part in location if "." in part), None):
        nested = ": {".join(dotted.split(".")) + ": ..." + "}" * dotted.count(".")
        nested = shorten(nested, _SHOWN_LENGTH)
        return f"unknown key {key!r} (given: {_show(given)}): dotted keys are only for --set; in a file, write {nested}"
    if key == "extends":
        return f"extends (given: {_show(given)}) is only valid at the top of a file; write it there"
    known = [k for leaf in flatten_config(Config()) for k in (leaf, *_parents(leaf))]
    near = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.0)[0]
    # An equal name in another section is a better suggestion than a similar spelling.
    near = next((k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]), near)
    section = key.rpartition(".")[0]
    siblings = dict.fromkeys(k.removeprefix(f"{section}.").split(".")[0] for k in known if k.startswith(section))
    return (
        f"unknown key {key} (given: {_show(given)}); allowed in {section or 'a config'}: "
        f"{', '.join(name for name in siblings if name != section)}; did you mean {near}?"
    )


def _schema_path(location: Sequence[str]) -> Iterator[str]:
    """Yields the config keys of a pydantic location, without the indices and union members that follow."""
    model: Any = Config
    for part in location:
        yield part
        field = model.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return
        model = field.annotation


def _same_key(location: tuple[int | str, ...], key: str) -> bool:
    return ".".join(_schema_path([str(part) for part in location])) == key


def _parents(key: str) -> Iterator[str]:
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _leaves(tree: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{at}{name}.")
        else:
            yield f"{at}{name}", value
