"""From the bytes of an image file to pixels: every unusual input has a defined conversion or a named error.

This module imports no torch and nothing of the room, so that worker processes and `genlab data check`
start fast.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageFile, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from genlab.errors import DataError

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""What is opened; the rest of Pillow's formats is rare, and some (EPS) start other programs."""

EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jpg", ".jpeg", ".jfif", ".jp2", ".png", ".pbm", ".pgm", ".ppm", ".pnm", ".pfm"}
    | {".tga", ".tif", ".tiff", ".webp"}
)

VERSION = 1
"""Part of the cache key of packed images: raise it whenever the same file would give other pixels."""

_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_MAXIMUM = 258, 262, 281
_PNG_DEPTH_OFFSET = 24  # signature 8, chunk head 8, width 4, height 4


class BadImage(DataError):  # noqa: N818
    """A file that cannot become pixels; the message is one line that names it and says why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str]]:
        return BadImage, (self.name, self.reason)


@dataclass(frozen=True)
class Policy:
    """How images are brought to one size and one number of channels.

    The largest centred square is cut out and resized by Pillow's bicubic filter, which widens with the scale
    and so does not alias (Parmar et al. 2022, "On aliased resizing"). JPEG files are decoded in full: the
    decoder's own downscaling ("draft") is faster but moves pixels by several levels.

    Args:
        image_size: Side of the square result in pixels; None leaves the size as it is.
        channels: 1 (grey, ITU-R 601 luma) or 3 (RGB).
        background: Colour that transparent pixels are laid over, by any name that Pillow knows.
        max_pixels: Largest width times height that is decoded; the header is asked before.
        panels: Number of squares that stand side by side in one file, each brought to image_size alone, so
            that none bleeds into its neighbour; a file of another form is refused. 1 for single pictures.
    """

    image_size: int | None
    channels: int = 3
    background: str = "white"
    max_pixels: int = 64_000_000
    panels: int = 1

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {self.channels}.")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {self.image_size}.")
        ImageColor.getrgb(self.background)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings by name; single pictures as before there were panels, so that packs stay."""
        settings = asdict(self)
        return settings if self.panels > 1 else {k: v for k, v in settings.items() if k != "panels"}


@dataclass(frozen=True)
class Decoded:
    """Pixels of one image.

    Attributes:
        pixels: uint8 levels.
        size: (width, height) of the file, before any conversion.
        mode: Pillow's name of the file's pixel format.
        notes: The conversions that were needed, in words that are equal for equal conversions.

    Shapes:
        pixels: (channels, height, width); the width of all panels together.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    mode: str
    notes: tuple[str, ...]


def decode(data: bytes, name: str, policy: Policy) -> Decoded:
    """Returns the pixels of an image file under a policy.

    Raises:
        BadImage: Where the file is damaged, too large, or would lose information.
    """
    if not data:
        raise BadImage(name, "the file is empty (0 bytes)")
    try:
        with _strict_pillow():
            return _decode(data, name, policy)
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage(name, f"not an image (it starts with {data[:12]!r})") from None
    except Exception as error:  # Pillow's plugins raise whatever a damaged file leads them to
        raise BadImage(name, f"damaged: {' '.join(str(error).split()) or type(error).__name__}") from None


def _decode(data: bytes, name: str, policy: Policy) -> Decoded:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _refuse_huge(image, name, policy.max_pixels)
    if image.format == "PNG":  # decoding alone does not look at the checksums of the pixel data
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()
    size, mode, notes = image.size, image.mode, list[str]()
    if getattr(image, "n_frames", 1) > 1:
        notes.append("first of several frames")
        image.seek(0)
    if _high_depth_colour(image, data):
        notes.append("16-bit colour to 8 bits")
    image.load()
    upright = ImageOps.exif_transpose(image)
    if image.getexif().get(0x0112, 1) not in (0, 1):
        notes.append("turned by its EXIF orientation")
    pixels = _with_channels(
        _eight_bits(upright, image, name, policy.background, notes), policy.channels, notes
    )
    panels = _panels(pixels, policy.panels, name)
    if policy.image_size is not None:
        panels = [_square(panel, policy.image_size, notes) for panel in panels]
    joined = np.concatenate([_channels_first(panel) for panel in panels], axis=2)
    return Decoded(joined, size, mode, tuple(dict.fromkeys(notes)))


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Turns off Pillow's process-wide leniency and its own size limit, which `max_pixels` replaces."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


def _refuse_huge(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage(
            name, f"{width}x{height} is {width * height / 1e6:.0f} Mpx, the cap is {max_pixels / 1e6:g} Mpx"
        )


def _high_depth_colour(image: Image.Image, data: bytes) -> bool:
    """Whether Pillow keeps only the high byte of 16-bit colours: the full range, to within one level."""
    if image.mode.startswith("I"):
        return False
    if image.format == "PNG":
        return data[_PNG_DEPTH_OFFSET] == 16
    return image.format == "TIFF" and image.mode != "F" and max(_tiff(image, _TIFF_BITS, (8,))) > 8


def _eight_bits(
    image: Image.Image, opened: Image.Image, name: str, background: str, notes: list[str]
) -> Image.Image:
    """Returns the image as 8-bit grey or RGB without transparency."""
    mode = image.mode
    if mode.startswith("I"):
        return _from_integers(image, opened, name, notes)
    if mode == "F":
        return _from_floats(image, name, notes)
    if mode == "CMYK":
        return _from_cmyk(image, notes)
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        notes.append(f"transparency laid over {background}")
        return _over(image, background)
    if mode == "P":
        notes.append("palette to RGB")
    if mode in ("1", "L", "RGB"):
        return image.convert("L") if mode == "1" else image
    if mode in ("P", "RGBX", "YCbCr", "HSV"):
        return image.convert("RGB")
    raise BadImage(name, f"pixel format {mode} has no defined conversion; save it as 8-bit RGB")


def _from_integers(image: Image.Image, opened: Image.Image, name: str, notes: list[str]) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    highest = _declared_maximum(opened, name)
    if values.min() < 0 or values.max() > highest:
        raise BadImage(
            name,
            f"values {values.min()} to {values.max()} leave the declared range 0 to {highest}; rescale it",
        )
    if _tiff(opened, _TIFF_PHOTOMETRIC, 1) == 0:  # white is zero; Pillow inverts 8 bits only
        values = highest - values
    notes.append("16-bit grey to 8 bits")
    return Image.fromarray(((values * 255 + highest // 2) // highest).astype(np.uint8))


def _declared_maximum(opened: Image.Image, name: str) -> int:
    """Returns the value that means white; Pillow's own conversion clips at 255 instead of scaling by it."""
    if opened.format != "TIFF":
        return 65535  # PNG of 16 bits; Pillow scales PGM of any maximum to this
    bits = max(_tiff(opened, _TIFF_BITS, (16,)))
    declared = _tiff(opened, _TIFF_MAXIMUM, None)
    if declared is not None:
        return int(declared[0] if isinstance(declared, tuple) else declared)
    if bits > 16:
        raise BadImage(name, f"{bits}-bit integers without a declared maximum; save it with 8 or 16 bits")
    return int(2**bits - 1)


def _from_floats(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    values = np.asarray(image)
    if not (values.min() >= 0.0 and values.max() <= 1.0):  # also refuses NaN
        raise BadImage(
            name, f"float values {values.min():g} to {values.max():g} are not within 0 to 1; rescale it"
        )
    notes.append("float to 8 bits")
    return Image.fromarray(np.rint(values * 255.0).astype(np.uint8))


def _from_cmyk(image: Image.Image, notes: list[str]) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile:
        notes.append("CMYK to RGB without a profile")
        return image.convert("RGB")
    notes.append("CMYK to RGB by its profile")
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None
    return converted


def _over(image: Image.Image, background: str) -> Image.Image:
    grey = image.mode in ("L", "LA", "La")
    canvas = Image.new("RGBA", image.size, (*ImageColor.getrgb(background)[:3], 255))
    straight = {"La": "LA", "RGBa": "RGBA"}.get(
        image.mode, image.mode
    )  # Pillow undoes premultiplied alpha first
    flat = Image.alpha_composite(canvas, image.convert(straight).convert("RGBA")).convert("RGB")
    colour = ImageColor.getrgb(background)[:3]
    return flat.convert("L") if grey and len(set(colour)) == 1 else flat


def _with_channels(image: Image.Image, channels: int, notes: list[str]) -> Image.Image:
    wanted = "L" if channels == 1 else "RGB"
    if image.mode == wanted:
        return image
    notes.append("RGB to grey" if channels == 1 else "grey to RGB")
    return image.convert(wanted)


def _panels(image: Image.Image, num: int, name: str) -> list[Image.Image]:
    """Returns the squares side by side; the one picture, of any form, where there is one."""
    width, height = image.size
    if num == 1:
        return [image]
    if width != num * height:
        raise BadImage(name, f"{width}x{height} is not {num} squares side by side ({num * height}x{height})")
    return [image.crop((k * height, 0, (k + 1) * height, height)) for k in range(num)]


def _square(image: Image.Image, size: int, notes: list[str]) -> Image.Image:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    if side < size:
        notes.append("enlarged")
    if width != height:
        notes.append("cropped to the centred square")
    square = image.crop((left, top, left + side, top + side))
    return square if side == size else square.resize((size, size), Image.Resampling.BICUBIC)


def _channels_first(image: Image.Image) -> np.ndarray:
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _tiff(image: Image.Image, tag: int, default: Any) -> Any:
    return image.tag_v2.get(tag, default) if isinstance(image, TiffImageFile) else default
