"""Configuration: the arguments shared by all scripts, and the parser of `script.py config.yaml --key=value`."""

from simpo.config.arguments import DataArguments, ModelArguments
from simpo.config.parser import H4ArgumentParser
from simpo.config.reading import read_yaml

__all__ = ["DataArguments", "H4ArgumentParser", "ModelArguments", "read_yaml"]
