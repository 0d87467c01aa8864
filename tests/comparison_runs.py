"""Run folders made by hand, with the records that training and `genlab test` leave and tiny pictures."""

import copy
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from genlab.runs.settings import facts_of

PROTOCOL = {
    "extractor": "digits",
    "extractor_digest": "a5471728c0ffee00",
    "resize": "none",
    "split": "test",
    "num_real": 797,
    "num_fake": 797,
    "seed": 0,
    "weights": "raw",
    "data": "digits",
    "data_fingerprint": "0e072b84e21ec72e",
    "levels": 17,
    "metrics": {"FrechetDistance": {"ddof": 1}, "PrecisionRecall": {"k": 3}},
}

LIKELIHOOD = {
    "kind": "exact",
    "shape": [1, 8, 8],
    "levels": 17,
    "split": "test",
    "num_real": 797,
    "data": "digits",
    "data_fingerprint": "0e072b84e21ec72e",
    "estimator": "",
}

CONFIG = """# genlab 0.1.0
seed_everything: {seed}
model:
  class_path: {family}
  init_args: {{latent_dim: 64, ema_decay: {decay}}}
budget:
  examples: null
  seconds: 90.0
  evaluate_every: 32000
"""


def record(experiment="dcgan_digits", family="GAN", seed=0, fid=1.2, **changes):
    """A run.json; `changes` replace fields by their paths, such as `test.protocol.split`."""
    made = {
        "status": "finished",
        "experiment": experiment,
        "run": f"20260101-00000{seed}",
        "created": f"2026-01-01T00:00:0{seed % 10}+00:00",
        "genlab": "0.1.0",
        "family": family,
        "spec": {"name": "digits", "shape": [1, 8, 8], "num_classes": 10, "levels": 17},
        "data": {
            "name": "digits",
            "shape": [1, 8, 8],
            "levels": 17,
            "num_classes": 10,
            "splits": {"train": "train", "val": "test", "test": "test"},
            "counts": {"train": 1000, "val": 797, "test": 797},
            "fingerprints": {"train": "5d67a56aa32ed1ef", "val": "0e072b84", "test": "0e072b84e21ec72e"},
            "preprocessing": {},
        },
        "device": "cpu",
        "num_devices": 1,
        "precision": "32-true",
        "threads": 1,
        "parameters": 83489,
        "uses_labels": False,
        "seed": seed,
        "examples_seen": 320000,
        "training_seconds": 90.0,
        "validation": {"val/fid@797": fid},
        "health": {
            "ok": True,
            "flags": [],
            "trend": [{"examples_seen": 320000, "recall": 0.9, "duplicates": 0.01}],
        },
        "bench": {
            "name": "digits",
            "budget": {"seconds": 90.0, "examples": None},
            "seed": seed,
            "tuning_trials": 3,
        },
        "test": entry(fid),
    }
    return changed(made, changes)


def entry(fid=1.2, **changes):
    """What `genlab test` leaves."""
    made = {
        "values": {
            "fid@797": fid,
            "fid_std@797": 0.05,
            "kid@797": fid / 50,
            "precision@797": 0.9,
            "recall@797": 0.8,
        },
        "protocol": copy.deepcopy(PROTOCOL),
        "checkpoint": "last.ckpt",
        "checkpoint_digest": "0123456789abcdef",
        "genlab": "0.1.0",
        "speed": {
            "ms_per_sample": 3.0,
            "samples_per_second_64": 9000.0,
            "nfe": 1,
            "peak_memory_mib": 800.0,
            "device": "cpu",
            "threads": 1,
        },
        "floor": {"fid@797": 0.1, "kid@797": 0.001, "precision@797": 0.97, "recall@797": 0.96},
    }
    return changed(made, changes)


def changed(made, changes):
    """Sets the fields named by paths such as `test.protocol.split`; `__` stands for `.` in keywords."""
    for path, value in changes.items():
        *places, last = path.replace("__", ".").split(".")
        inside = made
        for place in places:
            inside = inside.setdefault(place, {})
        inside[last] = value
    return made


def write_run(root, made, curve=None, pictures=True, config=True, score="fid@797"):
    """Writes a run folder for a record.

    Args:
        root: Folder of all runs.
        made: The record.
        curve: Scores of the evaluations; FIDs that fall to the test's if None.
        pictures: Whether to draw samples and the pictures that entries name.
        config: Whether to write a config.yaml.
        score: Name of what the curve is of.
    """
    folder = Path(root) / made["experiment"].replace("/", "-") / made["run"]
    folder.mkdir(parents=True)
    text = CONFIG.format(seed=made["seed"], family=made["family"], decay=0.995)
    (folder / "run.json").write_text(json.dumps({**facts_of(text), **made}))
    (folder / "environment.json").write_text(json.dumps(environment(made)))
    if config:
        (folder / "config.yaml").write_text(text)
    write_metrics(folder, falling(2.0) if curve is None else curve, score)
    if pictures:
        draw_pictures(folder, made)
    return folder


def environment(made):
    return {
        "python": "3.11.7",
        "platform": "Linux",
        "cpu": "a processor",
        "cores": 2,
        "packages": {"genlab": "0.1.0", "torch": "2.15.0", "wandb": None},
        "git": {"commit": "d455644993ac4781313c21d03476acee8d021bc7", "dirty": False},
        "command": ["genlab", "fit", "--config", f"experiments/{made['experiment']}.yaml"],
    }


def falling(last, num=10):
    """FIDs that fall from that of noise to the last one."""
    return [last + 80.0 * math.exp(-0.9 * n) * (n < num - 1) for n in range(num)]


def write_metrics(folder, curve, score="fid@797"):
    lines = []
    for n, value in enumerate(curve):
        place = {"examples_seen": 32000 * n, "step": 500 * n, "seconds": 9.0 * n}
        lines.append({**place, "train/loss": 1.0 / (n + 1)})
        lines.append({**place, f"val/{score}": value, "val/recall@797": 0.8})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def draw_pictures(folder, made, seed=None):
    rng = np.random.default_rng(made["seed"] if seed is None else seed)
    (folder / "samples").mkdir(exist_ok=True)
    for n, examples_seen in enumerate((0, 160000, 320000)):
        draw(folder / "samples" / f"samples_{examples_seen:010d}.png", rng, n / 2)
    for tested in (made["test"], *made.get("variants", {}).values()):
        for path in tested.get("pictures", {}).values():
            draw(folder / path, rng, 1.0)


def draw(path, rng, sharpness, side=66):
    """A grey picture: noise that becomes a ring."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    ring = np.exp(-40 * (np.hypot(x, y) - rng.uniform(0.4, 0.8)) ** 2)
    pixels = sharpness * ring + (1 - sharpness) * rng.random((side, side))
    Image.fromarray((255 * pixels).round().astype(np.uint8)).save(path)


TEXT = {"name": "plays", "shape": [64], "num_classes": 0, "levels": 65}
PAIRS = {"name": "edges", "shape": [3, 32, 32], "levels": 256, "source": {"name": "x", "shape": [1, 32, 32]}}


def scored(experiment, family, seed, values, spec=TEXT, protocol=None, **changes):
    """A run.json of a model that has no FID, of other data than the digits."""
    test = {"values": values, "protocol": protocol or {"likelihood": {"kind": "exact", "split": "test"}}}
    data = {"name": spec["name"], "counts": {"train": 5000, "test": 400}}
    data["fingerprints"] = {"train": f"{spec['name']} train", "test": f"{spec['name']} test"}
    return record(experiment, family, seed, **{"test": test, "spec": spec, "data": data, **changes})


PICTURES = ("samples", "interpolation", "reconstruction", "neighbours", "failures")


def pictures(folder="test"):
    return {name: f"{folder}/{name}.png" for name in PICTURES}


def copies(share=0.02):
    edges = [round(0.1 * n, 1) for n in range(21)]
    bell = [round(1000 * math.exp(-((edge - 1.0) ** 2) / 0.08)) for edge in edges[:-1]]
    return {
        "share": share,
        "threshold": "5 % quantile of test-to-train",
        "median_ratio": 0.98,
        "num": 797,
        "num_train": 1000,
        "space": "digits a5471728",
        "histogram": {"edges": edges, "samples": [*bell[2:], 0, 0], "test": bell},
    }


def write_bench(root, seeds=3):
    """A small bench: families, variants, labels, a diverged seed, a collapsed one, a run set apart."""
    rng = np.random.default_rng(0)
    plans = [
        ("gan_digits", "GAN", 5.5, {"parameters": 250_000}, {}),
        ("dcgan_digits", "GAN", 1.2, {}, {"latent": {"type": "normal prior", "dim": 64, "path_length": 1.7}}),
        ("vae_digits", "VAE", 1.5, {"parameters": 410_000}, {"bits": 1.93, "kind": "<=", "mse": 0.021}),
        ("cvae_digits", "VAE", 1.1, {"uses_labels": True}, {"bits": 1.88, "kind": "<=", "mse": 0.022}),
        ("realnvp_digits", "Flow", 1.6, {"parameters": 900_000}, {"bits": 2.05, "kind": "exact"}),
        ("ddpm_digits", "Diffusion", 0.42, {"parameters": 701_345}, {"ms": 240.0, "nfe": 250}),
    ]
    for experiment, family, fid, fields, more in plans:
        for seed in range(seeds):
            value = round(fid * math.exp(0.08 * rng.normal()), 4)
            made = record(experiment, family, seed, value, **fields)
            test = made["test"]
            test["pictures"], test["copies"] = pictures(), copies(0.03 * fid)
            test["speed"] |= {"ms_per_sample": more.get("ms", 2.0 + fid), "nfe": more.get("nfe", 1)}
            if "bits" in more:
                test["values"] |= {"bits_per_dim": more["bits"] + 0.01 * seed, "nll": 85.0 + seed}
                test["protocol"]["likelihood"] = {**LIKELIHOOD, "kind": more["kind"]}
            if "mse" in more:
                test["values"]["reconstruction_mse"] = more["mse"]
                test["latent"] = {"type": "normal prior", "dim": 16, "linear_probe": 0.93, "active_units": 12,
                                  "disentanglement": {"mig": 0.2}}  # fmt: skip
            test.update({"latent": more["latent"]} if "latent" in more else {})
            if family == "Diffusion":
                made["variants"] = {
                    f"ddim-{steps}": entry(
                        value * factor, **{"speed.ms_per_sample": float(steps), "speed.nfe": steps}
                    )
                    for steps, factor in ((5, 4.0), (10, 1.6), (50, 1.05))
                }
            curve = falling(value)
            if experiment == "gan_digits" and seed == 1:
                curve[-1] = 40.0
            if experiment == "gan_digits" and seed == 2:
                made |= {"status": "diverged", "test": {}, "error": "The generator loss is not finite."}
            write_run(root, made, curve)
    write_run(root, record("glow_digits", "Flow", 0, 1.9, **{"test.protocol.split": "val"}))
    write_run(root, record("nice_digits", "Flow", 0, 2.0, test={}))
    broken = Path(root) / "vae_digits" / "20260101-000009"
    broken.mkdir()
    (broken / "run.json").write_text('{"status": "fin')
    return Path(root)
