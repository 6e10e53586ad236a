"""Images and sound of a row: from a path, bytes or arrays, never from the network."""

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
from ..fusion.errors import DataError


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
    if "://" in source:
        raise DataError(f"{what} names `{source}`, and sculpt does not use the network", hint="download it first")
    try:
        path = folder / source
        if not lies_inside(path, folder):
            raise DataError(
                f"{what} names the {kind} `{source}`, which lies outside `{folder}`",
                hint="`media` names the folder that rows may read from",
                options=["media"],
            )
        if path.exists() and not path.is_file():
            raise DataError(f"{what} names the {kind} `{source}`, which is no regular file")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{what} names the {kind} `{source}`: {getattr(error, 'strerror', None) or error}") from error


def load_image(source: Any, folder: Path, what: str) -> Any:
    """Return an RGB image.

    Raises:
        DataError: It cannot be read, or lies on the network.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DataError("reading images needs Pillow", hint="`pip install 'checkpoint-sculpt[images]'`") from error
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    content = _content(source, folder, what, "image")
    try:
        return Image.open(io.BytesIO(content)).convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"the image of {what} cannot be decoded: {error}") from error


def load_audio(source: Any, sampling_rate: int, folder: Path, what: str) -> np.ndarray:
    """Return mono sound in float32, [-1, 1], from a 16-bit WAV file or from an array at the right rate.

    Raises:
        DataError: It cannot be read, or is at another sampling rate.
    """
    if isinstance(source, list) or (isinstance(source, Mapping) and source.get("array") is not None):
        array = source if isinstance(source, list) else source["array"]
        rate = sampling_rate if isinstance(source, list) else source.get("sampling_rate", sampling_rate)
        sound = np.asarray(array, np.float32)
    else:
        content = _content(source, folder, what, "sound")
        try:
            with wave.open(io.BytesIO(content)) as file:
                rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
                frames = file.readframes(file.getnframes())
        except (wave.Error, EOFError) as error:
            raise DataError(f"the sound of {what} is no WAV file: {error}") from error
        if width != 2:
            raise DataError(f"the sound of {what} has {8 * width} bits a sample; only 16 are read")
        sound = np.frombuffer(frames, "<i2").astype(np.float32).reshape(-1, channels).mean(1) / 32768
    if rate != sampling_rate:
        raise DataError(f"the sound of {what} is at {rate} Hz, the model expects {sampling_rate}")
    return sound
