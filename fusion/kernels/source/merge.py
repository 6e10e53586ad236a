"""The kernels of chains: keep some deltas of each model, by rank or by chance, and merge them."""

from __future__ import annotations

from .blocks import SIZE, end_of, figures, last_kept, word
from .compiler import inlined
from .elements import decoded, encoded, f32, i32, u32, u64

WEIGHTED = u64(1)  # the election; 0 is none, 2 unweighted
EVERYWHERE = u64(2)


@inlined
def _in_range(magnitude, i, least, least_end, most, most_end):
    above = (magnitude > least) | ((magnitude == least) & (i < least_end))
    outlier = (magnitude > most) | ((magnitude == most) & (i < most_end))
    return above & (not outlier)


def trim_one(
    base, tuned, out, count, start, least, least_place, most, most_place, factor, weight, divisor, election,
    scale, whole, magnitudes, distances, lanes, rows, num_blocks,
):  # fmt: skip
    """Put `base + scale·(weight·factor·δ)/divisor` where δ is within range, else the base, into `out`.

    Args:
        least_place, most_place: The first place that a score equal to the limit is not selected at.
        whole: Whether the kept take the tuned model's bits.
    """
    least, most, factor, weight, divisor, scale = (
        f32(least), f32(most), f32(factor), f32(weight), f32(divisor), f32(scale),
    )  # fmt: skip
    like, zero = out[0], f32(0)
    counts = (weight != zero) | (election != u64(0))
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        least_end, most_end = end_of(least_place, start + at, size), end_of(most_place, start + at, size)
        kept_count, nonzero_count = i32(0), i32(0)
        for i in range(size):
            b = decoded(base[at + i])
            t = decoded(tuned[at + i])
            delta = t - b
            magnitude = abs(delta)
            within = _in_range(magnitude, i32(i), least, least_end, most, most_end)
            d = factor * (delta if within else zero)
            weighted = weight * d
            vote = weighted if election == WEIGHTED else d
            part = ((vote > zero) | (vote < zero)) & counts
            fused = b + scale * (weighted / divisor)
            fused = t if whole else fused
            stored = encoded(fused if part else b, like)
            out[at + i] = stored
            magnitudes[i] = magnitude
            distances[i] = abs(decoded(stored) - b)
            kept_count = i32(kept_count + i32(part))
            nonzero_count = i32(nonzero_count + i32(delta != zero))
        figures(at, size, kept_count, nonzero_count, i32(0), magnitudes, distances, lanes, rows, num_blocks)


def trim_into(base, tuned, count, start, least, least_place, most, most_place, factor, is_first, kept, magnitudes):
    """Put `factor·δ` where δ is within range, else zero, into `kept`; add |δ| to `magnitudes`."""
    least, most, factor = f32(least), f32(most), f32(factor)
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        least_end, most_end = end_of(least_place, start + at, size), end_of(most_place, start + at, size)
        for i in range(size):
            delta = decoded(tuned[at + i]) - decoded(base[at + i])
            magnitude = abs(delta)
            within = _in_range(magnitude, i32(i), least, least_end, most, most_end)
            kept[at + i] = factor * (delta if within else f32(0))
            magnitudes[at + i] = magnitude if is_first else magnitudes[at + i] + magnitude


def drop_into(base, tuned, count, start, key_low, key_high, keep, factor, is_first, kept, magnitudes):
    """Put `factor·δ` where an element is kept, else zero, into `kept`; add |δ| to `magnitudes`."""
    key_high, keep, factor = u32(key_high), f32(keep), f32(factor)
    last, some = last_kept(keep), keep > f32(0)
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        first = u32(u32(start + at) + u32(key_low))
        for i in range(size):
            delta = decoded(tuned[at + i]) - decoded(base[at + i])
            chosen = (word(u32(first + u32(i)), key_high) <= last) & some
            kept[at + i] = factor * (delta if chosen else f32(0))
            magnitudes[at + i] = abs(delta) if is_first else magnitudes[at + i] + abs(delta)


def merge(
    base, sole, out, count, kept, num_models, weights, shares, election, normalize, divisor, scale, whole,
    all_magnitudes, votes, merged, divisors, parts, magnitudes, distances, lanes, rows, num_blocks,
):  # fmt: skip
    """Put `base + scale·merged` where a model has a part, else the base, into `out`; see `transforms.merge.Merging`.

    Args:
        sole: The tuned model whose bits the kept take if `whole`, or all take if it is `EVERYWHERE`.
        kept: A row of `count` deltas a model, zero where dropped.
        shares: By model, what it adds to the divisor where it agrees.
        divisor: Of all elements where there is no election; 0 for none.
        votes, merged, divisors, parts, magnitudes, distances: Room for a block each.
    """
    divisor, scale, like, zero, one = f32(divisor), f32(scale), out[0], f32(0), f32(1)
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        for i in range(size):
            votes[i] = zero
            parts[i] = zero
        if election:
            for k in range(num_models):
                row, weight = k * count + at, weights[k]
                for i in range(size):
                    delta = kept[row + i]
                    votes[i] = votes[i] + (weight * delta if election == WEIGHTED else delta)
            for i in range(size):
                votes[i] = one if votes[i] >= zero else -one
        for k in range(num_models):
            row, weight, share, is_first = k * count + at, weights[k], shares[k], k == u64(0)
            for i in range(size):
                delta = kept[row + i]
                signed = weight * delta if election == WEIGHTED else delta
                part = signed * votes[i] > zero if election else (delta != zero) & (weight != zero)
                mask = one if part else zero
                term = weight * (delta * mask) if election else weight * delta
                merged[i] = term if is_first else merged[i] + term
                divisors[i] = share * mask if is_first else divisors[i] + share * mask
                parts[i] = one if part else parts[i]
        kept_count, nonzero_count = i32(0), i32(0)
        for i in range(size):
            b = decoded(base[at + i])
            part = parts[i] != zero
            by = divisors[i] if election else divisor
            by = one if by == zero else by
            value = merged[i] / by if normalize else merged[i]
            fused = b + scale * value
            fused = decoded(sole[at + i]) if whole else fused
            stored = encoded(fused if part | (whole == EVERYWHERE) else b, like)
            out[at + i] = stored
            magnitude = all_magnitudes[at + i]
            magnitudes[i] = magnitude
            distances[i] = abs(decoded(stored) - b)
            nonzero = magnitude != zero
            kept_count = i32(kept_count + i32(part & nonzero))
            nonzero_count = i32(nonzero_count + i32(nonzero))
        figures(at, size, kept_count, nonzero_count, i32(0), magnitudes, distances, lanes, rows, num_blocks)
