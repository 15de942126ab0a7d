"""Runs measured stage by stage: the plain path's answer, all time and memory accounted for, stops that lose little."""

import json
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import torch
from random_checkpoint import save_released
from safetensors.torch import load_file, save_file
from tiny_models import tiny_inputs, tiny_model
from video_files import write_video

from benchmarks.end_to_end import hold_all, stream
from figures.make_streaming import main, time_exponents
from vilamp_lite.checkpoints import load_checkpoint, load_processor
from vilamp_lite.common.fingerprints import weights_fingerprint
from vilamp_lite.configuration import ViLaMPConfig
from vilamp_lite.costs.room import preflight
from vilamp_lite.costs.vilamp import all_at_once_memory
from vilamp_lite.evaluation.report import results_table
from vilamp_lite.evaluation.results import result_of, shortened
from vilamp_lite.modeling import ViLaMPForConditionalGeneration as Model
from vilamp_lite.processing import ViLaMPProcessor as Processor
from vilamp_lite.streaming.encode import frames_at_once
from vilamp_lite.streaming.feature_store import FRAMES_PER_SHARD, FeatureStore
from vilamp_lite.streaming.measured import ANSWER_STAGES, STORE_STAGES, VIDEO_STAGES, Stopwatch, measured_answer
from vilamp_lite.tinyworld.long_videos import long_video
from vilamp_lite.tinyworld.miniature import miniature_config
from vilamp_lite.video.source import FrameBatch, SampledVideo, stream_frames

QUERY = "Where is the cat?"
FRAMES = 45
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "numbers.mp4", FRAMES, rate=1)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def processor(model: Model) -> Processor:
    return Processor.byte_level(model.config)


@pytest.mark.parametrize(
    "changes", [{}, {"before_first": "self"}, {"reference": "released", "merge_before_projection": False}], ids=str
)
def test_a_measured_run_is_the_plain_one_and_the_one_in_memory(changes: dict, video: Path) -> None:
    model = tiny_model(**changes)
    processor = Processor.byte_level(model.config)
    measured = measured_answer(model, processor, video, QUERY, max_new_tokens=6)
    plain = model.encode_video(video, QUERY, processor)
    assert torch.equal(measured.sequence.embeds, plain.embeds)
    for name in ("keyframes", "frame_of_token", "kind_of_token"):
        assert torch.equal(getattr(measured.sequence, name), getattr(plain, name))
    assert measured.sequence.timestamps.tolist() == list(range(FRAMES))
    (whole,) = stream_frames(video, batch_size=FRAMES)
    together = model.generate(
        **processor.prompts([QUERY]),
        pixel_values_videos=processor.vision_pixels(whole.frames),
        selector_pixel_values=processor.selector_pixels(whole.frames),
        **processor.selector_query([QUERY]),
        max_new_tokens=6,
        do_sample=False,
    )
    assert torch.equal(measured.tokens, together[0])
    assert measured.answer == processor.batch_decode(together)[0].strip()


def test_a_file_is_opened_once_for_its_scan_and_once_for_each_pass(
    video: Path, model: Model, processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, av_open = [], av.open
    monkeypatch.setattr(av, "open", lambda path, **options: opened.append(path) or av_open(path, **options))
    keyframes = model.encode_video(video, QUERY, processor).keyframes
    assert model.early_references(FRAMES, keyframes), "a frame is read ahead"
    assert len(opened) == 3
    sampled = SampledVideo(video)
    assert torch.equal(model.encode_video(sampled, QUERY, processor).keyframes, keyframes)
    assert len(opened) == 3 + 3
    FeatureStore.open(tmp_path / "store").encode(sampled, model, processor)
    assert len(opened) == 3 + 3 + 1
    for encode in (model.encode_video, FeatureStore.open(tmp_path / "other").encode):
        arguments = [QUERY, processor] if encode == model.encode_video else [model, processor]
        with pytest.raises(ValueError, match="max_frames can't be chosen any more: a SampledVideo is sampled already"):
            encode(sampled, *arguments, max_frames=3)
    with pytest.raises(ValueError, match="a store is of a video file, with its frames as they are stored there"):
        FeatureStore.open(tmp_path / "other").encode(SampledVideo(video, size=(8, 8)), model, processor)


class Lists:
    """Somebody's own source of frames, which says how many there are, rightly or not."""

    def __init__(self, frames: int, said: int) -> None:
        self.num_frames = said
        self.frames = np.random.default_rng(0).integers(256, size=(frames, 8, 8, 3), dtype=np.uint8)

    def batches(self, batch_size: int) -> Iterator[FrameBatch]:
        numbers = np.arange(len(self.frames))
        parts = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
        return iter([FrameBatch(self.frames[part], part, part.astype(float)) for part in parts])

    def at(self, samples: Sequence[int]) -> np.ndarray:
        return self.frames[list(samples)]


def test_a_source_gives_the_frames_that_it_promises(model: Model, processor: Processor) -> None:
    sequence = model.encode_video(Lists(20, said=20), QUERY, processor)
    assert sequence.frame_of_token.max() == 19
    for frames, got in ((12, "12"), (30, "more")):
        with pytest.raises(ValueError, match=f"must give its 20 frames in every pass, got {got}"):
            model.encode_video(Lists(frames, said=20), QUERY, processor)


def test_small_frames_go_through_the_towers_in_larger_batches(model: Model) -> None:
    assert frames_at_once(miniature_config()) == 32
    assert (miniature_config().num_patches, model.config.num_patches) == (16, 25)
    assert frames_at_once(model.config) == 8


def test_every_second_is_charged_to_a_stage(video: Path, model: Model, processor: Processor) -> None:
    start = time.perf_counter()
    measured = measured_answer(model, processor, video, QUERY, max_new_tokens=6)
    elapsed = time.perf_counter() - start
    rows = {row["stage"]: row for row in measured.stages}
    assert tuple(rows) == (*VIDEO_STAGES, *ANSWER_STAGES)
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    assert 0.7 * elapsed < measured.seconds <= elapsed
    assert all(row["cpu_seconds"] > 0 for row in rows.values())
    assert all(measured.before / 2 < row["peak_memory"] <= measured.peak_memory for row in rows.values())
    assert rows["decode"]["frames"] == 2 * FRAMES
    assert rows["patches and merging"]["tokens"] == len(measured.sequence.embeds)
    prompt = processor.prompts([QUERY])["input_ids"].shape[1]
    assert rows["prefill"]["tokens"] == len(measured.sequence.embeds) + prompt - 1
    assert rows["decoding"]["tokens"] == len(measured.tokens)
    assert measured.trace[-1, 2] == 2 * FRAMES
    assert (np.diff(measured.trace[:, 2]) >= 0).all()


def test_a_stage_inside_another_interrupts_it() -> None:
    with Stopwatch(CPU) as clock, clock.stage("outer"):
        with clock.stage("inner"):
            time.sleep(0.3)
        with clock.stage("inner"):
            sum(range(10**6))
    assert clock.stages["inner"]["seconds"] >= 0.3
    assert clock.stages["outer"]["seconds"] < 0.3
    assert 0 < clock.stages["inner"]["cpu_seconds"] < clock.stages["inner"]["seconds"]


def test_memory_is_seen_while_it_is_held() -> None:
    with Stopwatch(CPU) as clock:
        with clock.stage("large"):
            held = np.ones(25_000_000)  # 200 MB
            time.sleep(0.1)
            del held
        with clock.stage("small"):
            time.sleep(0.1)
    large, small = clock.stages["large"]["peak_memory"], clock.stages["small"]["peak_memory"]
    assert 190e6 < large - clock.before < 230e6
    assert small < large - 150e6
    assert shortened(np.array(clock.trace), 5)[0][1] > 0


def test_memory_does_not_grow_with_the_video(miniature: Path, tmp_path: Path) -> None:
    """1,500 frames against 300: by less than a tenth of what their features and pixels take together."""
    model = load_checkpoint(miniature)
    processor = load_processor(miniature, model.config)
    above = {}
    for frames in (64, 300, 1500):
        video = long_video(tmp_path, frames)
        measured = measured_answer(model, processor, video.path, video.haystack.question.text)
        above[frames] = measured.peak_memory
    together = [float(all_at_once_memory(model.config, n, np.array([2 * n]))[0]) for n in (300, 1500)]
    assert above[1500] - above[300] < 0.1 * (together[1] - together[0])


def test_logits_that_are_not_finite_are_an_error(video: Path, processor: Processor) -> None:
    broken = tiny_model()
    broken.language_model.lm_head.weight.data[5] = torch.inf
    with pytest.raises(ValueError, match=r"not finite in float32: lm_head\.weight of the language model holds NaN"):
        measured_answer(broken, processor, video, QUERY, max_new_tokens=2)
    for way in ({}, {"num_beams": 2}, {"do_sample": True}, {"prefill_chunk_size": 4}):
        with pytest.raises(ValueError, match="not finite in float32"):
            broken.generate(**tiny_inputs(), max_new_tokens=2, **way)


@pytest.mark.parametrize(("dtype", "finite"), [(torch.float16, False), (torch.bfloat16, True)])
def test_an_overflow_names_the_type_to_try(dtype: torch.dtype, finite: bool) -> None:
    large = tiny_model().to(dtype)
    large.selector.float()
    for part in ("up_proj", "gate_proj", "down_proj"):
        getattr(large.language_model.model.layers[0].mlp, part).weight.data.fill_(6e4)
    if finite:
        assert large.generate(**tiny_inputs(), max_new_tokens=2, eos_token_id=None).shape == (1, 2)
    else:
        with pytest.raises(ValueError, match=r"not finite in float16; .* try --dtype bfloat16 or float32"):
            large.generate(**tiny_inputs(), max_new_tokens=2)


class Interrupted(Processor):
    """Ctrl-C after some frames."""

    left: int

    def vision_pixels(self, frames: np.ndarray, *device: torch.device) -> torch.Tensor:
        """Make pixels until it is stopped."""
        self.left -= len(frames)
        if self.left < 0:
            raise KeyboardInterrupt
        return super().vision_pixels(frames, *device)


@pytest.mark.parametrize("left", [5, FRAMES_PER_SHARD + 9])
def test_ctrl_c_leaves_a_store_to_go_on_with(
    left: int, video: Path, model: Model, processor: Processor, tmp_path: Path
) -> None:
    stopped = Interrupted.byte_level(model.config)
    stopped.left = left
    store = FeatureStore.open(tmp_path / "store")
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        measured_answer(model, stopped, video, QUERY, store=store)
    assert threading.active_count() == threads
    measured = measured_answer(model, processor, video, QUERY, max_new_tokens=6, store=store)
    assert [row["stage"] for row in measured.stages] == [*STORE_STAGES, *ANSWER_STAGES]
    whole = FeatureStore.open(tmp_path / "whole")
    whole.encode(video, model, processor)
    assert {path.name for path in store.folder.iterdir()} == {path.name for path in whole.folder.iterdir()}
    plain = measured_answer(model, processor, video, QUERY, max_new_tokens=6)
    assert torch.equal(measured.sequence.keyframes, plain.sequence.keyframes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reference": "released", "before_first": "self", "merge_redundancy": "mapped", "connectors": "shared"}
        | {"merge_before_projection": False},
    ],
    ids=("paper", "released"),
)
@torch.no_grad()
def test_all_at_once_gives_the_same_tokens(changes: dict, video: Path) -> None:
    model = tiny_model(fill="none", similarity_threshold=1.0, **changes)
    processor = Processor.byte_level(model.config)
    assert torch.equal(hold_all(model, processor, video, QUERY), stream(model, processor, video, QUERY))


def test_a_study_goes_on_where_it_was(miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--model", str(miniature), "--frames", "48", "--repeats", "2"]
    arguments += ["--out", str(tmp_path / "out"), "--folder", str(tmp_path / "runs")]
    assert main(arguments) == 0
    study = json.loads((tmp_path / "out" / "streaming.json").read_text())
    (row,) = study["rows"]
    assert row["frames"] == 48
    assert row["visual_tokens"] == 4 * 16 + 44 + 1
    assert study["stamp"]["weights"] == weights_fingerprint(miniature)
    runs = sorted((tmp_path / "runs").glob("run-*.json"))
    assert len(runs) == 2
    seconds = [json.loads(run.read_text())["row"]["seconds"] for run in runs]
    assert row["seconds"] == pytest.approx(sum(seconds) / 2)
    # One run is lost, the other is kept.
    kept = runs[0].stat().st_mtime_ns
    runs[1].unlink()
    assert main(arguments) == 0
    assert runs[0].stat().st_mtime_ns == kept
    assert runs[1].is_file()
    content = json.loads(runs[0].read_text())
    content["settings"]["weights"] = "other"
    runs[0].write_text(json.dumps(content))
    assert main(arguments) == 2
    assert "of another evaluation" in capsys.readouterr().err


def test_exponents_are_those_of_the_times() -> None:
    rows = [
        {"frames": n, "stages": [{"stage": "a", "cpu_seconds": 3e-3 * n}, {"stage": "b", "cpu_seconds": 1e-6 * n**2}]}
        for n in (1000, 2000, 5000)
    ]
    assert time_exponents(rows) == pytest.approx({"a": 1, "b": 2})
    assert time_exponents(rows[:1]) == {}


def test_the_table_says_what_was_not_run(video: Path, model: Model, processor: Processor, tmp_path: Path) -> None:
    table = results_table(tmp_path)
    assert {row[2] for row in table[1:]} == {"not run"}
    world = long_video(tmp_path / "videos", 40)
    measured = measured_answer(model, processor, world.path, QUERY, max_new_tokens=2)
    row = result_of(measured, world) | {"frames": 2000}
    assert json.loads(json.dumps(row)) == row
    study = {"study": "streaming", "parameters": {}, "rows": [row], "stamp": {"commit": "0123456789abcdef"}}
    (tmp_path / "streaming.json").write_text(json.dumps(study))
    found = {line[0]: line[2:] for line in results_table(tmp_path)[1:5]}
    assert found["1,000"][0] == "not run"
    assert found["2,000"][0].endswith(" s")
    assert found["2,000"][-2:] == [f"found, {row['answer']!r}", "0123456789"]
    (tmp_path / "gpu").mkdir()
    unstaged = {"frames": 10_000, "seconds": 1.0}  # the benchmark's runs stand beside the one with stages
    rows = {"rows": [unstaged, row | {"frames": 10_000}]}
    (tmp_path / "gpu" / "10000.json").write_text(json.dumps(study | rows))
    random = next(line for line in results_table(tmp_path) if "random weights" in line[1])
    assert random[-2:] == ["no meaning", "0123456789"], "random weights find no needle, and none is claimed"


def test_preflight_names_what_is_lacking(miniature: Path, tmp_path: Path) -> None:
    fine = {"device": "cpu", "dtype": "float32", "folder": tmp_path / "new" / "folder"}
    findings = dict(preflight(miniature, 10_000, **fine))
    assert findings["context"] == "10,061 visual tokens of 131,072 positions"
    assert findings["disk"].startswith("0.1 GB needed")
    assert dict(preflight(miniature, 10_000, **fine, store=True))["disk"].startswith("0.13 GB needed")
    bare, wide, copy = (tmp_path / name for name in ("bare", "wide", "copy"))
    ViLaMPConfig.paper().save_pretrained(bare)
    # On any machine: float32 weights of 33 GB and a wish for the widest context there is.
    ViLaMPConfig.paper(max_keyframes=600).save_pretrained(wide)
    (wide / "model.safetensors").touch()
    shutil.copytree(miniature, copy)
    (copy / "tokenizer.json").unlink()
    for model, frames, changes, message in (
        (miniature, 10_000, {"dtype": "int8"}, "dtype must be one of"),
        (miniature, 10_000, {"device": "cuda:77"}, "device must be one that torch can use here"),
        (miniature, 140_000, {}, "do not fit the language model's 131,072"),
        (wide, 10_000, {}, "do not fit the language model's 32,768"),
        (bare, 600, {}, r"lacks model\.safetensors"),
        (copy, 600, {}, "tokenizer"),
    ):
        with pytest.raises(ValueError, match=message):
            preflight(model, frames, **fine | changes)
    assert dict(preflight(copy, 600, **fine, tokenizer=str(miniature)))["tokenizers"] == findings["tokenizers"]
    for index, message in {
        '{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}': r"lacks model-2\.safetensors",
        "[]": "must hold a JSON object",
    }.items():
        (copy / "model.safetensors.index.json").write_text(index)
        with pytest.raises(ValueError, match=message):
            preflight(copy, 600, **fine)


def test_preflight_looks_for_every_weight_and_reads_none(miniature: Path, tmp_path: Path) -> None:
    fine = {"device": "cpu", "dtype": "float32", "folder": tmp_path}
    tiny = ViLaMPConfig.tiny()
    parts = {part: getattr(tiny, part).to_dict() for part in ("vision_config", "text_config", "selector_config")}
    save_released(Model(ViLaMPConfig.released(**parts)), tmp_path / "theirs")
    for model, lost in (
        (shutil.copytree(miniature, tmp_path / "ours"), "merger.query_map.weight"),
        (tmp_path / "theirs", "model.mm_projector.0.weight"),
    ):
        assert preflight(model, 600, **fine)
        file = model / "model.safetensors"
        weights = load_file(file)
        for altered, message in (
            ({name: value for name, value in weights.items() if name != lost}, r"do not fit .* missing: (merger|key)"),
            (weights | {"lora_A": torch.zeros(2)}, "do not fit .* unexpected: lora_A"),
            (weights | {lost: torch.zeros(2)}, r"do not fit .* of another shape: .*\(2,\)"),
        ):
            save_file(altered, file)
            with pytest.raises(ValueError, match=message):
                preflight(model, 600, **fine)
        save_file(weights, file)
        header = int.from_bytes(file.read_bytes()[:8], "little") + 8
        with file.open("r+b") as weights_only:  # a hole of the same length
            size = file.stat().st_size
            weights_only.truncate(header)
            weights_only.truncate(size)
        assert preflight(model, 600, **fine)


def test_preflight_says_how_much_memory_and_disk_are_lacking(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with 3 GB of memory, then with 50 MB on its disk."""
    paper = tmp_path / "paper"
    ViLaMPConfig.paper().save_pretrained(paper)
    (paper / "model.safetensors").touch()
    fine = {"device": "cpu", "dtype": "bfloat16", "folder": tmp_path}
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=3_000_000_000))
    assert dict(preflight(miniature, 10_000, **fine))["memory"].endswith("3.0 GB free")
    # Qwen2-7B's weights alone are 15.2 GB.
    with pytest.raises(ValueError, match=r"has 3\.0 GB free and 10,000 frames in bfloat16 need (1[6-9]|2\d)\.\d GB"):
        preflight(paper, 10_000, **fine)
    # On a GPU too, whatever it has itself, they are in this machine's memory first, with 1 GB for all else.
    gpu = [("vilamp_lite.costs.room.usable_device", lambda _: torch.device("cuda"))]
    gpu += [("torch.cuda.mem_get_info", lambda _: (80_000_000_000,) * 2), ("torch.cuda.get_device_name", lambda _: "X")]
    for name, answer in gpu:
        monkeypatch.setattr(name, answer)
    with pytest.raises(ValueError, match=r"this machine, beside the GPU, has 3\.0 GB .* need 1[78]\.\d GB"):
        preflight(paper, 10_000, **fine)
    assert dict(preflight(miniature, 10_000, **fine))["host memory"] == "1.0 GB needed, 3.0 GB free"
    monkeypatch.undo()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=3_000_000_000))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk._replace(free=50_000_000))
    with pytest.raises(ValueError, match=r"has 0\.1 GB free and 0\.1 GB are needed"):
        preflight(miniature, 10_000, **fine)
    assert preflight(miniature, 4_000, **fine)
