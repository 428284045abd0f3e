"""The parser of `script.py [config.yaml] [--key=value] ...`: strict, every value checked against its field."""

import argparse
import contextlib
import dataclasses
import difflib
import io
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import HfArgumentParser

from simpo.config.old_spellings import RENAMED_SILENTLY, modernize
from simpo.config.reading import brief, read_yaml, split_overrides
from simpo.config.values import COMMAND_LINE, check_choice, check_type
from simpo.console import UserError, warn

# what libraries raise about a setting, each in its own way: files that it names, keys of a nested one, packages
REFUSALS = (ValueError, TypeError, NotImplementedError, ImportError, OSError, AttributeError, LookupError)


class ProgramHelp(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The program's own words as they stand, and the defaults of its options."""


class H4ArgumentParser(HfArgumentParser):
    """Parses `script.py [config.yaml] [--key=value | --key value] ...` into the given dataclasses.

    The YAML is read first, then the overrides. Every value is checked against its field's type; an unknown key, a
    wrong type or an invalid value is a UserError that names the key.
    """

    def __init__(self, dataclass_types: Any, **kwargs: Any):
        super().__init__(dataclass_types, conflict_handler="resolve", **kwargs)
        self.given: dict[str, str] = {}
        """Keys that the parsed YAML and command line gave, and which of the two did."""

    def parse(self, argv: Sequence[str] | None = None, defaults: Mapping[str, Any] | None = None) -> Any:
        """Return one instance per dataclass (the bare instance if there is only one).

        Args:
            argv: command line without the script's name; `sys.argv[1:]` by default.
            defaults: values of keys that neither the YAML nor the command line gives.

        Raises:
            UserError: the YAML is missing or malformed, a key is unknown, a value has the wrong type.
        """
        argv = list(sys.argv[1:] if argv is None else argv)
        if "-h" in argv or "--help" in argv:
            self.usage, self.formatter_class = "%(prog)s [CONFIG.yaml] [--key=value | --key value] ...", ProgramHelp
            self.description = sys.modules["__main__"].__doc__
            self.print_help()
            sys.exit(0)
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        if argv and not argv[0].startswith("--"):
            path = argv.pop(0)
            for key, value in read_yaml(path).items():
                values[key], sources[key] = value, path
        for key, value in split_overrides(argv).items():
            values[key], sources[key] = value, COMMAND_LINE

        values, sources = self._modernize(values, sources)
        self.given = dict(sources)
        for key, value in (defaults or {}).items():
            if key not in values:
                values[key], sources[key] = value, "default"
        fields = {cls: {f.name for f in dataclasses.fields(cls) if f.init} for cls in self.dataclass_types}
        known = set().union(*fields.values())
        # keys that a class knows of, and why they are not its own
        foreign = {k: why for cls in self.dataclass_types for k, why in getattr(cls, "foreign_keys", {}).items()}
        outputs = []
        for key in values:
            if key in foreign:
                raise UserError(f"{sources[key]}: {key} {foreign[key]}: leave it out")
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UserError(f"{sources[key]}: unknown key {brief(key)}{hint}")
        given = next((source for source in sources.values() if source != COMMAND_LINE), COMMAND_LINE)
        for cls in self.dataclass_types:
            hints = typing.get_type_hints(cls)
            choices = {f.name: f.metadata.get("choices") for f in dataclasses.fields(cls)}
            checked = {
                key: check_choice(key, check_type(key, value, hints[key], sources[key]), choices[key], sources[key])
                for key, value in values.items()
                if key in fields[cls]  # a key that two classes share goes to both
            }
            try:
                outputs.append(cls(**checked))
            except REFUSALS as error:
                named = any(key in str(error) for key in checked)
                key = None if named else culprit(checked, lambda kept, cls=cls: cls(**kept))
                raise UserError(f"{given}: {f'{key}: ' if key else ''}{error}") from error
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _modernize(self, values: dict[str, Any], sources: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
        """Read old spellings as today's, with one warning line for all of them.

        Raises:
            UserError: a setting was removed, or one place gives a setting in its old and its new spelling.
        """
        known = {f.name for cls in self.dataclass_types for f in dataclasses.fields(cls)}
        new_values, origins, notes = {}, {}, []
        for key in sorted(values, key=lambda key: sources[key] == COMMAND_LINE):  # the command line wins
            replaced = {key: values[key]} if key in known else modernize(key, values[key], sources[key])
            if key not in replaced and key not in RENAMED_SILENTLY:
                notes.append(f"{key} -> {', '.join(replaced) or 'ignored'}")
            for new_key, new_value in replaced.items():
                twin = origins.get(new_key)
                if twin is not None and sources[twin] == sources[key]:
                    raise UserError(f"{sources[key]}: {twin} and {key} are one setting: keep {new_key}")
                new_values[new_key], origins[new_key] = new_value, key
        if notes:
            warn(f"old spellings read as today's: {'; '.join(notes)}")
        return new_values, {key: sources[origin] for key, origin in origins.items()}


def culprit(settings: Mapping[str, Any], attempt: Callable[[dict[str, Any]], Any]) -> str | None:
    """The setting without which the attempt succeeds, where a library does not say what it refuses."""
    for key in settings:
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                attempt({name: value for name, value in settings.items() if name != key})
        except (*REFUSALS, UserError):
            continue
        return key
    return None
