"""Where statistics came from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where statistics came from; what is needed to repeat them.

    Attributes:
        model: Name of the tuned model's folder.
        model_fingerprint: `Checkpoint.fingerprint` of the tuned model.
        model_class: The transformers class that ran.
        data: Name of the calibration data.
        data_digest: Digest of the encoded samples, in the order in which they ran.
        num_samples: Samples that ran.
        num_tokens: Real tokens of all samples; padding never counts.
        max_length: Longest sample in tokens.
        seed: What the choice of samples was made with.
        dtype: What the forward ran in; sums are always float64.
        all_experts: Whether every token was sent to every expert.
        kinds: (kind, tokens of it), sorted, where the data are of several kinds.
        kind_samples: (kind, samples of it), sorted; they are the first of those that the seed draws.
        versions: (package, version), sorted.
    """

    model: str
    model_fingerprint: str
    model_class: str
    data: str
    data_digest: str
    num_samples: int
    num_tokens: int
    max_length: int
    seed: int
    dtype: str
    all_experts: bool = False
    kinds: tuple[tuple[str, int], ...] = ()
    kind_samples: tuple[tuple[str, int], ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
