"""What a run was made with: versions, machine, commit and command line, without anything private."""

from __future__ import annotations

import getpass
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
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
_SECRET_WORDS = frozenset(
    (
        *("key", "keys", "keyid", "apikey", "apikeys", "accesskey", "secretkey", "privatekey"),
        *("token", "tokens", "jwt", "pat", "auth", "authorization", "bearer", "cookie", "cookies"),
        *("pass", "password", "passwords", "passwd", "passphrase", "pwd", "secret", "secrets"),
        *("credential", "credentials", "signature", "sig"),
    )
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_WORD = re.compile(r"[a-z0-9]+")
_COUNT = re.compile(r"\d{1,8}|null")
_NAME = re.compile(r"(?<![\w.-])[\w.-]+[\"']?\s*[=:]\s*")
_VALUE = re.compile(r"\"[^\"]*\"|'[^']*'|(?:bearer\s+)?[^\s,;}\]&\"']+", re.IGNORECASE)
_HEADER = re.compile(
    r"(?P<name>\b(?:set-)?cookie|authorization)(?P<sep>[\"']?\s*[=:]).+", re.IGNORECASE | re.DOTALL
)
_URL_USER = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY = re.compile(r"(?<=[?&])(?P<name>[^=&#\s]+)=(?P<value>[^&#\s\"']+)")
_LONG_QUERY = 24  # characters; no size or page of a request is as long as a signature
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:sk|rk|pk|glpat)-(?=[\w-]*\d)[\w-]{8,}"  # OpenAI, Stripe, GitLab
    r"|(?:gh[pousr]|hf)_(?=[A-Za-z0-9]*\d)[A-Za-z0-9]{8,}|(?:gh[pousr]|hf)_[A-Za-z0-9]{16,}"  # GitHub, HF
    r"|github_pat_\w{8,}|xox[a-z]-[\w-]{8,}"
    r"|A(?:KIA|SIA)[0-9A-Z]{12,}|AIza[\w-]{20,}"  # Amazon, Google
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # a JSON web token
    r")"
)


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
    secret_of = ""  # the option whose value comes next
    for option in options:
        name, sign, value = option.partition("=")
        if secret_of and _is_secret(secret_of, option):
            shown.append(_HIDDEN)
        elif name.startswith("-") and sign and _is_secret(name, value):
            shown.append(f"{name}={_HIDDEN}")
        else:
            shown.append(without_private(option))
        secret_of = option if option.startswith("-") and not sign and shown[-1] != _HIDDEN else ""
    return shown


def without_private(text: str) -> str:
    """Returns the text with secrets as *** (see `blotted`), the home folder as ~, the user's name as USER."""
    return _without_user(blotted(text))


def blotted(text: str) -> str:
    """Returns the text with every secret as ***.

    A secret is the value after a name such as api_key, token, cookie or password, what the query of an
    address is signed with, the user part of an address, what has the form of a known service's token, and
    the value of an environment variable with such a name.
    """
    text = _TOKEN.sub(_HIDDEN, _URL_USER.sub(f"{_HIDDEN}@", text))
    text = _QUERY.sub(_without_signature, text)
    text = _HEADER.sub(rf"\g<name>\g<sep> {_HIDDEN}", text)
    text = _without_pairs(text)
    for secret in _environment_secrets():
        text = text.replace(secret, _HIDDEN)
    return text


def secret_settings(config: Any, place: str = "") -> Iterator[str]:
    """Yields the place of every setting in a configuration whose name and value say that it is a secret."""
    if isinstance(config, list | tuple):
        for number, value in enumerate(config):
            yield from secret_settings(value, f"{place}[{number}]")
    for name, value in config.items() if isinstance(config, Mapping) else ():
        inner = f"{place}.{name}".lstrip(".")
        if isinstance(value, str) and value and value != _HIDDEN and _is_secret(str(name), value):
            yield inner
        else:
            yield from secret_settings(value, inner)


def without_secrets(config: Any, name: str = "") -> Any:
    """Returns a configuration with its secrets as ***; paths and all that makes it what it is stay."""
    if isinstance(config, Mapping):
        return {key: without_secrets(value, str(key)) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [without_secrets(value, name) for value in config]
    if not isinstance(config, str) or not config:
        return config
    return _HIDDEN if _is_secret(name, config) else _TOKEN.sub(_HIDDEN, _URL_USER.sub(f"{_HIDDEN}@", config))


def private(config: Any, name: str = "") -> Any:
    """Returns a configuration for another place than this machine: `without_secrets`, `without_private`."""
    if isinstance(config, Mapping):
        return {key: private(value, str(key)) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [private(value, name) for value in config]
    return without_private(without_secrets(config, name)) if isinstance(config, str) else config


def _without_pairs(text: str) -> str:
    """Returns the text with the value behind each secret name hidden, in one pass."""
    parts, place = [], 0
    while name := _NAME.search(text, place):
        parts.append(text[place : name.end()])
        place, word = name.end(), name[0].rstrip(" \t=:\"'")
        # By the name first: a value may reach to the end of the text, behind each of many names.
        value = _VALUE.match(text, place) if _is_secret(word, "") else None
        if value and _is_secret(word, value[0]):
            parts.append(_HIDDEN)
            place = value.end()
    return "".join([*parts, text[place:]])


def _without_signature(query: re.Match[str]) -> str:
    hidden = _is_secret(query["name"], query["value"]) or len(query["value"]) >= _LONG_QUERY
    return f"{query['name']}={_HIDDEN if hidden else query['value']}"


def _is_secret(name: str, value: str) -> bool:
    """Returns whether a value is secret by its name, whose last word decides.

    api_key, accessKeyId and HF_TOKEN are secret; tokenizer, monkey and path are not, nor is a number of
    tokens. `-p` is a password to most programs and no option of genlab.
    """
    if name == "-p":
        return True
    words = _WORD.findall(_CAMEL.sub("_", name).lower())
    if len(words) > 1 and words[-1] == "id" and words[-2].endswith("key"):
        return True
    if not words or words[-1] not in _SECRET_WORDS:
        return False
    return not (words[-1] in ("tokens", "keys") and _COUNT.fullmatch(value.strip("\"'")))


def _environment_secrets() -> list[str]:
    # Short values ("1", "true") are switches and would blot out ordinary text; PWD is where the shell is.
    return [
        value
        for name, value in os.environ.items()
        if len(value) >= 8 and name not in ("PWD", "OLDPWD") and _is_secret(name, value)
    ]


def _without_user(text: str) -> str:
    home = os.path.expanduser("~").rstrip("/")
    if home:
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    return re.sub(rf"(?<=[/\\]){re.escape(_user())}(?=[/\\]|$)", "USER", text)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a number without a name, as in containers
        return str(getattr(os, "getuid", lambda: "USER")())


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
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
