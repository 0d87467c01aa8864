"""The U-Net under the names that diffusers' UNet2DModel has for the same layers. Imports no diffusers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from genlab.networks.unet import AttentionBlock, Downsample, Stage, UNet, Upsample


class UNet2D(NamedTuple):
    """A UNet2DModel that computes the same as a U-Net: the arguments of the class, and its weights."""

    arguments: dict[str, Any]
    weights: dict[str, Tensor]


def as_unet2d(network: nn.Module, shape: Sequence[int]) -> UNet2D:
    """Returns the same network for diffusers.

    Args:
        network: A U-Net that is told the noise alone.
        shape: Of its images, (channels, height, width).

    Raises:
        ValueError: Something of it has no counterpart there; the message names the layer.
    """
    if type(network) is not UNet:
        raise _no_counterpart(f"the network {type(network).__name__}")
    _require_noise_alone(network)
    _require_one_number_of_groups(network)
    return UNet2D(_arguments(network, shape), dict(_weights(network)))


def _no_counterpart(what: str) -> ValueError:
    return ValueError(f"diffusers' UNet2DModel has no counterpart of {what}: use --to safetensors.")


def _require_noise_alone(network: UNet) -> None:
    told = {
        "condition.label, since its pipeline tells no label": network.condition.label is not None,
        "text, which reads a text": network.text is not None,
        "input, which sees a source beside the image": network.has_image,
        "input, which sees coordinates beside the image": network.coordinates,
    }
    for what, is_there in told.items():
        if is_there:
            raise _no_counterpart(f"the U-Net's {what}")


def _require_one_number_of_groups(network: UNet) -> None:
    usual = network.output[0].num_groups
    for name, layer in network.named_modules():
        if isinstance(layer, nn.GroupNorm) and layer.num_groups != usual:
            raise _no_counterpart(
                f"the U-Net's {name}, a norm of {layer.num_groups} groups where others have {usual}"
            )


def _arguments(network: UNet, shape: Sequence[int]) -> dict[str, Any]:
    down, up = _sizes(network.down, Downsample), _sizes(network.up, Upsample)
    return {
        "sample_size": tuple(shape[1:]),
        "in_channels": network.input.in_channels,
        "out_channels": len(network.output_weight),
        "time_embedding_type": "positional",
        "freq_shift": 1,  # the slowest sinusoid turns exactly 10,000 times as slowly as the fastest
        "flip_sin_to_cos": False,
        "down_block_types": tuple(f"{_kind(size)}DownBlock2D" for size in down),
        "up_block_types": tuple(f"{_kind(size)}UpBlock2D" for size in up),
        "block_out_channels": tuple(size[0].block.first[2].out_channels for size in down),
        "layers_per_block": len(_stages(down[0])),
        "dropout": down[0][0].block.second[2].p,
        "attention_head_dim": _head_dim(network),
        "norm_num_groups": network.output[0].num_groups,
        "norm_eps": network.output[0].eps,
    }


def _weights(network: UNet) -> Iterator[tuple[str, Tensor]]:
    yield from _named("conv_in", network.input)
    yield from _named("time_embedding.linear_1", network.condition.layers[0])
    yield from _named("time_embedding.linear_2", network.condition.layers[2])
    for number, size in enumerate(_sizes(network.down, Downsample)):
        yield from _of_size(f"down_blocks.{number}", size)
    before, after = network.middle
    yield from _of_size("mid_block", [before, Stage(after, None, None)])
    for number, size in enumerate(_sizes(network.up, Upsample)):
        yield from _of_size(f"up_blocks.{number}", size)
    yield from _named("conv_norm_out", network.output[0])
    yield from _named("conv_out", network.output[2])


def _of_size(place: str, size: Sequence[Any]) -> Iterator[tuple[str, Tensor]]:
    for number, stage in enumerate(_stages(size)):
        yield from _of_block(f"{place}.resnets.{number}", stage.block)
        if stage.attention is not None:
            yield from _of_attention(f"{place}.attentions.{number}", stage.attention)
    if isinstance(size[-1], Downsample):
        yield from _named(f"{place}.downsamplers.0.conv", size[-1].layer)
    if isinstance(size[-1], Upsample):
        yield from _named(f"{place}.upsamplers.0.conv", size[-1].layer)


def _of_block(place: str, block: Any) -> Iterator[tuple[str, Tensor]]:
    yield from _named(f"{place}.norm1", block.first[0])
    yield from _named(f"{place}.conv1", block.first[2])
    yield from _named(f"{place}.time_emb_proj", block.condition[1])
    yield from _named(f"{place}.norm2", block.second[0])
    yield from _named(f"{place}.conv2", block.second[3])
    yield from _named(f"{place}.conv_shortcut", block.skip)  # the identity has no weights


def _of_attention(place: str, block: Any) -> Iterator[tuple[str, Tensor]]:
    yield from _named(f"{place}.group_norm", block.norm)
    for kind, value in block.to_qkv.state_dict().items():  # three layers there
        for name, third in zip(("to_q", "to_k", "to_v"), value.chunk(3), strict=True):
            yield f"{place}.{name}.{kind}", third
    yield from _named(f"{place}.to_out.0", block.output)


def _named(place: str, layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, value in layer.state_dict().items():
        yield f"{place}.{name}", value


def _sizes(layers: Iterable[Any], last: type[nn.Module]) -> list[list[Any]]:
    """Returns the layers at each size, with the one that leads to the next size at the end."""
    sizes: list[list[Any]] = [[]]
    for layer in layers:
        sizes[-1].append(layer)
        if isinstance(layer, last):
            sizes.append([])
    return sizes


def _stages(size: Iterable[Any]) -> list[Any]:
    return [layer for layer in size if isinstance(layer, Stage)]


def _kind(size: Iterable[Any]) -> str:
    return "Attn" if any(stage.attention is not None for stage in _stages(size)) else ""


def _head_dim(network: UNet) -> int | None:
    """Returns the channels of a head of every attention; None where each has a single head."""
    blocks = [layer for layer in network.modules() if isinstance(layer, AttentionBlock)]
    if all(block.num_heads == 1 for block in blocks):
        return None
    return blocks[0].norm.num_channels // blocks[0].num_heads
