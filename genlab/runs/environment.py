"""What a run was made with: versions, machine, commit and command line, without anything private."""

from __future__ import annotations

import getpass
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "genlab",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "jsonargparse",
    "numpy",
    "pillow",
    "scikit-learn",
    "wandb",
)

_HIDDEN = "***"
_SECRET = r"(?:api_?keys?|keys?|token|auth|authorization|pass(?:word|wd|phrase)?|pwd|secrets?|credentials?)"
# The last word of a name decides: api_key and HF_TOKEN are secret; num_tokens, tokenizer and monkey are not.
_SECRET_NAME = re.compile(rf"(?:.*[^a-z])?{_SECRET}", re.IGNORECASE)
_SECRET_PAIR = re.compile(
    rf"(?P<name>(?<![a-z]){_SECRET}[\"']?\s*[=:]\s*(?:bearer\s+)?)(?P<value>\"[^\"]*\"|'[^']*'|[^\s,;}}\]&\"']+)",
    re.IGNORECASE,
)
_URL_USER = re.compile(r"(?<=://)[^/@\s]+@")


def environment() -> dict[str, Any]:
    """Returns the versions, the machine, the commit and the command line of this process, in JSON's types."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": cores(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _git(),
        "command": command_line(sys.argv),
    }


def command_line(arguments: Sequence[str]) -> list[str]:
    """Returns a command's arguments without secrets, the user's name, and the path of the user's home."""
    program, *options = arguments or [""]
    shown = [Path(program).name]
    hide_next = False
    for option in options:
        shown.append(_HIDDEN if hide_next and not option.startswith("--") else without_private(option))
        hide_next = option.startswith("-") and _SECRET_NAME.fullmatch(option) is not None
    return shown


def without_private(text: str) -> str:
    """Returns the text with secrets as ***, the home folder as ~ and the user's name as USER.

    A secret is the value after a name such as api_key, token or password, the value of an environment
    variable with such a name, or the user part of an address.
    """
    text = _SECRET_PAIR.sub(rf"\g<name>{_HIDDEN}", _URL_USER.sub(f"{_HIDDEN}@", text))
    for secret in _environment_secrets():
        text = text.replace(secret, _HIDDEN)
    return _without_user(text)


def _environment_secrets() -> list[str]:
    # Short values ("1", "true") are switches and would blot out ordinary text; PWD is where the shell is.
    return [
        value
        for name, value in os.environ.items()
        if len(value) >= 8 and _SECRET_NAME.fullmatch(name) and name not in ("PWD", "OLDPWD")
    ]


def _without_user(text: str) -> str:
    home = os.path.expanduser("~").rstrip("/")
    if home:
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    return re.sub(rf"(?<=[/\\]){re.escape(_user())}(?=[/\\]|$)", "USER", text)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run as a number without a name
        return str(getattr(os, "getuid", lambda: "USER")())


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def cores() -> int:
    """Returns how many cores this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    commit = _git_output("rev-parse", "HEAD")
    if not commit:
        return None
    return {"commit": commit, "dirty": bool(_git_output("status", "--porcelain", "--untracked-files=no"))}


def _git_output(*arguments: str) -> str | None:
    # The working directory may be anybody's: no program that its git configuration names is started.
    command = ["git", "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
