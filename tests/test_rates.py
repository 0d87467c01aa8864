"""A sweep of learning rates: one factor for all, evenly in its logarithm, and nothing is left behind."""

import math
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from genlab.callbacks.divergence import DivergenceGuard
from genlab.callbacks.rates import RateSweep, steepest
from genlab.data.toy import TwoMoons
from genlab.families.base import Model, Schedule
from genlab.runs.folder import list_runs


def test_the_steepest_fall_is_found_on_the_logarithm_and_does_not_lag():
    factors = [10.0 ** (k / 10 - 3) for k in range(61)]
    losses = [-math.tanh(3.0 * math.log10(f / 0.1)) for f in factors]
    assert steepest(factors, losses) == pytest.approx(0.1)
    assert steepest(factors, [*losses[:-1], math.nan]) == pytest.approx(0.1)
    assert steepest(factors, sorted(losses)) is None
    generator = torch.Generator().manual_seed(0)
    noisy = [loss + 0.05 * float(torch.randn((), generator=generator)) for loss in losses]
    assert steepest(factors, noisy) == pytest.approx(0.1, rel=0.5)


def test_a_fall_back_from_where_the_loss_had_blown_up_is_not_the_steepest():
    factors = [10.0 ** (k / 10 - 3) for k in range(61)]
    losses = [-math.tanh(3.0 * math.log10(f)) for f in factors[:40]]
    assert steepest(factors, [*losses, *([50.0] * 10), *([3.0] * 11)]) == pytest.approx(1.0)


class Quadratic(Model):
    """Whose loss, 1/2 curvature w^2, is least after one step of SGD at the rate 1 / curvature."""

    def __init__(self, spec, curvature, **options):
        super().__init__(spec, **options)
        self.w, self.curvature = torch.nn.Parameter(torch.ones(3)), curvature

    def losses(self, batch):
        return {"loss": 0.5 * self.curvature * self.w.square().sum()}

    def configure_optimizers(self):
        return self.scheduled(torch.optim.SGD([self.w], lr=0.25))


@pytest.mark.parametrize("curvature", [1.0, 40.0])
def test_the_best_rate_of_a_quadratic_is_found_by_its_closed_form(curvature):
    data = TwoMoons(num_train=32, num_test=16, batch_size=8)  # an epoch has 3 batches
    model = Quadratic(data.spec, curvature, schedule=Schedule(warmup=10**6))
    sweep = RateSweep(batches=200, least=1e-4, most=1e4)
    trainer = pl.Trainer(
        fast_dev_run=True,
        accelerator="cpu",
        callbacks=[DivergenceGuard(), sweep],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    # log loss = -2 sum of rate * curvature = -2 c rate / log of the step from rate to rate: steepest at
    # rate = log(step) / (2 curvature), where (1 - rate curvature) is still exp(-rate curvature).
    step = math.log(1e8) / 199
    assert sweep.suggested * 0.25 == pytest.approx(step / 2.0 / curvature, rel=0.3)
    assert sweep.rates == [[0.25]]
    stable = [f for f in sweep.factors if f * 0.25 * curvature < 2.0]
    assert len(stable) < len(sweep.factors) < 200  # and the sweep ends soon after training diverges


def swept(losses, batches=5):
    first, second = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizers = [torch.optim.SGD([first], lr=0.1), torch.optim.Adam([second], lr=0.002)]
    trainer = SimpleNamespace(optimizers=optimizers, should_stop=False)
    model, sweep, rates = SimpleNamespace(latest={}), RateSweep(batches=batches), []
    sweep.on_train_start(trainer, model)
    for loss in losses:
        sweep.on_train_batch_start(trainer, model, None, 0)
        rates.append([o.param_groups[0]["lr"] for o in optimizers])
        model.latest = {"loss": torch.tensor(loss)}
        sweep.on_train_batch_end(trainer, model, None, None, 0)
    return sweep, rates, trainer.should_stop


def test_players_keep_the_ratio_of_their_rates_which_grow_evenly_in_their_logarithm():
    sweep, rates, stops = swept([1.0] * 5)
    assert stops and sweep.factors == pytest.approx([1e-3, 10**-1.5, 1.0, 10**1.5, 1e3])
    assert torch.tensor(rates).T.tolist() == [
        pytest.approx([rate * factor for factor in sweep.factors]) for rate in (0.1, 0.002)
    ]


@pytest.mark.parametrize("last", [[math.nan], [math.inf], [1e6, 1e6, 1e6]])
def test_a_loss_that_leaves_all_bounds_ends_the_sweep(last):
    assert swept([1.0, 0.9, *last], batches=50)[2]
    assert not swept([1.0, 0.9, 1e6, 0.8], batches=50)[2]  # one bad batch does not


def test_ends_the_wrong_way_round_are_refused(genlab_command):
    with pytest.raises(ValueError, match="least must be above 0 and below most, got 3 and 1"):
        RateSweep(least=3.0, most=1.0)
    code, _, error = genlab_command("lr", "vae_digits", "--least", 3, "--most", 1)
    assert code == 2 and "--least must be below --most, got 3 and 1." in error


def test_the_command_draws_a_curve_of_all_batches_and_leaves_no_run(tmp_path, genlab_command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, cpu = tmp_path / "new" / "rates.png", ("--trainer.accelerator", "cpu")
    code, out, error = genlab_command("lr", "gan_digits", "--batches", 20, "-o", file, *cpu)
    assert code == 0, error
    assert "times what is configured" in out and "generator" in error
    assert file.is_file()
    assert list_runs() == []
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("cache", "outputs")] == ["new"]
