"""Generative models of every family, trained from one YAML file and compared fairly.

    import genlab

    run = genlab.fit("dcgan_digits", {"budget.seconds": 60})
    images = genlab.sample(run, 16, seed=0)
    genlab.test(run)
    genlab.compare([run])

The functions are the commands of the same names, and take what these take; see `genlab.api`. They are
imported when they are asked for: `import genlab` alone imports neither torch nor numpy.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_FUNCTIONS = ("compare", "fit", "load", "open_run", "sample", "score", "test")

__all__ = ["__version__", "compare", "fit", "load", "open_run", "sample", "score", "test"]


def __getattr__(name: str) -> Any:
    if name not in _FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Composed, for it is no import of this file's: every room imports genlab for its version.
    return getattr(importlib.import_module(f"{__name__}.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_FUNCTIONS})
