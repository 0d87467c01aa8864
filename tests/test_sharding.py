"""Weights spread over devices learn what whole ones learn, and their checkpoints are those of any run."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import two_processes
from pytorch_lightning.strategies import ModelParallelStrategy
from test_resume import differences
from test_several_processes import fit_arguments, in_processes
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from genlab.callbacks.divergence import not_finite
from genlab.callbacks.sharding import NAME, Sharded
from genlab.cli.main import main
from genlab.cli.settings import choose_strategy
from genlab.families.sharding import gather, local, scatter, shard, spread_as, whole
from genlab.families.weights import Average, Snapshot
from genlab.networks.dit import DiT
from genlab.networks.transformer import CausalTransformer
from genlab.networks.unet import UNet
from genlab.shapes import DataSpec

IMAGES, TEXT = DataSpec("images", (1, 8, 8), num_classes=3), DataSpec("text", (6,), levels=11)
NETWORKS = {
    "unet": (lambda: UNet(IMAGES, [8, 16], num_blocks=1, attention=[4], num_groups=4), 6),
    "dit": (lambda: DiT(IMAGES, patch_size=2, width=16, depth=3, num_heads=2), 3),
    "transformer": (lambda: CausalTransformer(TEXT, num_layers=3, num_heads=2, width=16), 3),
}


def called(name, network):
    torch.manual_seed(1)
    if name == "transformer":
        return network(torch.arange(12).reshape(2, 6) % 11)
    return network(torch.randn(4, 1, 8, 8), torch.rand(4), label=torch.arange(4))


@pytest.fixture
def mesh(tmp_path):
    """A mesh of this one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("name", NETWORKS)
def test_each_block_is_a_part_and_a_spread_network_makes_what_it_made(name, mesh):
    make, num_blocks = NETWORKS[name]
    network = make().to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    before, state = called(name, network), {n: p.clone() for n, p in network.state_dict().items()}
    shard(network, mesh)
    shard(network, mesh)  # once is enough
    parts = [part for part in network.modules() if isinstance(part, FSDPModule)]
    assert len(parts) >= num_blocks + 1 and all(isinstance(p, DTensor) for p in network.parameters())
    gather(network)
    assert not any(isinstance(p, DTensor) for p in network.parameters())
    assert torch.allclose(called(name, network), before, atol=1e-6)
    assert not any(isinstance(p, DTensor) for p in network.parameters())  # also after it was called
    scatter(network)
    assert all(isinstance(p, DTensor) for p in network.parameters())
    after = called(name, network)
    assert torch.allclose(after, before, atol=1e-6)
    assert all(torch.equal(whole(p), state[n]) for n, p in network.state_dict().items())
    after.square().mean().backward()
    assert all(isinstance(p.grad, DTensor) for p in network.parameters() if p.grad is not None)


def test_averages_and_copies_of_a_spread_network_are_those_of_a_whole_one(mesh):
    torch.manual_seed(0)
    network = NETWORKS["dit"][0]()
    average, snapshot = Average(network, 100.0), Snapshot(network, 0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    average.update(network, 0)
    twins = torch.nn.ModuleList([network, average, snapshot])
    expected = {}
    for is_spread in (False, True):
        if is_spread:
            for part in (network, average.module, snapshot.module):
                shard(part, mesh)
        else:
            kept = {name: value.clone() for name, value in twins.state_dict().items()}
        with torch.no_grad():
            for parameter in network.parameters():
                local(parameter).mul_(1.5)
        average.update(network, 10)
        snapshot.offer(network, 1)
        found = {name: whole(value).clone() for name, value in twins.state_dict().items()}
        if not is_spread:
            expected = found
            twins.load_state_dict(kept)
            snapshot.is_taken = False
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(found["1.module.output.weight"], found["0.output.weight"])


def test_a_gradient_that_is_spread_and_made_whole_again_is_the_same(mesh):
    network = NETWORKS["dit"][0]()
    shard(network, mesh)
    parameter = network.output.weight
    gradient = torch.randn(parameter.shape)
    assert isinstance(spread_as(parameter, gradient), DTensor)
    assert torch.equal(whole(spread_as(parameter, gradient)), gradient)
    plain = torch.nn.Parameter(gradient)
    assert spread_as(plain, gradient) is gradient and local(plain) is plain and whole(plain) is plain


def test_a_broken_weight_of_a_spread_network_is_named(mesh):
    network = NETWORKS["dit"][0]()
    shard(network, mesh)
    network.sharded = [network]
    assert not_finite(network) == ""
    local(network.output.weight.detach())[-1, -1] = torch.nan
    assert not_finite(network) == "output.weight"


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("gan.GAN", "The weights of a GAN cannot be spread over devices yet: use --trainer.strategy ddp"),
        ("vae.VAE", "The weights of a VAE cannot be spread"),
        ("diffusion.Diffusion", None),
        ("autoregressive.Autoregressive", None),
    ],
)
def test_a_family_that_cannot_be_spread_is_refused_before_training(family, message):
    trainer = {"strategy": NAME, "devices": 2, "num_nodes": 1, "accelerator": "cpu"}
    values = {"trainer": trainer, "model": {"class_path": f"genlab.families.{family}"}}
    if message is None:
        choose_strategy(values)
        assert trainer["strategy"] == NAME
    else:
        with pytest.raises(ValueError, match=message):
            choose_strategy(values)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"can_shard": False}, "cannot be spread over devices yet"),
        ({"is_compiled": True}, "leave compile out"),
        ({"matrix_optimizer_factory": object}, "needs whole matrices"),
        ({"renews_optimizers": True}, "change nothing of it"),
        ({"tensor": 2}, "tensor_parallel_size 1"),
        ({"in_one_file": False}, "save_distributed_checkpoint false"),
        ({}, None),
    ],
)
def test_what_does_not_go_with_spread_weights_is_refused_in_one_line(setting, message):
    from genlab.families.base import Model

    model = SimpleNamespace(
        can_shard=True, is_compiled=False, renews_optimizers=False, matrix_optimizer_factory=None
    )
    vars(model).update({name: value for name, value in setting.items() if hasattr(model, name)})
    mesh = {"tensor_parallel": SimpleNamespace(size=lambda: setting.get("tensor", 1))}
    strategy = Sharded()
    strategy._device_mesh = mesh
    strategy._save_distributed_checkpoint = not setting.get("in_one_file", True)
    if message is None:
        Model._require_shardable(model, strategy)
    else:
        with pytest.raises(ValueError, match=message) as error:
            Model._require_shardable(model, strategy)
        assert "\n" not in str(error.value)


def test_a_fused_optimiser_that_cannot_step_spread_weights_is_refused(monkeypatch):
    strategy, weight = Sharded(), torch.nn.Parameter(torch.ones(2))
    for optimizer, is_refused in ((torch.optim.SGD, True), (torch.optim.AdamW, False)):
        made = optimizer([weight], lr=0.1, fused=True)
        monkeypatch.setattr(ModelParallelStrategy, "setup_optimizers", lambda self, _: None)
        strategy._optimizers = [made]
        if is_refused:
            with pytest.raises(ValueError, match=r"A fused SGD .* --model\.optimizer\.fused false"):
                strategy.setup_optimizers(None)
        else:
            strategy.setup_optimizers(None)


# --- two processes ------------------------------------------------------------------------------------------

SGD = (
    "--model.optimizer",
    json.dumps({"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "fused": False}}),
)
ADAM = ("--model.optimizer", json.dumps({"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}))
DENOISER = (
    *("--variants", "{}", "--model.sampler.init_args.grid.init_args.num_steps", "2"),
    *("--model.half_life", "200", "--model.guidance.guide_after", "200", "--model.guidance.scale", "2.0"),
)
U_NET = {"class_path": "UNet", "init_args": {"channels": [8], "num_groups": 4, "attention": [8]}}
D_I_T = {"class_path": "DiT", "init_args": {"patch_size": 2, "width": 16, "depth": 2, "num_heads": 2}}
GPT = {"class_path": "CausalTransformer", "init_args": {"num_layers": 2, "num_heads": 2, "width": 16}}
FAMILIES = {
    "unet": ("ddpm_digits", *SGD, *DENOISER, "--model.network", json.dumps(U_NET)),
    "dit": ("ddpm_digits", *ADAM, *DENOISER, "--model.network", json.dumps(D_I_T)),
    "transformer": (
        *("gpt_numbers", *SGD, "--model.matrix_optimizer", "null", "--model.network", json.dumps(GPT)),
        *("--model.half_life", "2000", "--data.context", "16", "--trainer.gradient_clip_val", "0.1"),
    ),
}
RESUMED = ("unet", "dit")
"""Without a state of the optimiser, and with one."""

SPREAD = ("--trainer.strategy", NAME, "--trainer.devices", "2")


def options_of(name, extractor, batch_size, budget):
    experiment, *options = FAMILIES[name]
    unit = 16 if experiment == "gpt_numbers" else 1  # tokens
    sizes = ("--data.batch_size", str(batch_size), "--budget.examples", str(budget * unit))
    more = ("--budget.evaluate_every", str(192 * unit), "--trainer.accumulate_grad_batches", "2")
    more = (*more, "--evaluate.num_samples", "8", "--samples.num", "1")
    return [*fit_arguments(experiment, extractor, *options, *sizes, *more, "--experiment", name)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_extractor):
    """Each network in one process; in two, its weights spread; stopped there in a step, and gone on."""
    folder, extractor, commands = tmp_path_factory.mktemp("sharding"), tiny_extractor(1), []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GENLAB_RUN", "GENLAB_ALLOW", "PL_GLOBAL_SEED"):
            patch.setenv(name, "")
        patch.setenv("GENLAB_CACHE", str(folder / "cache"))
        for name in FAMILIES:
            for kind in ("one", "two", "parts"):
                (folder / kind).mkdir(exist_ok=True)
            patch.setenv("GENLAB_OUTPUTS", str(folder / "one"))
            patch.setenv("GENLAB_TEST_FOLDER", str(folder / "one"))
            assert main(options_of(name, extractor, 32, 384)) == 0
            spread = [*options_of(name, extractor, 16, 384), *SPREAD]
            commands.append((spread, str(folder / "two"), f"{name}/run"))
            if name in RESUMED:
                part = [*options_of(name, extractor, 16, 352), *SPREAD]
                commands.append((part, str(folder / "parts"), f"{name}/run"))
                more = ["resume", str(folder / "parts" / name / "run"), "--allow", "rank_weights"]
                commands.append(([*more, "--budget.examples", "384"], str(folder / "parts"), f"{name}/run"))
        in_processes([two_processes.__file__, json.dumps(commands)])
    return folder


def checkpoint_of(trained, kind, name):
    return torch.load(trained / kind / name / "run/checkpoints/last.ckpt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_spread_weights_learn_what_whole_ones_learn_with_their_averages_and_scores(name, trained):
    one, two = (checkpoint_of(trained, kind, name) for kind in ("one", "two"))
    a, b = one["state_dict"], two["state_dict"]
    assert a.keys() == b.keys() and any(key.endswith("_extra_state") for key in a)
    assert all(torch.equal(a[key], b[key]) for key in a if key.endswith("_extra_state"))
    assert max(float((a[key].float() - b[key].float()).abs().max()) for key in a) < 1e-5
    assert one["examples_seen"] == two["examples_seen"] and one["global_step"] == two["global_step"]
    rows = [
        json.loads((trained / kind / name / "run/metrics.jsonl").read_text().splitlines()[-1])
        for kind in ("one", "two")
    ]
    scores = [{key: value for key, value in row.items() if key.startswith("val/")} for row in rows]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3, abs=1e-4) and scores[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_a_run_of_spread_weights_that_goes_on_in_a_step_has_no_differing_bit(name, trained):
    two, parts = (checkpoint_of(trained, kind, name) for kind in ("two", "parts"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "examples_seen", "averaged_at"):
        assert differences(two[part], parts[part]) == [], part


@pytest.mark.slow
def test_one_process_goes_on_from_a_checkpoint_of_spread_weights(
    trained, tmp_path, genlab_command, monkeypatch
):
    run = shutil.copytree(trained / "two" / "dit" / "run", tmp_path / "outputs" / "dit" / "run")
    monkeypatch.setenv("GENLAB_TEST_FOLDER", str(tmp_path))
    alone = ("--trainer.devices", "1", "--trainer.strategy", "auto", "--allow", "rank_weights")
    code, _, error = genlab_command("resume", run, "--budget.examples", "448", *alone)
    assert code == 0, error
    code, _, error = genlab_command("sample", run, "-n", "2", "--allow", "rank_weights")
    assert code == 0, error
    before, after = checkpoint_of(trained, "two", "dit"), torch.load(run / "checkpoints/last.ckpt")
    moments = [found["optimizer_states"][0]["state"][0]["step"] for found in (before, after)]
    assert moments[1] > moments[0] > 0 and after["examples_seen"] == 448
