"""The page about a fused model: what it tells, that it needs nothing else, how it looks."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sculpt.api import fuse
from sculpt.evaluate.heat_map import heat_maps
from sculpt.evaluate.report import block_rows, make_report
from sculpt.evaluate.scored import read_scores, score_table
from sculpt.fusion.errors import CheckpointError, DataError
from sculpt.fusion.methods import AdaDare, Method, TaskArithmetic
from sculpt.fusion.record.manifest import Manifest

MakePair = Callable[..., tuple[Path, Path]]


@pytest.fixture
def fused(make_pair: MakePair, tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of fused models."""

    def make(method: Method) -> Path:
        base, tuned = make_pair()
        output = tmp_path / "sft-fused"
        fuse(base, tuned, output=output, method=method, calibration=False)
        return output

    return make


class Page(HTMLParser):
    """Collects text, tags that were left open, and whatever would be fetched."""

    VOID = frozenset({"meta", "br", "wbr", "img", "link", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.open, self.fetched = "", [], []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value for key, value in attrs if key in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def test_the_page_tells_what_the_manifest_holds(fused: Callable[..., Path]) -> None:
    folder = fused(AdaDare(gamma=0.5, eta_relative=0.05))
    manifest = Manifest.read(folder)
    page = Page(make_report(folder))
    assert page.open == []
    for part in (
        "sft-fused",
        "AdaDARE-γ",
        f"{manifest.realised_sparsity():.2%}",
        "model.layers.1",
        manifest.inputs[0].fingerprint,
        manifest.outputs[0].digest,
        "none: H = I",
        "eta relative 0.05",
        "10 of 10",
    ):
        assert part in page.text, part
    for record in manifest.tensors:
        assert record.name in page.text
    bound = min(r.figures["gamma_bound"] for r in manifest.fused if r.name.startswith("model.layers.0"))
    assert f"{bound:.4g}" in page.text


def test_the_page_needs_nothing_else(fused: Callable[..., Path]) -> None:
    text = make_report(fused(TaskArithmetic(scale=0.5)))
    assert Page(text).fetched == []
    assert not re.search(r"https?:|url\(|@import|<script", text)


def test_names_in_a_manifest_cannot_add_to_the_page(fused: Callable[..., Path]) -> None:
    folder = fused(TaskArithmetic(scale=0.5))
    manifest = Manifest.read(folder)
    first, second, *others = manifest.tensors
    second = dataclasses.replace(second, name="model.layers.0.<b>bold</b>.weight")
    command = "<script>alert(1)</script>"
    dataclasses.replace(manifest, command=command, tensors=(first, second, *others)).write(folder)
    text = make_report(folder)
    assert "<script" not in text
    assert "<b>bold" not in text
    assert "&lt;b&gt;" in text


def test_a_heat_map_has_a_cell_for_each_tensor_of_a_layer(fused: Callable[..., Path]) -> None:
    manifest = Manifest.read(fused(AdaDare()))
    sparsity, size, injected = heat_maps(manifest.fused)
    assert [number for number, _ in sparsity.rows] == ["0", "1"]
    assert "mlp.up_proj.weight" in sparsity.kinds
    place = sparsity.kinds.index("mlp.up_proj.weight")
    record = next(r for r in manifest.fused if r.name == "model.layers.1.mlp.up_proj.weight")
    cells = {heat.title: heat.rows[1][1][place] for heat in (sparsity, size, injected)}
    assert cells[sparsity.title].text == f"{100 * record.realised_sparsity:.1f}"
    assert float(cells[size.title].text) == pytest.approx(record.delta_l1 / record.num_fused, rel=0.05)
    assert float(cells[injected.title].text) == pytest.approx(record.distance_l1 / record.num_fused, rel=0.05)
    for heat in (sparsity, size, injected):
        shades = [cell.shade for _, cells in heat.rows for cell in cells if cell]
        assert min(shades) == 0
        assert max(shades) == 1


def test_block_rows_add_up_to_the_manifest(fused: Callable[..., Path]) -> None:
    manifest = Manifest.read(fused(AdaDare(eta_relative=0.05)))
    rows = block_rows(manifest.fused)
    assert [row.name for row in rows] == ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm"]
    assert sum(row.num_elements for row in rows) == sum(record.num_fused for record in manifest.fused)
    assert sum(row.distance_l1 for row in rows) == pytest.approx(sum(r.distance_l1 or 0 for r in manifest.fused))
    assert all(row.gamma is not None and row.gamma[1] <= 0.5 for row in rows)


def test_scores_of_several_models_stand_side_by_side(fused: Callable[..., Path], tmp_path: Path) -> None:
    files = []
    for model, measures in (("base", {"prose": 41.25, "avg": 30}), ("fused", {"prose": 40.5, "tags": 55.75})):
        files.append(tmp_path / f"{model}.json")
        files[-1].write_text(json.dumps({"model": model, "measures": measures}))
    found = score_table(read_scores(files))
    assert found is not None
    assert found.models == ("base", "fused")
    assert found.rows == (("prose", (41.25, 40.5)), ("avg", (30, None)), ("tags", (None, 55.75)))
    text = Page(make_report(fused(AdaDare()), scores=files)).text
    assert "55.75" in text


def test_a_page_begins_with_what_was_protected_kept_and_forgotten(fused: Callable[..., Path], tmp_path: Path) -> None:
    measures = {
        "base": {"pretrained": 43.0, "target": 2.9},
        "tuned": {"pretrained": 33.8, "target": 43.0},
        "sft-fused": {"pretrained": 40.5, "target": 41.9},
    }
    files = []
    for model, own in measures.items():
        files.append(tmp_path / f"{model}.json")
        files[-1].write_text(json.dumps({"model": f"somewhere/{model}", "measures": own}))
    folder = fused(AdaDare())
    text = " ".join(Page(make_report(folder, scores=files)).text.split())
    for part in (
        "protectedno: the base was not protected",
        "kept of the task97% of the fine-tune's score: 41.9 on the target tasks, the fine-tune 43.0",
        "forgotten of the base-2.5 points: 40.5 on the general tasks, the base 43.0, the fine-tune 33.8",
    ):
        assert part in text
    assert "kept of the tasknot measured" in " ".join(Page(make_report(folder)).text.split())


def test_a_file_without_scores_is_refused(tmp_path: Path) -> None:
    for content in ("[]", '{"points": 3}', '{"limits": [], "model": {}}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(DataError, match="holds no scores"):
            read_scores([tmp_path / "bad.json"])


def swept(suite: str, gamma: float, target: float) -> dict[str, Any]:
    """What a sweep's JSON holds of its base and of what it picked."""
    own = {"name": f"adadare p=0.9, γ = {gamma}", "method": "adadare", "options": AdaDare(gamma=gamma).options()}
    points = [{"family": "base", "measures": {"pretrained": 40.0}}]
    return {"suite": suite, "points": points, "picked": {**own, "measures": {"pretrained": 39.0, "target": target}}}


def test_what_a_sweep_picked_has_its_own_name_and_judges_no_other_model(
    fused: Callable[..., Path], tmp_path: Path
) -> None:
    folder = fused(AdaDare(gamma=0.5))
    gated = {"suite": "held-out", "measures": {"pretrained": 30.0, "target": 20.0}}
    judged = {"limits": [], "base": {**gated, "measures": {"pretrained": 33.0}}, "model": {"model": "m", **gated}}
    for name, content in (("own", swept("s", 0.5, 50)), ("other", swept("s", 0.7, 60)), ("gate", judged)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))

    def shown(*names: str) -> str:
        page = make_report(folder, scores=[tmp_path / f"{name}.json" for name in names])
        return " ".join(Page(page).text.split())

    assert "task or meanbaseadadare p=0.9, γ = 0.5" in shown("own")
    assert "-1.0 points: 39.0 on the general tasks, the base 40.0" in shown("own")
    assert "task or meanbaseadadare p=0.9, γ = 0.7" in shown("other")
    assert "kept of the tasknot measured" in shown("other")
    both = shown("gate", "own")  # of two suites: the last one that has this model, and its own base
    assert "task or meanbase (held-out)m (held-out)base (s)adadare p=0.9, γ = 0.5 (s)" in both
    assert "-1.0 points: 39.0" in both
    assert "-3.0 points: 30.0" in shown("own", "gate")


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no `sculpt-manifest\.json`"):
        make_report(tmp_path)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def browse(page: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    return subprocess.run(
        [*command, f"--user-data-dir={page.parent / 'profile'}", *arguments, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_a_desktop_and_a_phone(width: int, fused: Callable[..., Path], tmp_path: Path) -> None:
    """In a frame of that width: the page itself must not scroll sideways, whatever its tables do."""
    (tmp_path / "report.html").write_text(make_report(fused(AdaDare(eta_relative=0.05))), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"""<!doctype html><iframe id=f src=report.html width={width} height=900></iframe><p id=p>waiting</p>
        <script>f.onload = () => {{ const d = f.contentDocument.documentElement;
        const cells = d.querySelectorAll('.heat td').length;
        p.textContent = `scrolls ${{d.scrollWidth}} of ${{d.clientWidth}}, ${{cells}} cells`; }}</script>"""
    )
    shown = browse(frame, "--allow-file-access-from-files", "--virtual-time-budget=4000", "--dump-dom").stdout
    found = re.search(r"scrolls (\d+) of (\d+), (\d+) cells", shown)
    assert found is not None
    assert int(found[1]) <= int(found[2]) <= width
    assert int(found[3]) > 20
    picture = tmp_path / "page.png"
    browse(tmp_path / "report.html", f"--window-size={max(width, 500)},1600", f"--screenshot={picture}")
    data = picture.read_bytes()
    assert struct.unpack(">II", data[16:24])[0] >= width
    assert len(data) > 20_000  # no blank page
