"""Every experiment trains and tests for one batch, with its own networks and losses, on generated images."""

from pathlib import Path

import pytest
import yaml

from genlab.cli.model import import_room

SLOW = {
    *("gru_multi30k", "attention_multi30k", "transformer_multi30k", "gpt_numbers"),
    *("vae_celeba", "ddpm_celeba", "glow_celeba", "dcgan_celeba", "flow_matching_cifar10", "vpsde_cifar10"),
    *("realnvp_mnist", "ddpm_mnist", "gan_mnist", "cvae_mnist", "augvae_mnist"),
    *("realnvp_cifar10", "glow_cifar10", "dcgan_cifar10", "classifier_cifar10"),
    *("cyclegan_vangogh2photo", "cyclegan_monet2photo", "cut_monet2photo", "srresnet_t91"),
    *("edm_cifar10", "vesde_cifar10", "ddpm_cifar10", "spline_checkerboard"),
    *("ncsn_mnist", "colourise_celeba", "dalle_shapes", "ldm_shapes", "vqprior_digits", "pix2pix_facades"),
    *("autoencoder_mnist", "classifier_mnist", "glow_mnist", "vqvae_cifar10", "cvae_digits", "vpsde_digits"),
    *("crealnvp_digits", "ddpm_gaussian2d", "gpt_large_shakespeare", "vqprior_cifar10", "ldm_celeba"),
    *("kl_autoencoder_flickr8k", "ldm_flickr8k", "rowlstm_mnist", "pixelcnn_mnist"),
}
"""Experiments whose classes others have, too."""

EXPERIMENTS = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])
    for path in sorted((Path(__file__).parents[1] / "experiments").glob("*.yaml"))
]


def data_spec(section):
    """The spec that an experiment's data declares, without the data being there."""
    import_room("data")
    from genlab.data.base import DataModule
    from genlab.data.degraded import Degradation

    known = {cls.__name__: cls for cls in [*subclasses(DataModule), *subclasses(Degradation)]}
    return built(section, known).spec


def built(section, known):
    """The object of a section, whose arguments may be such sections."""
    if not isinstance(section, dict) or "class_path" not in section:
        return section
    arguments = {name: built(value, known) for name, value in section.get("init_args", {}).items()}
    return known[section["class_path"].rsplit(".", 1)[-1]](**arguments)


STAND_INS = {"TextFile": "NumberText", "SentencePairs": "NumberNames"}
"""Text made for the text of a file: the same windows of the same kind of tokens, of other words."""


def made_text(section):
    """The data of an experiment on text as text that is made, in the same form."""
    name = section["class_path"].rsplit(".", 1)[-1]
    kept = ("context", "streams", "tokenizer", "vocabulary_size", "length", "reverse")
    arguments = {key: value for key, value in section.get("init_args", {}).items() if key in kept}
    arguments |= {"numbers": 400, "batch_size": 2, "eval_batch_size": 400}
    return {"class_path": STAND_INS.get(name, name), "init_args": arguments}


def subclasses(base):
    return [base, *(found for cls in base.__subclasses__() for found in subclasses(cls))]


def small_version(path, folder, tiny_extractor):
    """The experiment's file with generated images of its shape, two at a time."""
    config = yaml.safe_load(path.read_text())
    if config["data"]["class_path"].rsplit(".", 1)[-1] in {*STAND_INS, *STAND_INS.values()}:
        config["data"] = made_text(config["data"])
    elif config["data"]["class_path"] in ("Scenes", "CaptionedImages"):
        # Made as well, with captions that their judge can read.
        few = {"num_train": 16, "num_test": 8, "num_zero_shot": 4, "val_fraction": 0.5, "batch_size": 2}
        config["data"] = {"class_path": "Scenes", "init_args": few}
        config.setdefault("evaluate", {})["extractor"] = str(tiny_extractor(3))
    elif (spec := data_spec(config["data"])).kind == "point":
        config["data"].setdefault("init_args", {}).update(num_train=8, num_test=8, batch_size=2)
    else:
        arguments = {**spec.to_dict(), "num_train": 8, "num_test": 8, "batch_size": 2}
        if config["model"]["class_path"] == "AutoregressiveImages":  # drawn pixel by pixel
            arguments["shape"] = [spec.shape[0], 8, 8]
        config["data"] = {"class_path": "RandomData", "init_args": arguments}
        if spec.kind == "image":
            config.setdefault("evaluate", {})["extractor"] = str(tiny_extractor(spec.shape[0]))
    config.setdefault("evaluate", {}).update(num_samples=4, num_test_samples=4)
    target = folder / path.name
    target.write_text(yaml.safe_dump(shortened(config)))
    return target


MOST = {
    **dict.fromkeys(("base_channels", "hidden_channels", "num_features", "code_dim", "num_codes"), 8),
    **dict.fromkeys(("num_layers", "num_couplings", "num_components", "num_draws", "num_heads"), 2),
    "num_blocks": 1,
    "width": 16,
    "hidden": 16,
    "channels": 8,
    "num_groups": 4,
    "latent_dim": 8,
    "head_dim": 8,
}
"""The largest sizes of networks: what is tested are their kinds and connections."""


def small_size(name, value):
    if name not in MOST or isinstance(value, str | dict | None):
        return value
    return [min(part, MOST[name]) for part in value] if isinstance(value, list) else min(value, MOST[name])


def shortened(config):
    """The same with small networks, a walk of two steps from noise to data, and bounds of few samples."""
    if isinstance(config, list):
        return [shortened(part) for part in config]
    if not isinstance(config, dict):
        return config
    config = {name: small_size(name, shortened(part)) for name, part in config.items()}
    kind = config.get("class_path")
    arguments = config.setdefault("init_args", {}) if kind else {}
    arguments.pop("compile", None)  # minutes on a processor
    if kind == "UNet":
        arguments |= {"num_blocks": 1, "num_groups": 4}
    if str(kind).endswith("Grid") or kind in ("ProbabilityFlow", "AnnealedLangevin", "Glow"):
        arguments["num_steps"] = 2
    if kind == "VAE":
        arguments["bound"] = {**arguments.get("bound", {}), "num_test_samples": 2}
    if kind == "Diffusion":
        bound = {"class_path": "VariationalBound"}
        arguments.setdefault("likelihood", bound).setdefault("init_args", {})
        if arguments["likelihood"]["class_path"] == "VariationalBound":
            arguments["likelihood"]["init_args"]["grid"] = {
                "class_path": "UniformGrid", "init_args": {"num_steps": 2}
            }  # fmt: skip
    return config


def first_stage_of(path):
    """The experiment that an experiment of two stages stands on."""
    return (yaml.safe_load(path.read_text())["model"].get("init_args") or {}).get("first_stage")


ONE_STEP = (
    *("--budget.examples", "2", "--budget.evaluate_every", "null", "--trainer.accelerator", "cpu"),
    *("--samples.num", "0", "--evaluate.at_start", "false", "--trainer.callbacks", "[]"),
)
"""What a first stage has to learn for there to be one."""


@pytest.mark.parametrize("path", EXPERIMENTS)
def test_experiment_trains_and_tests_for_one_batch(path, tmp_path, tiny_extractor, genlab_command):
    config = small_version(path, tmp_path, tiny_extractor)
    if (stage := first_stage_of(path)) is not None:
        before = small_version(path.with_name(f"{stage}.yaml"), tmp_path, tiny_extractor)
        code, _, error = genlab_command("fit", "--config", before, *ONE_STEP)
        assert code == 0, error
    trial = ("--config", config, "--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu")
    code, _, error = genlab_command("fit", *trial)
    assert code == 0, error
    assert "100%" in error
    code, out, error = genlab_command("test", *trial)
    assert code == 0, error
    assert "mean over the split" in out or "test items" in out
