"""Where data come from: a file in the cache, else the official files, else what stands in for them.

Each data set has an ordered list of sources, and what is loaded says which one it came from:

1. the cache, ``$L2L_DATA_DIR`` or ``data/cache``: one ``.npz`` or ``.safetensors`` file for each data set;
2. the official files, downloaded and put into the cache;
3. an embedded stand-in, made of what pip has installed anyway. It always works and has a title of its own.

The checksum is over the arrays, so it does not matter who wrote the file. One in the cache that is truncated or was
tampered with is named and downloaded anew.

Of some only the archive's checksum is known, not that of its arrays. What came from a verified archive is therefore
sealed: its file holds the checksum that the arrays had then. A seal tells damage, but not a forger who makes a new one.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from l2l_kit.errors import DataError
from l2l_kit.extras import needs
from l2l_kit.paths import DATA, user_path

Variant = Literal["auto", "full", "embedded"]
Array = npt.NDArray[np.uint8]
Arrays = Mapping[str, npt.NDArray[Any]]

_ANSWER_SECONDS = 3.0
_READ_SECONDS = 30.0
_RETRIES = 2
_SEAL = "sha256"
_MOST = 2**29
"""Bytes above which an .npz file is not even unpacked: a few kB of it can say that they are gigabytes."""


@dataclass(frozen=True)
class DataSet:
    """How a data set is had.

    Attributes:
        title: name of the whole, as figures write it.
        make: what `load` gives, from arrays, variant, title, source and classes.
        classes: words for its classes; none where there are no labels.
        checksum: SHA-256 over its arrays, see `checksum`; empty if it is not known, and files in the cache are sealed.
        copies: checksums of other packings that count as the data set, and what they are.
        official: where the official files are.
        files: their names and checksums, as pooch wants them; None where `read` checks.
        read: from the folder with the official files to the arrays; colour images have their channels last.
        stand_in: name of what stands in for it.
        embedded: makes the stand-in's arrays.
        embedded_in: the package that the stand-in comes from.
        embedded_classes: words for the stand-in's classes.
        suffix: of its file in the cache, ".npz" or ".safetensors".
        on_request: makes its arrays some other way; asked by `fetch` alone, where the official files cannot be had.
        requested_from: where those come from.
    """

    title: str
    make: Callable[[Arrays, Variant, str, str, tuple[str, ...]], Any]
    classes: tuple[str, ...]
    checksum: str
    copies: Mapping[str, str]
    official: str
    files: Mapping[str, str | None]
    read: Callable[[Path], Arrays]
    stand_in: str
    embedded: Callable[[], Arrays]
    embedded_in: str
    embedded_classes: tuple[str, ...]
    suffix: Literal[".npz", ".safetensors"] = ".npz"
    on_request: Callable[[], Arrays] | None = None
    requested_from: str = ""


@dataclass(frozen=True)
class Status:
    """What the cache has of a data set.

    Attributes:
        name: of the data set.
        title: what figures and tables call it.
        path: where its file is, or would be.
        state: "verified" if its checksum holds, "damaged" if not, "missing" if there is no file.
        damage: what is wrong with the file; empty unless it is damaged.
        packing: what the file holds, if that is not the official images but a known copy.
        official: where the official files are.
        stand_in: what is used where neither is to be had.
    """

    name: str
    title: str
    path: Path
    state: Literal["verified", "damaged", "missing"]
    damage: str
    packing: str
    official: str
    stand_in: str


def cache_folder() -> Path:
    """Where data sets are kept: ``$L2L_DATA_DIR``, else ``data/cache``."""
    return user_path(os.environ.get("L2L_DATA_DIR") or DATA / "cache")


def unwritable(path: Path, error: OSError) -> str:
    """What to do about a file in the cache that cannot be written."""
    return f"{path}: cannot be written ({error}). Set L2L_DATA_DIR to a folder that can."


def checksum(arrays: Arrays) -> str:
    """SHA-256 over names, types, shapes and bytes of the arrays."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key}{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def read(path: Path, data_set: DataSet) -> tuple[Arrays | None, str]:
    """What a file in the cache holds.

    Returns:
        The arrays and what packing they are (empty for the official one); or None and what is wrong with the file
        (nothing is if there is no such file).
    """
    try:
        arrays, seal = _unpacked(path)
        known = {data_set.checksum or seal: "", **data_set.copies}
        if (found := checksum(arrays)) in known:
            return arrays, known[found]
        return None, f"{path}: its content is not known to be {data_set.title} (the checksum differs)."
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except Exception as error:  # a damaged file can fail in any way: zlib.error, TypeError, MemoryError, ...
        return None, f"{path}: truncated, damaged or not readable ({error})."


def _unpacked(path: Path) -> tuple[dict[str, npt.NDArray[Any]], str]:
    """The arrays in a file, and its seal."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="np") as tensors:
            seal = (tensors.metadata() or {}).get(_SEAL, "")
            return {name: tensors.get_tensor(name) for name in tensors.keys()}, seal  # noqa: SIM118  (not a dict)
    # Opened here, because numpy leaves a truncated file open.
    with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
        if (size := sum(member.file_size for member in file.zip.infolist())) > _MOST:
            raise ValueError(f"it would take {size / 1e9:.1f} GB")
        arrays = dict(file)
    return arrays, str(arrays.pop(_SEAL, ""))


def packed(arrays: Arrays, data_set: DataSet) -> bytes:
    """What a file in the cache is to hold."""
    seal = {} if data_set.checksum else {_SEAL: checksum(arrays)}
    if data_set.suffix == ".safetensors":
        return save(dict(arrays), seal)
    content = io.BytesIO()
    sealed: Arrays = {**arrays, **{name: np.array(text) for name, text in seal.items()}}
    np.savez(content, **sealed)  # type: ignore[arg-type]  # mypy sees the option allow_pickle among them
    return content.getvalue()


def download(data_set: DataSet, path: Path) -> Arrays:
    """The arrays from the official files, checked.

    Args:
        data_set: what to download.
        path: the file in the cache that is missing; the caller writes it.

    Raises:
        DataError: if there is no network, or what came is not what was expected.
    """
    with needs("lessons"):
        import pooch
    from tqdm.auto import tqdm

    if problem := _unreachable(data_set.official + next(iter(data_set.files))):
        raise DataError(
            f"{data_set.title} is not in {path.parent}, and {data_set.official} cannot be reached ({problem}). "
            f"Run `l2l fetch {path.stem}` where there is a network and copy {path.name} there, or set L2L_DATA_DIR to "
            "the folder that has it."
            + (f" `l2l fetch {path.stem}` gets it from {data_set.requested_from}, too." * bool(data_set.on_request))
        )
    pooch.get_logger().setLevel("WARNING")  # the bar says it, and without temporary paths
    quiet = bool(os.environ.get("TQDM_DISABLE"))
    try:
        # Official files never touch the cache: whatever interrupts this leaves nothing there.
        with tempfile.TemporaryDirectory(prefix="l2l-") as folder:
            files = pooch.create(folder, data_set.official, registry=dict(data_set.files), retry_if_failed=_RETRIES)
            for name in data_set.files:
                # pooch sets the total; until then it must not be 0 or None, which would make the bar false.
                with tqdm(desc=name, total=1, unit="B", unit_scale=True, disable=quiet) as bar:
                    files.fetch(name, downloader=pooch.HTTPDownloader(bar, timeout=(_ANSWER_SECONDS, _READ_SECONDS)))
            arrays = data_set.read(Path(folder))
    except (OSError, ValueError) as error:  # the network's errors are OSErrors; a wrong checksum is a ValueError
        raise DataError(f"{data_set.title} could not be downloaded from {data_set.official}: {error}") from error
    if data_set.checksum and checksum(arrays) != data_set.checksum:
        raise DataError(f"{data_set.official} holds something else than {data_set.title}: the checksum differs.")
    return arrays


def request(data_set: DataSet, path: Path) -> Arrays:
    """The arrays from the official files or, if those cannot be had, made the other way, if there is one.

    Raises:
        DataError: if neither can be had.
    """
    try:
        return download(data_set, path)
    except DataError:
        if data_set.on_request is None:
            raise
        arrays = data_set.on_request()
    if checksum(arrays) not in data_set.copies:
        raise DataError(f"{data_set.requested_from} holds something else than expected: the checksum differs.")
    return arrays


def _unreachable(url: str) -> str:
    """Why a server does not answer, within a few seconds; empty if it does, whatever the answer."""
    import pooch

    ask = pooch.HTTPDownloader(timeout=_ANSWER_SECONDS)
    outcome = f"no answer in {2 * _ANSWER_SECONDS:.0f} s"

    def asking() -> None:
        nonlocal outcome
        try:
            ask(url, None, None, check_only=True)
            outcome = ""
        except Exception as error:  # a broken proxy or certificate setting can fail in any way
            outcome = type(error).__name__

    # In a thread of its own, because the time-out bounds neither the look-up of the server's name nor the sum over its
    # addresses. A daemon, so that a look-up that hangs does not keep the process from ending.
    thread = threading.Thread(target=asking, daemon=True)
    thread.start()
    thread.join(2 * _ANSWER_SECONDS)
    return outcome
