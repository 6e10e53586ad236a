"""Sounds of the general set: made here, as no more than a few lines say what each is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RATE = 16_000  # samples a second, as far as pitch is concerned; models are given them at their own
SECONDS = 3
QUESTIONS = (
    "What do you hear?",
    "Describe this sound in one sentence.",
    "Is this speech, music or something else?",
)

Signal = np.ndarray


def _time() -> Signal:
    return np.arange(RATE * SECONDS) / RATE


def _tone(hertz: float | Signal, time: Signal) -> Signal:
    return np.sin(2 * np.pi * hertz * time)


def _noise(seed: int) -> Signal:
    return np.random.default_rng(seed).standard_normal(RATE * SECONDS)


def _smoothed(signal: Signal, width: int) -> Signal:
    return np.convolve(signal, np.hanning(width + 2)[1:-1], mode="same")


def _notes(*hertz: float) -> Signal:
    """Return notes one after another, each struck and fading."""
    time = np.arange(RATE * SECONDS // len(hertz)) / RATE
    return np.concatenate([np.exp(-4 * time) * (_tone(f, time) + 0.4 * _tone(2 * f, time)) for f in hertz])


def _clicks(every: float) -> Signal:
    """Return short clicks, one in so many seconds."""
    return np.exp(-200 * (_time() % every)) * _noise(1)


def _vowels() -> Signal:
    """Return a voice that sings two vowels: pulses of the throat through the resonances of a mouth."""
    time = _time()
    found = np.zeros_like(time)
    for start, formants in ((0.0, (730, 1090, 2440)), (SECONDS / 2, (270, 2290, 3010))):
        since = np.where((time >= start) & (time < start + SECONDS / 2), (time - start) % (1 / 120), np.inf)
        found += sum(np.exp(-90 * since) * np.sin(2 * np.pi * f * np.minimum(since, 1)) for f in formants)
    return found


# By name, for the reader.
SOUNDS: dict[str, Callable[[], Signal]] = {
    "a tone": lambda: _tone(440, _time()),
    "a rising tone": lambda: _tone(200 + 250 * _time(), _time()),
    "a chord": lambda: _tone(262, _time()) + _tone(330, _time()) + _tone(392, _time()),
    "a siren": lambda: _tone(600, _time() + 0.05 * np.sin(2 * np.pi * 0.8 * _time())),
    "a telephone": lambda: (_tone(440, _time()) + _tone(480, _time())) * (_time() % 1.5 < 1),
    "a melody": lambda: _notes(262, 294, 330, 349, 392, 392),
    "a bell": lambda: _notes(880),
    "a clock": lambda: _clicks(0.5),
    "an engine": lambda: _clicks(0.03) + 0.3 * _tone(55, _time()),
    "rain": lambda: _noise(2),
    "wind": lambda: _smoothed(_noise(3), 64) * (1 + 0.6 * np.sin(2 * np.pi * 0.5 * _time())),
    "a voice": _vowels,
}


def sound(name: str) -> np.ndarray:
    """Return a sound, float32 in [−0.5, 0.5]: the same bits every time on one machine."""
    found = np.asarray(SOUNDS[name](), np.float64)
    return (0.5 * found / np.abs(found).max()).astype(np.float32)
