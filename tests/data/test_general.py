"""The general set that ships, and samples of it."""

from __future__ import annotations

import importlib.util
import re
import sys
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import sculpt
import torch
from sculpt.data import general
from sculpt.data.example import Example
from sculpt.data.fit import Fit
from sculpt.data.rows import Rows, open_rows
from sculpt.data.sampling import digest_of, draw_samples, tokens_by_kind
from sculpt.fusion.errors import DataError
from sculpt.fusion.rows import RowOptions

ROOT = Path(sculpt.__file__).parent
BUILDER = ROOT / "benchmarks" / "general_set"


class Characters:
    """Encodes a character as a token, up to a length."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.fit, self.options = Fit(length=max_length), RowOptions()

    def examples(self, row: object) -> list[Example]:
        ids = [min(ord(c), 255) for c in row.text("text")][: self.max_length]  # pyright: ignore[reportAttributeAccessIssue]
        return [Example.of_tokens(ids, ids)]


def drawn(count: int, max_length: int, *, kinds: tuple[str, ...] = (), seed: int = 0) -> list[Example]:
    return draw_samples(open_rows("general", kinds=kinds), Characters(max_length), count=count, seed=seed)  # pyright: ignore[reportArgumentType]


def test_every_kind_has_texts_that_differ() -> None:
    assert len(general.kinds()) == 28
    for kind in general.kinds():
        texts = general.texts(kind)
        assert len(texts) >= 8
        assert len(set(texts)) == len(texts)
        assert all(text.strip() for text in texts)


def test_the_wheel_holds_a_megabyte_of_it_at_most_and_every_source_is_named() -> None:
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(ROOT / "configs" / "general")
    assert packed.tell() < 1_000_000
    sources = (ROOT / "configs" / "general" / "SOURCES.md").read_text(encoding="utf-8")
    assert all(f"`{kind}`" in sources for kind in general.kinds())
    used = re.findall(r'^    "([^"]+)": ', (BUILDER / "packages.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(used) > 30
    assert all(f"`{name}`" in sources for name in used)


def test_questions_have_no_answers_and_several_languages() -> None:
    asked = general.texts("questions")
    assert len(asked) >= 150
    assert sum(not text.isascii() for text in asked) > 30
    assert max(map(len, asked)) < 200


def test_nothing_is_in_the_frames_that_the_benchmark_of_forgetting_scores() -> None:
    scored = re.compile(r"^(Question|Sentence|Tags|Sounds|Word): ", re.MULTILINE)
    found = [text for kind in general.kinds() for text in general.texts(kind) if scored.search(text)]
    assert not found


@pytest.fixture
def builder() -> Iterator[object]:
    """Give the script that writes the set; what it imports is its folder's own."""
    before, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(BUILDER))
    spec = importlib.util.spec_from_file_location("build_general_set", BUILDER / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_what_is_generated_is_generated_again(builder: object) -> None:
    for kind in builder.WRITTEN:  # pyright: ignore[reportAttributeAccessIssue]
        assert tuple(builder.rows_of(kind)) == general.texts(kind), kind  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("count", "max_length"), [(128, 512), (32, 256), (7, 40)])
def test_each_kind_has_the_same_number_of_tokens(count: int, max_length: int) -> None:
    samples = drawn(count, max_length)
    counts = tokens_by_kind(samples)
    assert counts == dict.fromkeys(general.kinds(), count * max_length // 28)
    assert all(sample.num_tokens <= max_length for sample in samples)


def test_no_more_texts_are_read_than_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(Rows, "row", lambda rows, number, row=Rows.row: read.append(number) or row(rows, number))
    samples = drawn(20, 60)
    assert len(read) == len(samples)


def test_an_encoder_decoder_keeps_half_of_what_is_cut_in_each() -> None:
    inputs = {key: torch.arange(10)[None] for key in ("input_ids", "attention_mask", "decoder_input_ids")}
    cut = Example(inputs=inputs, tokens=inputs["decoder_input_ids"], answers=inputs["decoder_input_ids"]).cut(7)
    assert {key: value.tolist() for key, value in cut.inputs.items()} == {key: [[0, 1, 2]] for key in inputs}
    assert cut.num_tokens == 6
    assert cut.tokens.tolist() == cut.answers.tolist() == [[0, 1, 2]]
    assert cut.cut(6) is cut


def test_the_choice_goes_by_the_seed_and_a_smaller_one_begins_a_larger_one() -> None:
    assert digest_of(drawn(20, 60)) == digest_of(drawn(20, 60))
    assert digest_of(drawn(20, 60)) != digest_of(drawn(20, 60, seed=1))
    small, large = drawn(20, 60, kinds=("logs",)), drawn(40, 60, kinds=("logs",))
    assert [sample.tokens.tolist() for sample in small[:-1]] == [
        sample.tokens.tolist() for sample in large[: len(small) - 1]
    ]


def test_kinds_are_chosen_by_name_and_others_are_refused_with_the_list() -> None:
    assert set(tokens_by_kind(drawn(4, 60, kinds=("csv", "novels")))) == {"csv", "novels"}
    with pytest.raises(DataError, match="no kind `prose`") as caught:
        open_rows("general", kinds=("csv", "prose"))
    assert caught.value.hint is not None
    assert "novels" in caught.value.hint


def test_a_kind_that_is_too_small_gives_all_that_it_has_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    texts = ["short", "a" * 50]
    rows = Rows(
        name="two", count=2, read=lambda number: {"text": texts[number]}, folder=Path(),
        kinds={"short": range(1), "long": range(1, 2)},
    )  # fmt: skip
    samples = draw_samples(rows, Characters(20), count=2, seed=0)  # pyright: ignore[reportArgumentType]
    assert tokens_by_kind(samples) == {"short": 5, "long": 20}
    assert "`short` of the set `two` has 5 tokens, its share is 20" in caplog.text


def test_a_folder_of_the_same_name_is_named_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "general").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="a folder too"):
        open_rows("general")
    with pytest.raises(DataError, match="holds neither files of rows nor images"):
        open_rows((tmp_path / "general").absolute())


def test_kinds_are_recorded_and_added_up(tmp_path: Path) -> None:
    from sculpt.hessian.store.diagonal import DiagonalHessian
    from sculpt.hessian.store.provenance import Provenance

    about = {
        "model": "m", "model_fingerprint": "f", "model_class": "c", "data": "general", "data_digest": "d",
        "num_samples": 1, "num_tokens": 5, "max_length": 8, "seed": 0, "dtype": "float32",
    }  # fmt: skip
    first = DiagonalHessian(curvatures={}, provenance=Provenance(**about, kinds=(("csv", 3), ("logs", 2))))
    second = DiagonalHessian(curvatures={}, provenance=Provenance(**about, kinds=(("csv", 5),)))
    merged = first.merge([second])
    assert merged.provenance.kinds == (("csv", 8), ("logs", 2))
    merged.save(tmp_path / "merged.safetensors")
    assert DiagonalHessian.load(tmp_path / "merged.safetensors").provenance.kinds == merged.provenance.kinds
