"""Images, video and sound of a row: from a path, bytes or arrays, never from the network."""

from __future__ import annotations

import base64
import binascii
import io
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..fusion.checkpoint.companions import lies_inside
from ..fusion.errors import DataError, installs


def _content(source: Any, folder: Path, what: str, kind: str) -> bytes:
    """Return the bytes of a file that a row names or holds."""
    if isinstance(source, Mapping):  # as `datasets` stores images and sound
        source = source.get("bytes") or source.get("path")
    if isinstance(source, (bytes, bytearray)):
        return bytes(source)
    if not isinstance(source, str) or not source:
        raise DataError(f"{what} has no {kind} that can be read: expected a path or bytes")
    if source.startswith("data:"):
        try:
            return base64.b64decode(source.partition(",")[2], validate=True)
        except (binascii.Error, ValueError) as error:
            raise DataError(f"the {kind} of {what} is a damaged data URL") from error
    try:
        return _inside(source, folder, what, kind).read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{what} names the {kind} `{source}`: {getattr(error, 'strerror', None) or error}") from error


def _inside(source: str, folder: Path, what: str, kind: str) -> Path:
    """Return the path of a file that a row names, which must lie in the folder that rows may read from."""
    source = source.removeprefix("file://")
    if "://" in source:
        raise DataError(f"{what} names `{source}`, and sculpt does not use the network", hint="download it first")
    path = folder / source
    if not lies_inside(path, folder):
        raise DataError(
            f"{what} names the {kind} `{source}`, which is outside `{folder}`",
            hint="`media` names the folder that rows may read from",
            options=["media"],
        )
    if path.exists() and not path.is_file():
        raise DataError(f"{what} names the {kind} `{source}`, which is not a regular file")
    return path


def load_image(source: Any, folder: Path, what: str) -> Any:
    """Return an RGB image, turned upright as its EXIF says.

    Raises:
        DataError: It cannot be read, or lies on the network.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise DataError("reading images needs Pillow", hint=installs("images")) from error
    try:
        if not isinstance(source, Image.Image):
            source = Image.open(io.BytesIO(_content(source, folder, what, "image")))
        return ImageOps.exif_transpose(source).convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"the image of {what} cannot be decoded: {error}") from error


def load_audio(source: Any, sampling_rate: int, folder: Path, what: str) -> np.ndarray:
    """Return mono sound in float32, [-1, 1], from a 16-bit WAV file or from an array at the right rate.

    Raises:
        DataError: It cannot be read, or is at another sampling rate.
    """
    if isinstance(source, (list, np.ndarray)) or (isinstance(source, Mapping) and source.get("array") is not None):
        array = source["array"] if isinstance(source, Mapping) else source
        rate = source.get("sampling_rate", sampling_rate) if isinstance(source, Mapping) else sampling_rate
        try:
            sound = np.asarray(array, np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(f"the sound of {what} is not an array of numbers") from error
    else:
        content = _content(source, folder, what, "sound")
        try:
            with wave.open(io.BytesIO(content)) as file:
                rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
                frames = file.readframes(file.getnframes())
        except (wave.Error, EOFError) as error:
            raise DataError(f"the sound of {what} is not a WAV file: {error}") from error
        if width != 2:
            raise DataError(f"the sound of {what} has {8 * width} bits a sample; only 16 are read")
        sound = np.frombuffer(frames, "<i2").astype(np.float32).reshape(-1, channels).mean(1) / 32768
    if rate != sampling_rate:
        raise DataError(f"the sound of {what} is at {rate} Hz, the model expects {sampling_rate}")
    return sound


def load_video(source: Any, folder: Path, what: str) -> Any:
    """Return the frames of a video: of a list of images an array (frames, height, width, 3), of a file its path.

    A file is decoded by the model's processor, which may need a library for it.

    Raises:
        DataError: A frame cannot be read, frames differ in size, or the file lies on the network or is not there.
    """
    if isinstance(source, np.ndarray):
        return source
    if isinstance(source, list):
        frames = [np.asarray(load_image(frame, folder, what)) for frame in source]
        if len({frame.shape for frame in frames}) != 1:
            raise DataError(f"the frames of the video of {what} differ in size, or there are none")
        return np.stack(frames)
    if not isinstance(source, str) or source.startswith("data:"):
        raise DataError(f"{what} has no video that can be read: expected a path or a list of images")
    path = _inside(source, folder, what, "video")
    if not path.exists():
        raise DataError(f"{what} names the video `{source}`: No such file or directory")
    return str(path)
