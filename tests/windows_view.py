"""`python windows_view.py COMMAND...`: a genlab command with what Python has on Windows, played elsewhere.

`--import COMMAND...` imports all of genlab before.

Modules of genlab, and they alone, see the standard library without what only POSIX has: a use of it fails as
it would there. Paths stay those of this system, so that files can be read and written.
"""

import builtins
import importlib
import multiprocessing
import os
import pkgutil
import signal
import sys
import types

MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
LACKING = {
    "os": {
        *("O_CLOEXEC", "O_DIRECTORY", "O_DSYNC", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC", "WNOHANG"),
        *("chown", "chroot", "confstr", "ctermid", "eventfd", "fchown", "fdatasync", "fork", "forkpty"),
        *("getegid", "geteuid", "getgid", "getgroups", "getloadavg", "getpgid", "getpgrp", "getpriority"),
        *("getresuid", "getsid", "getuid", "killpg", "lchown", "lockf", "memfd_create", "mkfifo", "mknod"),
        *("nice", "openpty", "pathconf", "pipe2", "posix_fadvise", "posix_fallocate", "posix_spawn", "pread"),
        *("preadv", "pwrite", "pwritev", "readv", "register_at_fork", "sched_getaffinity", "sched_yield"),
        *("sendfile", "setgid", "setpgid", "setpriority", "setsid", "setuid", "statvfs", "sync", "sysconf"),
        *("tcgetpgrp", "ttyname", "uname", "wait", "wait3", "wait4", "writev"),
    },
    "signal": {
        *("ITIMER_REAL", "SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGIO", "SIGKILL", "SIGPIPE", "SIGPROF"),
        *("SIGQUIT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGUSR2", "SIGWINCH", "alarm"),
        *("getitimer", "pause", "pthread_kill", "pthread_sigmask", "setitimer", "sigpending", "sigwait"),
    },
}
REAL = {"os": os, "signal": signal}


class View(types.ModuleType):
    """A module without some of its names."""

    def __getattr__(self, name):
        if name in LACKING[self.__name__]:
            raise AttributeError(f"Windows has no {self.__name__}.{name}")
        return "nt" if (self.__name__, name) == ("os", "name") else getattr(REAL[self.__name__], name)


VIEWS = {name: View(name) for name in LACKING}
_import = builtins.__import__


def seen(name, globals=None, locals=None, fromlist=(), level=0):
    """Imports as before; into modules of genlab, what Windows has."""
    if not (globals or {}).get("__name__", "").startswith("genlab") or level:
        return _import(name, globals, locals, fromlist, level)
    if name in MODULES:
        raise ModuleNotFoundError(f"Windows has no {name}", name=name)
    return VIEWS[name] if name in VIEWS else _import(name, globals, locals, fromlist, level)


def import_all():
    import genlab

    for module in pkgutil.walk_packages(genlab.__path__, "genlab."):
        if module.name != "genlab.__main__":
            importlib.import_module(module.name)


if __name__ in ("__main__", "__mp_main__"):  # the second one is a process that another one has spawned
    builtins.__import__ = seen

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")  # as on Windows and macOS
    if sys.argv[1] == "--import":
        del sys.argv[1]
        import_all()
    from genlab.cli.main import main

    raise SystemExit(main())
