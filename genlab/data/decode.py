"""From the bytes of an image file to pixels: every unusual input has a defined conversion or a named error.

This module imports no torch and nothing of the room, so that worker processes and `genlab data check`
start fast.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageFile
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

Crop = Literal["centre", "random", "none"]
"""Which square of an image is kept; see `Policy`."""

LONGEST = 2
"""Largest ratio of the sides of an image of which a square is drawn; of a longer one, the middle is taken."""

_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_MAXIMUM = 258, 262, 281
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STRIP_PIXELS = 2**20  # steps that need several numbers a pixel take so many at a time
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

    The largest centred square is cut out, or what `crop` says, and resized by Pillow's bicubic filter, which
    widens with the scale and so does not alias (Parmar et al. 2022, "On aliased resizing"). JPEG files are
    decoded in full: the decoder's own downscaling ("draft") is faster but moves pixels by several levels.

    Args:
        image_size: Side of the square result in pixels; None leaves the size as it is.
        channels: 1 (grey, ITU-R 601 luma) or 3 (RGB).
        background: Colour that transparent pixels are laid over, by any name that Pillow knows.
        max_pixels: Largest width times height that is decoded; the header is asked before.
        panels: Number of squares that stand side by side in one file, each brought to image_size alone, so
            that none bleeds into its neighbour; a file of another form is refused. 1 for single pictures.
        crop: "centre" cuts the square out; "none" squeezes the whole image into a square, whose proportions
            then change; "random" resizes the shorter side and keeps the longer one, up to `LONGEST` times as
            long, so that whoever trains draws a square of it.
    """

    image_size: int | None
    channels: int = 3
    background: str = "white"
    max_pixels: int = 64_000_000
    panels: int = 1
    crop: Crop = "centre"

    def __post_init__(self) -> None:
        if self.crop not in get_args(Crop):
            raise ValueError(f"crop must be {', '.join(get_args(Crop))}, got {self.crop!r}.")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {self.channels}.")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {self.image_size}.")
        if not _is_colour(self.background):
            raise ValueError(
                f"background must be a colour by its name or its hex digits, such as white, black or "
                f"'#808080', got {self.background!r}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings by name, later ones only where they are used, so that packs stay."""
        settings = asdict(self)
        unused = {"panels": 1, "crop": "centre"}
        return {name: value for name, value in settings.items() if unused.get(name) != value}


def _is_colour(name: str) -> bool:
    try:
        ImageColor.getrgb(name)
    except ValueError:
        return False
    return True


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
    if getattr(image, "is_animated", False):  # n_frames would read a film to its end
        notes.append("first of several frames")
        image.seek(0)
    if _high_depth_colour(image, data):
        notes.append("16-bit colour to 8 bits")
    image.load()
    turn = image.getexif().get(_EXIF_ORIENTATION, 1)
    if turn not in (0, 1):
        notes.append("turned by its EXIF orientation")
    pixels = _eight_bits(image, name, policy.background, notes)
    del image  # a large one would take as much memory again at every further step
    if turn in _TURNS:
        pixels = pixels.transpose(_TURNS[turn])
    pixels = _with_channels(pixels, policy.channels, notes)
    panels = _panels(pixels, policy.panels, name)
    del pixels
    if policy.image_size is not None:
        panels = [_sized(panel, policy.image_size, policy.crop, notes) for panel in panels]
    arrays = [_channels_first(panel) for panel in panels]
    joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=2)
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


def _eight_bits(image: Image.Image, name: str, background: str, notes: list[str]) -> Image.Image:
    """Returns the image as 8-bit grey or RGB without transparency."""
    mode = image.mode
    if mode.startswith("I"):
        return _from_integers(image, name, notes)
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


def _from_integers(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    lowest, highest = _extremes(image)
    white = _declared_maximum(image, name)
    if lowest < 0 or highest > white:
        raise BadImage(
            name, f"values {lowest} to {highest} leave the declared range 0 to {white}; rescale it"
        )
    notes.append("16-bit grey to 8 bits")
    # White is zero in some TIFF; Pillow inverts 8 bits only.
    sign, offset = (-1, white) if _tiff(image, _TIFF_PHOTOMETRIC, 1) == 0 else (1, 0)
    return _by_strips(
        image,
        "L",
        lambda strip: _grey(((offset + sign * _values(strip).astype(np.int64)) * 255 + white // 2) // white),
    )


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
    lowest, highest = _extremes(image)
    if not (lowest >= 0.0 and highest <= 1.0):  # also refuses NaN
        raise BadImage(name, f"float values {lowest:g} to {highest:g} are not within 0 to 1; rescale it")
    notes.append("float to 8 bits")
    return _by_strips(image, "L", lambda strip: _grey(np.rint(_values(strip) * 255.0)))


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yields the image from top to bottom in strips, each with its first row."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    if rows >= height:
        yield 0, image
        return
    for top in range(0, height, rows):
        yield top, image.crop((0, top, width, min(top + rows, height)))


def _by_strips(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Returns what a conversion of single pixels makes of an image, without holding its steps at once."""
    strips = _strips(image)
    first = convert(next(strips)[1])
    if first.size == image.size:
        return first
    whole = Image.new(mode, image.size)
    whole.paste(first)
    for top, strip in strips:
        whole.paste(convert(strip), (0, top))
    return whole


def _extremes(image: Image.Image) -> tuple[Any, Any]:
    """Returns the smallest and the largest value, NaN where one is."""
    found = [(values.min(), values.max()) for _, strip in _strips(image) for values in [_values(strip)]]
    lowest, highest = zip(*found, strict=True)
    return np.min(lowest), np.max(highest)


def _values(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8))


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
    colour = ImageColor.getrgb(background)[:3]
    mode = "L" if image.mode in ("L", "LA", "La") and len(set(colour)) == 1 else "RGB"
    # Pillow undoes premultiplied alpha only by way of the straight one.
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)

    def flat(strip: Image.Image) -> Image.Image:
        canvas = Image.new("RGBA", strip.size, (*colour, 255))
        laid = Image.alpha_composite(canvas, strip.convert(straight).convert("RGBA")).convert("RGB")
        return laid if mode == "RGB" else laid.convert("L")

    return _by_strips(image, mode, flat)


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


def _sized(image: Image.Image, size: int, crop: Crop, notes: list[str]) -> Image.Image:
    """Returns the square of a size, or what a square is to be drawn of."""
    width, height = image.size
    side = min(width, height)
    if side < size:
        notes.append("enlarged")
    if crop == "none" and width != height:
        notes.append("squeezed into a square")
    if crop == "centre":
        image = _middle(image, side, side, notes)
    elif crop == "random":
        image = _middle(image, min(width, LONGEST * side), min(height, LONGEST * side), notes)
    target = (size, size)
    if crop == "random":
        target = (round(image.width * size / side), round(image.height * size / side))
    return image if image.size == target else image.resize(target, Image.Resampling.BICUBIC)


def _middle(image: Image.Image, width: int, height: int, notes: list[str]) -> Image.Image:
    if image.size == (width, height):
        return image
    notes.append("cropped to the centred square" if width == height else "cropped to the middle")
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _channels_first(image: Image.Image) -> np.ndarray:
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _tiff(image: Image.Image, tag: int, default: Any) -> Any:
    return image.tag_v2.get(tag, default) if isinstance(image, TiffImageFile) else default
