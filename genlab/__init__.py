"""Generative models of every family, trained from one YAML file and compared fairly."""

__version__ = "0.2.0"
