"""One training step of pix2pix and of CycleGAN beside the same networks in a plain loop.

    python -m benchmarks.image_to_image --threads 1 --steps 40

The plain loop is written as public scripts are: an Adam for each player as torch makes it by default, each
network asked once for each term of its loss, gradients of the discriminator in the generator's step. Both
sides start from equal weights and see equal images, step by step in turns, so that what else the machine
does meets both; a ratio is of two neighbouring steps.

Measured on an idle server processor of two cores, 64x64, a batch of one, 20 steps, as the median of the
ratios and their middle half: with 16 channels on one thread pix2pix 1.21 (1.13 to 1.30) and CycleGAN 1.17
(1.11 to 1.27), on two threads 1.18 and 1.28; with 32 channels on one 1.35 and 1.14 (1.07 to 1.23), on two
1.30 and 1.17. The wider the generators are, the more of a step are convolutions that both loops need.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss, mse_loss

from genlab.families.cyclegan import CycleGAN
from genlab.families.pix2pix import Pix2Pix
from genlab.families.players import Adversarial
from genlab.losses.adversarial import LeastSquares, NonSaturating
from genlab.networks.image_to_image import PatchDiscriminator, UNetGenerator
from genlab.networks.resnet_generator import ResNetGenerator
from genlab.shapes import DataSpec

Step = Callable[[Tensor, Tensor], None]
RATE: Any = {"lr": 2e-4, "betas": (0.5, 0.999)}
_WARM_UP = 4


def genlab_step(model: Adversarial) -> Step:
    """Returns a training step of a family, without the trainer around it."""
    model.setup("fit")
    model.train()
    optimizers = model.configure_optimizers()
    wrapped = [
        SimpleNamespace(optimizer=o, zero_grad=o.zero_grad, step=o.step, param_groups=o.param_groups)
        for o in optimizers
    ]
    strategy = SimpleNamespace(optimizer_step=lambda optimizer, closure: optimizer.step())
    model.optimizers = lambda: wrapped  # type: ignore[method-assign,assignment]
    model.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign,misc]
    model._trainer = SimpleNamespace(world_size=1, global_rank=0, strategy=strategy)  # type: ignore[assignment]

    def step(source: Tensor, image: Tensor) -> None:
        batch: Any = {"image": image, "source": source}
        model.on_train_batch_start(batch, 0)
        model.training_step(batch, 0)

    return step


def plain_pix2pix(generator: Any, discriminator: Any) -> Step:
    """Returns a step of pix2pix as public scripts write it."""
    of_generator = torch.optim.Adam(generator.parameters(), **RATE)
    of_discriminator = torch.optim.Adam(discriminator.parameters(), **RATE)

    def against(logits: Tensor, value: float) -> Tensor:
        return binary_cross_entropy_with_logits(logits, torch.full_like(logits, value))

    def step(source: Tensor, image: Tensor) -> None:
        of_generator.zero_grad()
        fake = generator(source=source)
        loss = against(discriminator(fake, source=source), 1.0) + 100 * l1_loss(fake, image)
        loss.backward()
        of_generator.step()
        of_discriminator.zero_grad()
        real = against(discriminator(image, source=source), 1.0)
        loss = (real + against(discriminator(fake.detach(), source=source), 0.0)) / 2
        loss.backward()
        of_discriminator.step()

    return step


def plain_cyclegan(generators: Any, discriminators: Any) -> Step:
    """Returns a step of CycleGAN as public scripts write it, without a pool."""
    (there, back), (of_image, of_source) = generators, discriminators
    of_generators = torch.optim.Adam(itertools.chain(there.parameters(), back.parameters()), **RATE)
    of_discriminators = [torch.optim.Adam(each.parameters(), **RATE) for each in discriminators]

    def against(logits: Tensor, value: float) -> Tensor:
        return mse_loss(logits, torch.full_like(logits, value))

    def step(source: Tensor, image: Tensor) -> None:
        of_generators.zero_grad()
        identity = l1_loss(there(source=image), image) + l1_loss(back(source=source), source)
        fake_image, fake_source = there(source=source), back(source=image)
        adversarial = against(of_image(fake_image), 1.0) + against(of_source(fake_source), 1.0)
        cycle = l1_loss(back(source=fake_image), source) + l1_loss(there(source=fake_source), image)
        (adversarial + 10 * cycle + 5 * identity).backward()
        of_generators.step()
        players = zip(
            of_discriminators, discriminators, (image, source), (fake_image, fake_source), strict=True
        )
        for optimizer, judge, real, fake in players:
            optimizer.zero_grad()
            ((against(judge(real), 1.0) + against(judge(fake.detach()), 0.0)) / 2).backward()
            optimizer.step()

    return step


def pairs_of_steps(size: int, channels: int) -> dict[str, tuple[Step, Step]]:
    """Returns genlab's step and the plain one of each model, of equal weights."""
    spec = DataSpec("images", (3, size, size), source=DataSpec("sources", (3, size, size)))
    adam = partial(torch.optim.Adam, fused=True, **RATE)
    players: Any = {"given": ["source"], "generator_optimizer": adam, "discriminator_optimizer": adam}
    judge = partial(PatchDiscriminator, base_channels=channels, norm="instance")
    unet = partial(UNetGenerator, base_channels=channels, norm="instance")
    residual = partial(ResNetGenerator, base_channels=channels, num_blocks=6)
    first = Pix2Pix(spec, generator=unet, discriminator=judge, loss=NonSaturating(), **players)
    plain_first = plain_pix2pix(copy.deepcopy(first.generator), copy.deepcopy(first.discriminator))
    second = CycleGAN(
        spec, generator=residual, discriminator=judge, loss=LeastSquares(), pool_size=0, **players
    )
    networks = copy.deepcopy((second.generator, second.discriminator))
    plain_second = plain_cyclegan(*([player.there, player.back] for player in networks))
    return {
        "pix2pix": (genlab_step(first), plain_first),
        "cyclegan": (genlab_step(second), plain_second),
    }


def seconds(step: Step, batch: tuple[Tensor, Tensor]) -> float:
    """Returns the processor's seconds of a step, which other processes do not lengthen."""
    start = time.process_time()
    step(*batch)
    return time.process_time() - start


def main() -> None:
    """Prints the ratio of both times for each model: the median over all steps, and the middle half."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("size", 64), ("channels", 32), ("batch", 1), ("steps", 40), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    shape = (asked.batch, 3, asked.size, asked.size)
    for name, (own, plain) in pairs_of_steps(asked.size, asked.channels).items():
        times = []
        for number in range(asked.steps + _WARM_UP):
            batch = torch.rand(shape) * 2 - 1, torch.rand(shape) * 2 - 1
            if number % 2:
                first = seconds(own, batch)
                times.append((first, seconds(plain, batch)))
            else:
                second = seconds(plain, batch)
                times.append((seconds(own, batch), second))
        kept = times[_WARM_UP:]
        low, middle, high = statistics.quantiles([second / first for first, second in kept], n=4)
        milliseconds = 1e3 * statistics.median(first for first, _ in kept)
        print(
            f"{name}: {middle:.2f} times as fast ({low:.2f} to {high:.2f} in the middle half of "
            f"{asked.steps} steps), {milliseconds:.0f} ms a step"
        )


if __name__ == "__main__":
    main()
