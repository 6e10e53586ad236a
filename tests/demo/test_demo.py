"""The whole story on a model so tiny that it takes seconds; with no network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sculpt.cli.demo import show
from sculpt.demo import setup as setting_up
from sculpt.demo import tiny
from sculpt.demo.fetch import FetchError
from sculpt.demo.result import DemoResult
from sculpt.demo.run import RESULT, run_demo
from sculpt.demo.setup import Silence
from sculpt.fusion.errors import DeviceError, OutputError

SMALL = tiny.TinySize(hidden_size=48, layers=2, heads=2, steps=120, batch_size=16)
SMALLEST = tiny.TinySize(hidden_size=8, layers=1, heads=1, steps=1, batch_size=2)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine take ten times as long as one alone."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "TinySize", lambda: SMALL)
        folder = tmp_path_factory.mktemp("demo")
        out = folder / "out"
        return run_demo(out, folder / "cache", tiny=True, steps=40, seed=0, device="cpu"), out


def test_every_model_of_the_story_is_scored(story) -> None:
    result, _ = story
    assert [row.name for row in result.rows] == [
        "base",
        "fine-tuned",
        "interpolation 0.5",
        "DARE λ=1",
        "DARE λ=0.5",
        "AdaDARE-γ γ=0.5",
        "two-sided λ=1",
    ]
    for row in result.rows:
        assert 0 <= row.target <= 100
        assert 0 <= row.general <= 100
        assert row.perplexity > 1


def test_fine_tuning_helps_the_target_and_costs_general_ability(story) -> None:
    base, tuned = story[0].rows[:2]
    assert tuned.target > base.target
    assert tuned.general < base.general
    assert tuned.perplexity > base.perplexity


def test_interpolation_lies_between_base_and_fine_tune_in_perplexity(story) -> None:
    base, tuned, interpolated = story[0].rows[:3]
    assert base.perplexity < interpolated.perplexity < tuned.perplexity


def test_every_model_can_be_loaded_from_its_folder(story) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for row in story[0].rows:
        AutoTokenizer.from_pretrained(row.path)
        assert AutoModelForCausalLM.from_pretrained(row.path).num_parameters() > 0


def test_the_result_is_left_with_the_checkpoints(story) -> None:
    result, out = story
    kept = json.loads((out / RESULT).read_text(encoding="utf-8"))
    assert kept == json.loads(json.dumps(result.as_json()))


def test_a_folder_of_something_else_is_refused(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(OutputError, match="is not of an earlier demo"):
        run_demo(tmp_path, tmp_path / "cache", tiny=True, seed=0, device="cpu")


@pytest.mark.parametrize("device", ["no-such-device", "cuda:99"])
def test_a_device_that_torch_cannot_use_is_refused_in_one_sentence(tmp_path, device: str) -> None:
    with pytest.raises(DeviceError, match=f"the device `{device}` cannot be used: .*[^.]$"):
        run_demo(tmp_path / "out", tmp_path / "cache", tiny=True, seed=0, device=device)
    assert not list(tmp_path.iterdir())


def test_the_table_names_every_model_and_how_sure_it_is(story, capsys) -> None:
    show(*story)
    printed = capsys.readouterr()
    assert printed.err == ""
    assert all(row.name in printed.out for row in story[0].rows)
    assert "standard errors" in " ".join(printed.out.split())


def test_the_demo_falls_back_on_the_tiny_model_where_nothing_can_be_fetched(tmp_path, monkeypatch) -> None:
    notes: list[str] = []

    class Listener(Silence):
        def note(self, text: str) -> None:
            notes.append(text)

    def offline(*_args: object, **_options: object) -> None:
        raise FetchError("cannot fetch `x` 1: offline")

    monkeypatch.setattr("sculpt.demo.fetch.fetch", offline)
    monkeypatch.setattr(tiny, "TinySize", lambda: SMALLEST)
    made = setting_up.make_setup(tmp_path, tiny=False, steps=1, minutes=None, seed=0, device="cpu", narrator=Listener())
    assert made.tiny
    assert notes == ["cannot fetch `x` 1: offline; going on with a tiny model, trained here on the text that ships"]
