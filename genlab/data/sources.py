"""Where images come from: a folder, a zip or a tar, all read in place and in one fixed order."""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from genlab.data.chunks import Chunks, digest_of_pixels, is_pack, is_remote
from genlab.data.decode import EXTENSIONS, BadImage
from genlab.errors import DataError

MAX_FILE_BYTES = 512 * 2**20
"""A member of an archive that claims more is refused unread."""

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of folders that are splits, in small letters, and which they are."""


_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_IDX = "-idx3-ubyte"


class BadSource(DataError):  # noqa: N818
    """A place without usable images; the message is one line that says what to do."""


class Source:
    """Images at one place, sorted by name.

    Attributes:
        path: The folder or archive.
        names: Path of each image inside it, with forward slashes.
        parts: Split of each image, where the folders at the top are splits and one of them is for training.
        labels: Class number of each image, where every image lies in a class folder exactly one level down,
            or one level below its split.
        classes: Names of the class folders, sorted; empty where there are none.
        captions: Those of each image, where the place itself holds them and not a table.
        parallel: Whether several processes may read at once without each paying for the others' share.
    """

    parallel = True
    captions: list[list[str]] | None = None

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path, self.names = path, list(names)
        self.parts, inside = _split_folders(self.names)
        self.labels, self.classes = _class_folders(inside)
        self._handle: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        """Returns the bytes of image number `index`."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Returns a hash that changes when the images change, found without reading them all."""
        raise NotImplementedError

    def reading_order(self) -> list[int]:
        """Returns the order in which reading everything is cheapest."""
        return list(range(len(self)))

    def _opened(self, opener: Callable[[], Any]) -> Any:
        # One handle for each process: a position shared with a forked parent would mix up their reads.
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = (os.getpid(), opener())
        return self._handle[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}


class Folder(Source):
    """All images below a folder, hidden ones left out.

    Links to folders are not followed, and links to files only inside the folder, which may be a link itself.
    The fingerprint covers relative paths, sizes and modification times: reading every file would cost as much
    as packing does. A file replaced by another of the same size and time goes unnoticed.

    Args:
        path: The folder.
        wrapped: Whether all images may lie deeper in it, in one folder.
    """

    def __init__(self, path: Path, wrapped: bool = False) -> None:
        names = []
        for folder, _, files in os.walk(path):
            inside = Path(folder).relative_to(path)
            names += [(inside / file).as_posix() for file in files]
        super().__init__(path, sorted(filter(_is_image, names)))
        self.root = os.path.realpath(path)
        wrapper = _common_folder(self.names)
        if wrapper.parts and not wrapped:
            depth = len(wrapper.parts)
            levels = "one level" if depth == 1 else f"{depth} levels"
            raise BadSource(
                f"0 images in {path}; found {len(self.names)} {levels} down, use --data.path {path / wrapper}"
            )
        if not self.names:
            raise BadSource(f"0 images in {path}; {_instead(path, names)}")

    def read(self, index: int) -> bytes:
        name = self.names[index]
        try:
            return read_file(self.path / name, MAX_FILE_BYTES, self.root)
        except OSError as error:
            raise BadImage(name, f"cannot be read: {error.strerror}") from None

    def fingerprint(self) -> str:
        return _hash(f"{name}\0{_size_and_time(self.path / name)}" for name in self.names)


class SingleFile(Source):
    """One image file, whatever its name ends in."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, [path.name])

    def read(self, index: int) -> bytes:
        try:
            return read_file(self.path, MAX_FILE_BYTES)
        except OSError as error:
            raise BadImage(str(self.path), f"cannot be read: {error.strerror}") from None

    def fingerprint(self) -> str:
        return _hash([_size_and_time(self.path)])


class Zip(Source):
    """All images of a zip; the fingerprint covers names, sizes and the checksums that the zip stores."""

    def __init__(self, path: Path) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
        except (zipfile.BadZipFile, OSError) as error:
            raise BadSource(f"{path} is a damaged zip ({error}); fetch or make it again.") from None
        for member in members:
            _refuse_hostile(path, member.filename, member.file_size, not _is_file(member))
        self.members = _images_by_name((member.filename, member) for member in members)
        super().__init__(path, list(self.members))

    def read(self, index: int) -> bytes:
        name = self.names[index]
        try:
            return self._opened(lambda: zipfile.ZipFile(self.path)).read(self.members[name])
        except (
            zipfile.BadZipFile,
            OSError,
            RuntimeError,
            NotImplementedError,
            EOFError,
            zlib.error,
        ) as error:
            raise BadImage(name, f"cannot be read from {self.path.name}: {error}") from None

    def fingerprint(self) -> str:
        return _hash(f"{name}\0{member.file_size}\0{member.CRC}" for name, member in self.members.items())


class Tar(Source):
    """All images of a tar; the fingerprint covers names and sizes, and the archive's own size and time.

    A plain tar is read by offset. A compressed one has no offsets into its bytes, so that one process reads
    it from front to back.
    """

    def __init__(self, path: Path) -> None:
        try:
            with tarfile.open(path) as archive:
                members = [member for member in archive if not member.isdir()]
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise BadSource(f"{path} is a damaged tar ({error}); fetch or make it again.") from None
        for member in members:
            _refuse_hostile(path, member.name, member.size, not member.isreg() or member.issparse())
        self.places = _images_by_name((member.name, (member.offset_data, member.size)) for member in members)
        self.parallel = _is_plain_tar(path)
        super().__init__(path, list(self.places))

    def read(self, index: int) -> bytes:
        name = self.names[index]
        offset, size = self.places[name]
        try:
            stream = self._opened(self._stream)
            stream.seek(offset)
            data: bytes = stream.read(size)
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            raise BadImage(name, f"cannot be read from {self.path.name}: {error}") from None
        if len(data) != size:
            raise BadImage(name, f"cut off: {self.path.name} ends before it does")
        return data

    def _stream(self) -> Any:
        return self.path.open("rb") if self.parallel else tarfile.open(self.path).fileobj

    def fingerprint(self) -> str:
        members = [f"{name}\0{size}" for name, (_, size) in self.places.items()]
        return _hash([_size_and_time(self.path), *members])

    def reading_order(self) -> list[int]:
        offsets = [offset for offset, _ in self.places.values()]
        return sorted(range(len(self)), key=offsets.__getitem__)


class Pack(Source):
    """The images that `genlab data pack` has decoded; read singly, each is a file without compression.

    Args:
        place: A folder, or a remote place.
    """

    def __init__(self, place: str | Path) -> None:
        self.chunks = Chunks(place)
        items = self.chunks.items()
        super().__init__(Path(place), [item["name"] for item in items])
        first = items[0] if items else {}
        self.parts = [item["split"] for item in items] if "split" in first else None
        self.labels = [item["label"] for item in items] if "label" in first else None
        self.captions = [item["captions"] for item in items] if "captions" in first else None
        self.classes = self.chunks.classes

    def read(self, index: int) -> bytes:
        (pixels,) = self.chunks.read(np.array([index]))
        if digest_of_pixels(pixels) != self.chunks.digests[index].tobytes():
            raise BadImage(self.names[index], "damaged: its pixels are not those that were packed")
        channels, height, width = pixels.shape
        head = f"P{5 if channels == 1 else 6} {width} {height} 255\n"
        return head.encode() + np.moveaxis(pixels, 0, -1).tobytes()

    def fingerprint(self) -> str:
        return self.chunks.key


@contextmanager
def opened(path: Path, at_most: int | None = None, root: str | None = None) -> Iterator[BinaryIO]:
    """Opens a file to be read, and nothing else that a name can stand for.

    Args:
        path: The file. A pipe without a writer would never end, and /dev/zero never.
        at_most: Most bytes that are read.
        root: The folder, without links, that a link must not leave.

    Raises:
        OSError: Where it cannot be opened, is no file, is too large, or leaves the folder; with `strerror`.
    """
    if root is not None and path.is_symlink() and not _is_inside(path, root):
        raise OSError(errno.EPERM, f"a link out of the folder, to {os.path.realpath(path)}")
    with open(path, "rb", opener=_at_once) as file:
        status = os.fstat(file.fileno())
        if stat.S_ISDIR(status.st_mode):
            raise OSError(errno.EISDIR, "a folder, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "a pipe or a device, not a file")
        if at_most is not None and status.st_size > at_most:
            raise OSError(errno.EFBIG, _too_large(status.st_size, at_most))
        yield file


def read_file(path: Path, at_most: int | None = None, root: str | None = None) -> bytes:
    """Returns the bytes of a file; see `opened`."""
    with opened(path, at_most, root) as file:
        return file.read()


def _at_once(path: str, flags: int) -> int:
    """Opens a file without waiting for whoever writes into a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _too_large(size: int, cap: int) -> str:
    return f"{size / 2**20:.0f} MiB, the cap is {cap / 2**20:.0f} MiB"


def _is_inside(path: Path, root: str) -> bool:
    return os.path.realpath(path).startswith(os.path.join(root, ""))


def open_source(path: str | Path) -> Source:
    """Returns the images of a folder, a zip or a tar.

    Raises:
        ValueError: Where no path is given.
        BadSource: Where there is nothing to read, with the remedy.
    """
    require_path(path, "a folder, a zip or a tar of images")
    source = Pack(path) if is_remote(path) else _open(Path(path).expanduser())
    if not source.names:
        raise BadSource(f"0 images in {path}; known endings are {' '.join(sorted(EXTENSIONS))}")
    return source


def pictures_at(path: Path) -> Source:
    """Returns the images of a folder, however deep they lie, of a zip or a tar, or the one that a file is."""
    if path.is_dir():
        return Folder(path, wrapped=True)
    is_archive = zipfile.is_zipfile(path) or (path.stat().st_size and tarfile.is_tarfile(path))
    return open_source(path) if is_archive else SingleFile(path)


def require_path(path: str | Path, what: str, option: str = "path") -> None:
    """Refuses a path that was not given, with the option that gives it."""
    if not str(path):
        raise ValueError(f"{option} is missing: give {what} with --data.{option} PLACE.")


def _open(path: Path) -> Source:
    if not path.exists():
        raise BadSource(f"{path} does not exist; give a folder, a zip or a tar of images with --data.path")
    if is_pack(path):
        return Pack(path)
    if path.is_dir():
        return Folder(path)
    if not path.is_file():
        raise BadSource(f"{path} is a pipe or a device; give a folder, a zip or a tar with --data.path")
    if zipfile.is_zipfile(path):
        return Zip(path)
    if path.stat().st_size and tarfile.is_tarfile(path):
        return Tar(path)
    raise BadSource(f"{path} is neither a folder nor a zip nor a tar; give one of these with --data.path")


def _instead(path: Path, names: list[str]) -> str:
    """Returns what to do about a folder without images, by what it does hold."""
    archives = sorted(name for name in names if name.lower().endswith(_ARCHIVES))
    if any(_IDX in name for name in names):
        return f"found MNIST's own files, use --data MNIST --data.path {path}"
    if any(PurePosixPath(name).name == "data_batch_1" for name in names):
        return f"found CIFAR-10's own files, use --data CIFAR10 --data.path {path}"
    if archives:
        return f"found {', '.join(archives[:3])}, use --data.path {path / archives[0]}"
    return f"known endings are {' '.join(sorted(EXTENSIONS))}"


def _split_folders(names: list[str]) -> tuple[list[str] | None, list[str]]:
    """Returns the split of each image, None where not all lie in one, and the names below the splits."""
    skip = len(_common_folder(names).parts)
    inside = [PurePosixPath(name).parts[skip:] for name in names]
    parts = [SPLIT_FOLDERS.get(way[0].lower(), "") if len(way) > 1 else "" for way in inside]
    if "" in parts or "train" not in parts or len(set(parts)) == 1:
        return None, names
    return parts, [str(PurePosixPath(*way[1:])) for way in inside]


def _class_folders(names: list[str]) -> tuple[list[int] | None, list[str]]:
    """Returns labels and class names where every image lies one level below the common folder."""
    skip = len(_common_folder(names).parts)
    folders = [PurePosixPath(name).parts[skip:-1] for name in names]
    classes = sorted({folder[0] for folder in folders if folder})
    if len(classes) < 2 or any(len(folder) != 1 for folder in folders) or SPLIT_FOLDERS.keys() >= {*classes}:
        return None, []
    number = {name: label for label, name in enumerate(classes)}
    return [number[folder[0]] for folder in folders], classes


def _common_folder(names: list[str]) -> PurePosixPath:
    if not names:
        return PurePosixPath()
    parents = [PurePosixPath("/", name).parent for name in names]
    return PurePosixPath(posixpath.commonpath(parents)).relative_to("/")


def _images_by_name(members: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the images among an archive's members, sorted; of two with one name the later counts."""
    images = {str(PurePosixPath(name)): member for name, member in members if _is_image(name)}
    return dict(sorted(images.items()))


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    # Dot files and __MACOSX hold what a file manager left behind, under the names of the images.
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in EXTENSIONS and not hidden


def _refuse_hostile(archive: Path, name: str, size: int, special: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise BadSource(f"{archive} is refused: its member {name!r} points outside of the archive")
    if special:
        raise BadSource(f"{archive} is refused: its member {name!r} is a link or a device, not a file")
    if size > MAX_FILE_BYTES:
        raise BadSource(f"{archive} is refused: its member {name!r} claims to hold {size / 2**20:.0f} MiB")


def _is_file(member: zipfile.ZipInfo) -> bool:
    return stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)


def _is_plain_tar(path: Path) -> bool:
    try:
        tarfile.open(path, "r:").close()
    except tarfile.TarError:
        return False
    return True


def _size_and_time(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        return f"{error.strerror}"
    return f"{status.st_size}\0{status.st_mtime_ns}"


def _hash(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def siblings(path: Path) -> dict[str, Path]:
    """Returns what lies beside a file or folder whose name begins with "train" as "val" and "test"."""
    if not path.name.startswith("train"):
        return {}
    beside = {name: path.with_name(name + path.name[len("train") :]) for name in ("val", "test")}
    return {name: other for name, other in beside.items() if other.exists()}
