"""Samples of one source are held out together, and near copies of fitted samples are called that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxprune
from onnxprune import BadInputError, Budget
from onnxprune.analyse.copies import near_copies
from onnxprune.analyse.feeds import load_data, samples_of, sources_in, sources_of
from onnxprune.analyse.samples import Samples
from onnxprune.analyse.sources import BY_SAMPLE, Sources
from onnxprune.groups.observation import Array
from onnxprune.training.samples import split
from tests.oracle import net

MLP = "g (float[N,8] x) => (float[N,5] y) <float[8,32] w, float[32,5] v> { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }"
FIXED = "g (float[4,8] x) => (float[4,5] y) <float[8,32] w, float[32,5] v> { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }"
RNG = np.random.default_rng(0)


def inputs(*shape: object, kind: int = TensorProto.FLOAT) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info("x", kind, ["N", *shape])]


def numbered(count: int, width: int = 3) -> Array:
    """Row k holds k."""
    return np.repeat(np.arange(count, dtype=np.float32)[:, None], width, axis=1)


def rows(samples: Samples, held: bool) -> list[int]:
    found = [f["x"][:, 0] for f, out in zip(samples.feeds, samples.held, strict=True) if out == held]
    return sorted(int(k) for k in np.concatenate([*found, np.empty(0)]))


@pytest.mark.parametrize("names", ["numbers", "texts", "column"])
def test_groups_are_held_out_whole(names: str) -> None:
    """Twelve sources of eight samples, one after the other in turn: every fourth one is held out."""
    of = np.arange(96) % 12
    groups = {"numbers": of, "texts": np.array([f"photo {k}" for k in of]), "column": of[:, None]}[names]
    feeds = [{"x": numbered(96), "groups": groups}]
    sources = sources_in(feeds, inputs(3))
    assert sources.kind == "group"
    found = samples_of(feeds, inputs(3), sources=sources)
    held = {of[k] for k in rows(found, True)}
    assert len(held) == 3 and rows(found, True) == [k for k in range(96) if of[k] in held]
    assert rows(found, False) == [k for k in range(96) if of[k] not in held]
    assert found.sources == (12, 3) and found.held_by == "group" and found.count == 96
    for feed, label in zip(found.feeds, found.labels, strict=True):
        assert set(feed) == {"x"} and [of[int(k)] for k in feed["x"][:, 0]] == (
            [int(str(g).split()[-1]) for g in np.ravel(label["groups"])]
        )


def test_the_largest_sources_are_fitted() -> None:
    of = np.repeat(np.arange(5), [2, 60, 2, 2, 2])
    found = samples_of([{"x": numbered(68)}], inputs(3), sources=Sources("group", (of,)))
    assert found.sources == (5, 1) and len(rows(found, True)) == 2
    single = samples_of([{"x": numbered(68)}], inputs(3), sources=Sources("group", (np.zeros(68, int),)))
    assert single.sources == (1, 0) and not any(single.held)


def test_the_limit_takes_the_first_samples() -> None:
    of = np.arange(80) % 10
    found = samples_of([{"x": numbered(80)}], inputs(3), 24, sources=Sources("group", (of,)))
    assert sorted(rows(found, True) + rows(found, False)) == list(range(24))


def test_a_batch_of_fixed_size_ties_the_sources_in_it() -> None:
    model = net(FIXED)
    of = np.repeat([0, 1, 2, 3, 4, 5, 6, 7], 6)  # pieces of four samples: 0 0 0 0 | 0 0 1 1 | 1 1 1 1 | 2 ...
    feeds = [{"x": numbered(48, 8)}]
    from onnxprune.model.load import load
    from onnxprune.runtime import Session, graph_inputs

    found = samples_of(feeds, graph_inputs(model), model=Session(load(model)), sources=Sources("group", (of,)))
    assert found.sources == (4, 1) and found.count == 48
    assert {of[k] // 2 for k in rows(found, True)} & {of[k] // 2 for k in rows(found, False)} == set()


def test_files_and_folders_are_sources(tmp_path: Path) -> None:
    declared = inputs(3)
    for k in range(8):
        np.savez(tmp_path / f"{k}.npz", x=numbered(4) + 4 * k)
    files = sources_of(tmp_path, declared)
    assert files.kind == "file"
    found = samples_of(load_data(tmp_path, declared), declared, sources=files)
    assert found.sources == (8, 2) and rows(found, True) == [12, 13, 14, 15, 28, 29, 30, 31]
    for k in range(8):
        (tmp_path / "by folder" / f"photo{k % 4}").mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "by folder" / f"photo{k % 4}" / f"{k}.npy", numbered(1) + k)
    folders = sources_of(tmp_path / "by folder", declared)
    assert folders.kind == "folder"
    found = samples_of(load_data(tmp_path / "by folder", declared), declared, sources=folders)
    assert found.sources == (4, 1) and rows(found, True) == [3, 7]
    assert sources_of(tmp_path / "0.npz", declared) == BY_SAMPLE
    single = tmp_path / "single"
    single.mkdir()
    for k in range(8):
        np.save(single / f"{k}.npy", numbered(1) + k)
    found = samples_of(load_data(single, declared), declared, sources=sources_of(single, declared))
    assert found.sources is None and found.held_by == "sample", "each file is a sample"


def test_groups_that_are_no_labels_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=numbered(6), groups=np.zeros((6, 2)))
    with pytest.raises(BadInputError, match="must hold one label per sample"):
        sources_of(tmp_path / "a.npz", inputs(3))
    with pytest.raises(BadInputError, match="5 labels for 6 samples"):
        samples_of([{"x": numbered(6)}], inputs(3), sources=Sources("group", (np.zeros(5, int),)))
    np.savez(tmp_path / "a.npz", x=numbered(6), groups=np.zeros(6))
    np.savez(tmp_path / "b.npz", x=numbered(6))
    with pytest.raises(BadInputError, match=r"b.npz has no array 'groups'"):
        sources_of(tmp_path, inputs(3))


def test_an_input_named_groups_is_an_input(tmp_path: Path) -> None:
    declared = [helper.make_tensor_value_info("groups", TensorProto.FLOAT, ["N", 3])]
    np.savez(tmp_path / "a.npz", groups=numbered(6))
    assert sources_of(tmp_path / "a.npz", declared) == BY_SAMPLE


def test_the_report_says_what_was_held_out(tmp_path: Path) -> None:
    from onnxprune.report.lines import repair_lines

    x = RNG.normal(size=(64, 8)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, groups=np.arange(64) // 8)
    report = onnxprune.prune(net(MLP), Budget("macs", 0.5), data=tmp_path / "d.npz", benchmark=False).report
    assert report.calibration is not None
    assert report.calibration.held_by == "group" and report.calibration.sources == (8, 2)
    assert repair_lines(report)[0] == "64 calibration samples, 16 of all held out by group (2 of 8)"
    assert not any("near copies" in w for w in report.warnings)
    x[16:] = x[np.arange(48) % 16] + 1e-3 * RNG.normal(size=(48, 8)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    report = onnxprune.prune(net(MLP), Budget("macs", 0.5), data=tmp_path / "d.npz", benchmark=False).report
    assert repair_lines(report)[0] == "64 calibration samples, 16 of all held out by sample"
    assert any("16 of 16 held-out samples are near copies of fitted ones" in w for w in report.warnings)
    np.savez(tmp_path / "d.npz", x=x, groups=np.zeros(64))
    report = onnxprune.prune(net(MLP), Budget("macs", 0.5), data=tmp_path / "d.npz", benchmark=False).report
    assert any("all inputs are of one group" in w for w in report.warnings)


def test_fine_tuning_holds_out_whole_sources() -> None:
    of = [k % 10 for k in range(100)]
    training, held = split(of, 0)
    assert len(held) == 10 and len({of[k] for k in held}) == 1 and sorted(training + held) == list(range(100))
    assert {of[k] for k in held}.isdisjoint(of[k] for k in training)
    training, held = split([0] * 90 + [1] * 10, 3)
    assert training and held


# ---------------------------------------------------------------- near copies


def pink(*shape: int) -> Array:
    """Noise with a spectrum of 1/f along the last two axes."""
    f = np.hypot(np.fft.fftfreq(shape[-2])[:, None], np.fft.rfftfreq(shape[-1]))
    f[0, 0] = 1
    return np.fft.irfft2(np.fft.rfft2(RNG.standard_normal(shape)) / f).astype(np.float32)


def copies(x: Array, kind: int = TensorProto.FLOAT) -> tuple[int, int]:
    return near_copies(samples_of([{"x": x}], inputs(*x.shape[1:], kind=kind)))


def test_overlapping_crops_and_recordings_are_near_copies() -> None:
    photos = [pink(3, 128, 128) for _ in range(6)]
    corners = RNG.integers(0, 64, (48, 2))
    crops = np.stack([photos[k % 6][:, i : i + 64, j : j + 64] for k, (i, j) in enumerate(corners)])
    found, of = copies(crops)
    assert of == 12 and found > 6
    recordings = RNG.standard_normal((4, 40_000)).cumsum(axis=1) * 0.1 + RNG.standard_normal((4, 40_000))
    starts = RNG.integers(0, 20_000, 64)
    waves = np.stack([recordings[k % 4, s : s + 16_000] for k, s in enumerate(starts)]).astype(np.float32)
    found, of = copies(waves)
    assert found > of / 2


def test_texts_with_a_word_changed_are_near_copies() -> None:
    ids = RNG.integers(0, 30_000, (64, 24))
    ids[:, 0], ids[:, 18:] = 101, 0
    assert copies(ids, TensorProto.INT64) == (0, 16)
    ids[48:] = ids[:16]
    ids[48:, 7] = 5
    assert copies(ids, TensorProto.INT64) == (16, 16)


def test_texts_that_are_empty_or_short_are_no_copies() -> None:
    """The first sample is long; of others there is a word, or nothing."""
    feeds = [{"x": RNG.integers(0, 30_000, (1, n))} for n in [24, 0, 1, 2, 24, 24] * 6]
    found, of = near_copies(samples_of(feeds, inputs(24, kind=TensorProto.INT64)))
    assert found == 0 and of > 0


@pytest.mark.parametrize("shape", [(48, 3, 64, 64), (64, 1, 32, 32), (64, 3, 16, 16), (64, 10), (64, 4000)], ids=str)
def test_different_samples_are_not(shape: tuple[int, ...]) -> None:
    x = pink(*shape) if len(shape) > 2 else RNG.standard_normal(shape).astype(np.float32)
    assert copies(x)[0] == 0
