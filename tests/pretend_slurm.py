"""A SLURM of one machine: `sbatch`, `srun`, `scontrol`, `sacct` and `scancel` that really run the script.

`pretend_slurm.py COMMAND ARGUMENTS...`; all that it knows lies in the folder $PRETEND_SLURM.
"""

import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

COMMANDS = ("sbatch", "srun", "scontrol", "sacct", "scancel")
STATE = Path(os.environ.get("PRETEND_SLURM", "."))


def install(folder):
    """Puts the commands into <folder>/bin; returns it, and the folder of what they know."""
    (folder / "bin").mkdir()
    (folder / "known").mkdir()
    for name in COMMANDS:
        file = folder / "bin" / name
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        file.chmod(0o755)
    return folder / "bin", folder / "known"


def sbatch(script):
    number = 1000 * (1 + len(list(STATE.glob("*.job"))))
    (STATE / f"{number}.job").write_text(script)
    log = (STATE / f"{number}.control").open("ab")
    control = [sys.executable, __file__, "control", script, str(number)]
    subprocess.Popen(control, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    print(f"Submitted batch job {number}")


def control(script, number):
    """Runs the array's tasks, as many at a time as it allows, and those again that are requeued."""
    array = re.search(r"^#SBATCH --array=0-(\d+)%(\d+)$", Path(script).read_text(), re.MULTILINE)
    last, limit = map(int, array.groups()) if array else (0, 1)
    with ThreadPoolExecutor(limit) as pool:
        for _ in pool.map(lambda k: run(script, number, k if array else None), range(last + 1)):
            pass


RUNNING, LOCK = [], threading.Lock()


def run(script, number, index):
    name = number if index is None else f"{number}_{index}"
    with LOCK:
        RUNNING.append(name)
        with (STATE / "at_a_time").open("a") as file:
            file.write(f"{len(RUNNING)}\n")
    environment = {**os.environ, "SLURM_JOB_ID": str(int(number) + (index or 0)), "SLURM_NTASKS": "1"}
    environment |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_PROCID": "0", "SLURM_CPUS_PER_TASK": "1"}
    if index is not None:
        environment |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": str(index)}
    restarts = 0
    while True:
        environment["SLURM_RESTART_COUNT"] = str(restarts)
        batch = subprocess.Popen(["bash", script], env=environment, start_new_session=True)
        (STATE / f"{name}.pid").write_text(str(batch.pid))
        code = batch.wait()
        requeued = STATE / f"{name}.requeue"
        if not requeued.exists():
            break
        requeued.unlink()
        restarts += 1
    (STATE / f"{name}.ended").write_text("COMPLETED" if code == 0 else "FAILED")
    with LOCK:
        RUNNING.remove(name)


def srun(*arguments):
    arguments, files = list(arguments), {}
    while arguments[0].startswith("--"):
        option = arguments.pop(0)
        if option in ("--output", "--error"):
            files[option] = formatted(arguments.pop(0))
    with open(files["--output"], "ab") as out, open(files["--error"], "ab") as error:
        sys.exit(subprocess.run(arguments, stdout=out, stderr=error).returncode)


def formatted(path):
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ["SLURM_JOB_ID"]
    for sign, value in (("%A", job), ("%j", job), ("%a", os.environ.get("SLURM_ARRAY_TASK_ID")), ("%t", "0")):
        path = path.replace(sign, value or "")
    return path


def scontrol(verb, name):
    assert verb == "requeue"
    (STATE / f"{name}.requeue").touch()


def sacct(*arguments):
    print("JobID|State|NodeList")
    for file in STATE.glob("*.pid"):
        ended = file.with_suffix(".ended")
        print(f"{file.stem}|{ended.read_text() if ended.exists() else 'RUNNING'}|here")


def scancel(name):
    (STATE / f"{name}.cancelled").touch()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
