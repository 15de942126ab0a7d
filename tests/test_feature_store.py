"""The feature store: answers as from the file, kills, damage, a second writer, a full disk, and the two commands."""

import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Refusal, Vilamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import tiny_model
from video_files import write_video

from vilamp_lite.cli import main
from vilamp_lite.common.files import UNFINISHED
from vilamp_lite.common.fingerprints import tensors_fingerprint
from vilamp_lite.modeling import ViLaMPForConditionalGeneration as Model
from vilamp_lite.processing import ViLaMPProcessor as Processor
from vilamp_lite.streaming.encode import frames_at_once
from vilamp_lite.streaming.feature_store import FRAMES_PER_SHARD, STORED_TYPES, FeatureStore
from vilamp_lite.tinyworld.questions import random_scene
from vilamp_lite.tinyworld.render import write_video as write_world

QUERY = "Where is the cat?"
FRAMES = 2 * FRAMES_PER_SHARD + 9  # three shards, the last one short
SHARDS = 3


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "numbers.mp4", FRAMES, rate=1)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def processor(model: Model) -> Processor:
    return Processor.byte_level(model.config)


@pytest.fixture(scope="module")
def whole(video: Path, model: Model, processor: Processor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that nothing interrupted."""
    folder = tmp_path_factory.mktemp("stores") / "whole"
    FeatureStore.open(folder).encode(video, model, processor)
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """One to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "store"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def shards(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.safetensors")}


def in_child(work: Callable[[], None]) -> int:
    """Run in a child process, which need not import torch again; its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    finally:
        os._exit(code)


# --- What is stored, and what is made of it --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"before_first": "self"},
        {"reference": "released", "merge_before_projection": False, "connectors": "shared"},
        {"relevance_gate": True, "keyframe_pooling": "none", "video_newline": False},
    ],
    ids=str,
)
def test_a_float32_store_answers_as_the_file_does(changes: dict, video: Path, tmp_path: Path) -> None:
    model = tiny_model(**changes)
    processor = Processor.byte_level(model.config)
    store = FeatureStore.open(tmp_path / "store")
    store.encode(video, model, processor, dtype=torch.float32)
    for query in (QUERY, "?"):
        expected, found = model.encode_video(video, query, processor), store.sequence(model, query, processor)
        torch.testing.assert_close(found.embeds, expected.embeds, rtol=0, atol=1e-5)
        for name in ("keyframes", "frame_of_token", "kind_of_token"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
        assert found.timestamps.tolist() == expected.timestamps.tolist() == list(range(FRAMES))
        tokens = model.generate(
            **processor.prompts([query]), video_embeds=[expected.embeds], max_new_tokens=6, do_sample=False
        )
        assert store.ask(model, query, processor, max_new_tokens=6) == processor.batch_decode(tokens)[0]


def test_the_stated_error_and_size_are_those_of_the_files(
    video: Path, model: Model, processor: Processor, tmp_path: Path
) -> None:
    exact = FeatureStore.open(tmp_path / "float32")
    exact.encode(video, model, processor, dtype=torch.float32)
    wanted = exact.sequence(model, QUERY, processor)
    for dtype, limit in zip(STORED_TYPES, (2**-11, 2**-8, 0), strict=True):
        store = FeatureStore.open(tmp_path / str(dtype).removeprefix("torch."))
        store.encode(video, model, processor, dtype=dtype)
        summary = store.summary()
        assert (summary.num_frames, summary.shards, summary.dtype) == (FRAMES, SHARDS, store.folder.name)
        assert summary.num_bytes == sum((store.folder / name).stat().st_size for name in shards(store.folder))
        # 25 patches of 24 values in the stored type, a selector embedding of 12 and a time; headers come on top.
        content = FRAMES * (25 * 24 * dtype.itemsize + 12 * 4 + 8)
        assert content < summary.num_bytes < content + SHARDS * 600
        # Rounding is off by half a unit in the last place of each value, so by no more of a whole patch.
        assert limit / 20 <= summary.error <= limit
        found = store.sequence(model, QUERY, processor)
        assert torch.equal(found.keyframes, wanted.keyframes)
        torch.testing.assert_close(found.embeds, wanted.embeds, rtol=0, atol=10 * limit + 1e-6)


def test_a_question_needs_neither_video_nor_towers(copied: Path, model: Model, processor: Processor) -> None:
    """Only selection, merging and the language model: no frame passes through a vision tower."""

    def refuse(*_: object) -> None:
        raise AssertionError("a frame was encoded")

    hooks = [tower.register_forward_hook(refuse) for tower in (model.vision_tower, model.selector.vision_model)]
    try:
        FeatureStore.open(copied).ask(model, QUERY, processor, max_new_tokens=2)
    finally:
        for hook in hooks:
            hook.remove()


def test_another_language_model_and_k_may_ask(whole: Path, video: Path, model: Model) -> None:
    """A store holds what selector and vision tower make; the rest may be trained on."""
    other = tiny_model(seed=1, max_keyframes=2)
    for part in ("selector", "vision_tower"):
        getattr(other, part).load_state_dict(getattr(model, part).state_dict())
    processor = Processor.byte_level(other.config)
    found = FeatureStore.open(whole).sequence(other, QUERY, processor)
    expected = other.encode_video(video, QUERY, processor)
    assert found.keyframes.tolist() == expected.keyframes.tolist()
    assert len(found.keyframes) == 2
    torch.testing.assert_close(found.embeds, expected.embeds, rtol=0, atol=1e-2)


def test_a_whole_store_is_left_alone(whole: Path, video: Path, model: Model, processor: Processor) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir() if path.name != ".lock"}
    FeatureStore.open(whole).encode(video, model, processor)
    assert {path.name: path.stat().st_mtime_ns for path in whole.iterdir() if path.name != ".lock"} == before
    # Not even a lock is made: the disk may be read-only.
    (whole / ".lock").unlink()
    touched = whole.stat().st_mtime_ns
    FeatureStore.open(whole).encode(video, model, processor)
    assert whole.stat().st_mtime_ns == touched
    assert json.loads((whole / "manifest.json").read_text())["num_frames"] == FRAMES


def test_a_manifest_is_read_once(
    whole: Path, model: Model, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, read_text = [], Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *options: read.append(path) or read_text(path, *options))
    FeatureStore.open(whole).sequence(model, QUERY, processor)
    assert read == [whole / "manifest.json"]


def test_all_files_are_on_the_disk_before_they_have_their_names(
    video: Path, model: Model, processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, named, fsync, replace = set(), {}, os.fsync, os.replace

    def note(waiting: Path, path: Path) -> None:
        named[path.name] = waiting.stat().st_ino in synced
        synced.clear()
        replace(waiting, path)

    monkeypatch.setattr(os, "fsync", lambda handle: (synced.add(os.fstat(handle).st_ino), fsync(handle)))
    monkeypatch.setattr(os, "replace", note)
    FeatureStore.open(tmp_path / "store").encode(video, model, processor)
    assert named == dict.fromkeys(files(tmp_path / "store"), True)


def test_weights_are_told_by_shape_as_well_and_as_in_older_stores() -> None:
    values, numbers = torch.arange(6.0), torch.tensor([1, 2])
    assert tensors_fingerprint([values.reshape(2, 3), numbers]) == "26d4886d53d08e79"
    assert tensors_fingerprint([values.reshape(3, 2), numbers]) == "97d70e2e75762586"


# --- Kills -----------------------------------------------------------------------------------------------------------


class Counted(Processor):
    """Says over a pipe how many frames it has made pixels of."""

    pipe: int

    def vision_pixels(self, frames: np.ndarray, *device: torch.device) -> torch.Tensor:
        if len(frames) > 1:  # not the picture that identifies the processor
            os.write(self.pipe, bytes([len(frames)]))
        return super().vision_pixels(frames, *device)


def test_killed_at_20_random_moments(
    whole: Path, video: Path, model: Model, processor: Processor, tmp_path: Path
) -> None:
    wanted, choose = files(whole), random.Random(0)
    killed = interrupted = 0
    for moment in range(20):
        folder = tmp_path / str(moment)
        counted = Counted(model.config, processor.tokenizer, processor.selector_tokenizer)
        seen, counted.pipe = os.pipe()
        child = in_child(lambda folder=folder, its=counted: FeatureStore.open(folder).encode(video, model, its))
        os.close(counted.pipe)
        # Spread over the whole run, however fast it is: some batches, and then any moment.
        for _ in range(moment % 10):
            os.read(seen, 1)
        time.sleep(choose.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
        with os.fdopen(seen, "rb") as pipe:
            encoded = frames_at_once(model.config) * (moment % 10) + sum(pipe.read())
        kept = shards(folder) if folder.exists() else set()
        assert kept <= wanted.keys()
        # Lost are the frames of the shard in work, and the batch whose pixels were being made meanwhile; no others.
        frames_kept = FRAMES_PER_SHARD * min(
            sum(name.startswith(kind) for name in kept) for kind in ("frames", "patches")
        )
        assert encoded - frames_kept <= FRAMES_PER_SHARD + frames_at_once(model.config)
        interrupted += 0 < encoded < FRAMES
        FeatureStore.open(folder).encode(video, model, processor)
        assert files(folder) == wanted
    assert killed >= 10
    assert interrupted >= 5


def test_a_resumed_run_encodes_no_frame_twice(
    copied: Path, whole: Path, video: Path, model: Model, processor: Processor
) -> None:
    (gone,) = copied.glob("frames-00001-*")
    gone.unlink()
    encoded = []
    hook = model.vision_tower.register_forward_hook(lambda module, args, output: encoded.append(len(args[0])))
    try:
        FeatureStore.open(copied).encode(video, model, processor)
    finally:
        hook.remove()
    assert sum(encoded) == FRAMES_PER_SHARD
    assert files(copied) == files(whole)


# --- Damage ----------------------------------------------------------------------------------------------------------


def test_what_changes_between_two_questions_is_looked_through_again(
    copied: Path, processor: Processor, model: Model
) -> None:
    """A shard whose bytes change, and towers that torch writes to; one that stays is not read again for it."""
    own = Model(model.config)
    own.load_state_dict(model.state_dict())
    own.eval()
    store = FeatureStore.open(copied)
    expected = store.ask(own, QUERY, processor, max_new_tokens=3)
    assert store.ask(own, QUERY, processor, max_new_tokens=3) == expected
    for weight in (own.selector.visual_projection.weight, own.vision_tower.get_input_embeddings().weight):
        with torch.no_grad():
            weight.mul_(2)
            with pytest.raises(ValueError, match="encoded by another model"):
                store.ask(own, QUERY, processor)
            weight.div_(2)
    assert store.ask(own, QUERY, processor, max_new_tokens=3) == expected
    for name in sorted(shards(copied)):
        data = (copied / name).read_bytes()
        (copied / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(ValueError, match="is damaged"):
            store.ask(own, QUERY, processor)
        (copied / name).write_bytes(data)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_altered_or_missing_byte_is_found_and_mended(
    data: st.DataObject, copied: Path, whole: Path, video: Path, model: Model, processor: Processor
) -> None:
    path = copied / data.draw(st.sampled_from(sorted(shards(whole))), "shard")
    content = (whole / path.name).read_bytes()
    at = data.draw(st.integers(0, len(content) - 1), "byte")
    bit = data.draw(st.one_of(st.none(), st.integers(0, 7)), "bit to flip, or None to cut there")
    path.write_bytes(
        content[:at] if bit is None else content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
    )
    store = FeatureStore.open(copied)
    with pytest.raises(ValueError, match=f"{path.name} is damaged: run `vilamp encode` again"):
        store.sequence(model, QUERY, processor)
    store.encode(video, model, processor)
    assert files(copied) == files(whole)


def test_shards_of_another_place_are_found(
    copied: Path, whole: Path, video: Path, model: Model, processor: Processor
) -> None:
    """A checksum holds the number and the manifest: swapped shards, or those of another store, don't pass."""
    first, second = sorted(copied.glob("patches-*"))[:2]
    first.write_bytes(second.read_bytes())
    second.rename(second.with_name(second.name.replace("00001", "00000")))
    FeatureStore.open(copied).encode(video, model, processor)
    assert files(copied) == files(whole)
    manifest = copied / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"fps": 1.0', '"fps": 2.0'))
    with pytest.raises(ValueError, match="is damaged"):
        FeatureStore.open(copied).sequence(model, QUERY, processor)


def test_missing_shards(copied: Path, model: Model, processor: Processor) -> None:
    next(copied.glob("patches-00002-*")).unlink()
    store = FeatureStore.open(copied)
    for look in (store.summary, lambda: store.ask(model, QUERY, processor)):
        with pytest.raises(ValueError, match=r"lacks 1 of 3 shards: run `vilamp encode` again with the same video"):
            look()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", "[" * 100_000, '{"num_frames": 0}', '{"num_frames": "x"}', '{"num_frames": 9}'],
    ids=lambda content: content[:20],
)
def test_a_damaged_manifest(content: str, copied: Path) -> None:
    (copied / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged, or no store's; delete the folder"):
        FeatureStore.open(copied)


def test_files_of_others_stay_as_they_are(
    copied: Path, whole: Path, video: Path, model: Model, processor: Processor, tmp_path: Path
) -> None:
    """Beside a store that is mended, and in a folder that is to become one."""
    names = ["model-00001-of-00002.safetensors", "frames-00001-old.safetensors", "x-00001-y.safetensors", "notes.txt"]
    names += ["frames-00009-0123456789abcdef.safetensors", "manifest.tmp"]
    for name in names:
        (copied / name).write_text("mine")
    (copied / ".waiting").symlink_to(tmp_path / "victim")
    (tmp_path / "victim").write_text("mine")
    damaged = next(copied.glob("patches-00001-*"))
    damaged.write_bytes(b"")
    FeatureStore.open(copied).encode(video, model, processor)
    left = files(copied)
    assert {name: left.pop(name) for name in (*names, ".waiting")} == dict.fromkeys((*names, ".waiting"), b"mine")
    assert left == files(whole)
    assert (copied / ".waiting").is_symlink()

    other = tmp_path / "other"
    other.mkdir()
    (other / ".waiting").symlink_to(tmp_path / "victim")
    with pytest.raises(ValueError, match=r"holds other files and no manifest\.json"):
        FeatureStore.open(other)
    (other / ".waiting").rename(other / "manifest.json")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged, or no store's"):
        FeatureStore.open(other)
    (tmp_path / "victim").unlink()
    with pytest.raises(ValueError, match=r"manifest\.json is a link"):
        FeatureStore(other).encode(video, model, processor)
    assert (other / "manifest.json").is_symlink()


# --- Refusals --------------------------------------------------------------------------------------------------------


def test_another_model_is_refused(whole: Path, video: Path, model: Model, processor: Processor) -> None:
    store = FeatureStore.open(whole)
    pixels = Processor.byte_level(model.config)
    pixels.image_processor.image_mean = [0.4] * 3
    for difference, other, others in [
        ("weights float32", tiny_model(seed=1), processor),
        ("weights float32 .*, not bfloat16", tiny_model().to(torch.bfloat16), processor),
        ("vision_feature_layer -1, not -2", tiny_model(vision_feature_layer=-2), processor),
        ("pixels", model, pixels),
    ]:
        with pytest.raises(ValueError, match=rf"was encoded by another model \({difference}.*give the model"):
            store.sequence(other, QUERY, others)
        with pytest.raises(ValueError, match=rf"was encoded otherwise \({difference}.*choose another folder"):
            store.encode(video, other, others)


def test_another_video_or_sampling_is_refused(
    whole: Path, video: Path, model: Model, processor: Processor, tmp_path: Path
) -> None:
    before = files(whole)
    other = write_video(tmp_path / "other.mp4", FRAMES, rate=1, gop=5)
    store = FeatureStore.open(whole)
    for options, message in [
        ({"video": other}, "video [0-9a-f]{64}, not [0-9a-f]{64}"),
        ({"fps": 0.5}, "fps 1.0, not 0.5; num_frames"),
        ({"max_frames": 7}, "max_frames None, not 7"),
        ({"dtype": torch.bfloat16}, "dtype float16, not bfloat16"),
    ]:
        with pytest.raises(ValueError, match=message):
            store.encode(**{"video": video, "model": model, "processor": processor} | options)
    assert files(whole) == before


def test_what_open_and_encode_refuse(video: Path, model: Model, processor: Processor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        FeatureStore.open(video)
    with pytest.raises(ValueError, match="holds other files"):
        FeatureStore.open(video.parent)
    store = FeatureStore.open(tmp_path / "new")
    with pytest.raises(ValueError, match="holds no encoded video"):
        store.ask(model, QUERY, processor)
    with pytest.raises(ValueError, match=r"dtype must be one of float16, bfloat16, float32, got torch\.int8"):
        store.encode(video, model, processor, dtype=torch.int8)
    with pytest.raises(ValueError, match="tokens do not fit"):
        store.encode(video, model, processor, fps=1000)
    assert not store.folder.exists()


def test_a_type_that_is_too_small(video: Path, tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.vision_tower.embeddings.patch_embedding.weight.mul_(1e8)
    processor = Processor.byte_level(model.config)
    with pytest.raises(ValueError, match=r"float16 can't hold patches of up to .*: store them as bfloat16"):
        FeatureStore.open(tmp_path / "half").encode(video, model, processor)
    FeatureStore.open(tmp_path / "brain").encode(video, model, processor, dtype=torch.bfloat16)


@pytest.mark.parametrize(("part", "name"), [("vision_tower", "patches"), ("selector.vision_model", "embeds")])
def test_a_model_that_gives_nan_is_not_stored(part: str, name: str, video: Path, tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_submodule(part).embeddings.patch_embedding.weight.fill_(math.nan)
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinity"):
        FeatureStore.open(tmp_path / "store").encode(video, model, Processor.byte_level(model.config))
    assert not list((tmp_path / "store").glob("*.safetensors"))


# --- A second writer, a full disk ------------------------------------------------------------------------------------


def test_a_second_writer_is_refused(
    whole: Path, video: Path, model: Model, processor: Processor, tmp_path: Path
) -> None:
    started, says = os.pipe()

    class Waiting(Processor):
        def vision_pixels(self, frames: np.ndarray, *device: torch.device) -> torch.Tensor:
            if len(frames) > 1:
                os.write(says, b"!")
                time.sleep(600)
            return super().vision_pixels(frames, *device)

    waiting = Waiting(model.config, processor.tokenizer, processor.selector_tokenizer)
    store = FeatureStore.open(tmp_path / "store")
    child = in_child(lambda: store.encode(video, model, waiting))
    os.read(started, 1)  # it holds the lock now
    with pytest.raises(ValueError, match=r"another encoding is at work in .*: wait for its end"):
        store.encode(video, model, processor)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    store.encode(video, model, processor)
    assert files(store.folder) == files(whole)


def test_a_full_disk(whole: Path, video: Path, model: Model, processor: Processor, copied: Path) -> None:
    """A limit on the size of files stops a shard halfway, as a full disk does."""
    for lost in [*copied.glob("*-00001-*"), *copied.glob("*-00002-*")]:
        lost.unlink()
    kept = files(copied)
    says, hears = os.pipe()

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))  # patches of a shard take 38 KB
        try:
            FeatureStore.open(copied).encode(video, model, processor)
        except OSError as error:
            os.write(hears, str(error).encode())

    assert os.waitpid(in_child(work), 0)[1] == 0
    message = os.read(says, 10_000).decode()
    assert "bytes into" in message
    assert "(File too large); what is finished there is kept: make room, and run the same command again" in message
    left = files(copied)
    assert {name: left[name] for name in kept} == kept
    assert {name.rpartition("-")[0] for name in left.keys() - kept} <= {"frames-00001"}
    FeatureStore.open(copied).encode(video, model, processor)
    assert files(copied) == files(whole)


# --- The commands ----------------------------------------------------------------------------------------------------


def test_encode_then_ask(video: Path, tmp_path: Path, vilamp: Vilamp) -> None:
    store = tmp_path / "talk.features"
    made = shutil.copy(video, tmp_path / "talk.mp4")
    code, out, err = vilamp("encode", made, "--random-weights", "--max-frames", 40, "--stored", "float32", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["store"] == str(store)
    assert (result["num_frames"], result["shards"], result["dtype"], result["error"]) == (40, 2, "float32", 0)
    assert result["bytes_per_frame"] == pytest.approx(25 * 24 * 4 + 12 * 4 + 8, rel=0.02)
    options = ["--random-weights", "--max-new-tokens", 4, "--json"]
    from_file = json.loads(vilamp("ask", made, QUERY, *options, "--max-frames", 40)[1])
    made.unlink()
    from_store = json.loads(vilamp("ask", store, QUERY, *options)[1])
    assert from_store == from_file | {"video": str(store)}
    line = vilamp("ask", store, QUERY, *options, "--fps", 2)[2]
    assert line == f"vilamp: {store} was sampled when it was encoded: leave out --fps and --max-frames\n"
    code, out, err = vilamp("ask", store, QUERY, *options, "--dtype", "bfloat16")
    assert (code, out) == (2, "")
    assert "was encoded by another model (weights float32" in err


def test_what_the_commands_refuse(video: Path, tmp_path: Path, refusal: Refusal) -> None:
    for arguments, message in [
        (["encode", video, "--random-weights", "--out", video.parent], "holds other files and no manifest.json"),
        (["encode", video, "--random-weights", "--fps", 0], "fps"),
        (["encode", tmp_path / "missing.mp4", "--random-weights"], "missing.mp4: no such file"),
        (["encode", video, "--random-weights", "--stored", "int8"], "'int8' is not one of"),
        (["encode", video, "--random-weights", "--model", tmp_path], "give either --model DIR or --random-weights"),
        (["ask", tmp_path, "?", "--random-weights"], "holds no encoded video: `vilamp encode VIDEO` makes a store"),
        (["ask", video.parent, "?", "--random-weights"], "holds other files and no manifest.json"),
    ]:
        assert message in refusal(*arguments)
    assert not (tmp_path / "missing.features").exists()


def test_the_miniature_encodes_tinyworld_alone(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vilamp: Vilamp
) -> None:
    from tiny_models import save_random_miniature

    monkeypatch.setattr("vilamp_lite.cli.ask.MINIATURE", tmp_path / "miniature")
    save_random_miniature(tmp_path / "miniature")
    code, _, err = vilamp("encode", video, "--out", tmp_path / "store")
    assert code == 2
    assert "does not show TinyWorld" in err
    write_world(tmp_path / "world.mp4", [random_scene(1), random_scene(2)])
    assert vilamp("encode", tmp_path / "world.mp4")[0] == 0
    store = tmp_path / "world.features"
    code, out, err = vilamp("ask", store, "what color is the star?", "--max-new-tokens", 2, "--json")
    assert code == 0, err
    assert json.loads(out)["frames_sampled"] == random_scene(1).num_frames + random_scene(2).num_frames
    assert "does not know 'dog'" in vilamp("ask", store, "what color is the dog?")[2]


def test_ctrl_c_keeps_the_store_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vilamp: Vilamp
) -> None:
    video, store, printed = tmp_path / "long.mp4", tmp_path / "long.features", tmp_path / "printed"
    write_video(video, 20 * FRAMES_PER_SHARD, rate=1)
    monkeypatch.setattr(sys, "argv", ["vilamp", "encode", str(video), "--random-weights"])

    def work() -> None:
        sys.stdout = sys.stderr = printed.open("w", buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        main()

    child = in_child(work)
    while not shards(store):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), printed.read_text()
        time.sleep(0.01)
    os.kill(child, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    *_, line = printed.read_text().splitlines()
    kept = f"what is finished is kept in {store}"
    assert line == f"vilamp: stopped; {kept}; to go on: vilamp encode {video} --random-weights"
    before = files(store)
    assert "manifest.json" in before
    assert not any(name.startswith(UNFINISHED) for name in before)
    assert f"{store} lacks" in vilamp("ask", store, "?", "--random-weights")[2]
    assert vilamp("encode", video, "--random-weights")[0] == 0
    after = files(store)
    assert len(after) == 1 + 2 * 20
    assert {name: after[name] for name in before} == before
