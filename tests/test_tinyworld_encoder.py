"""TinyWorld's dual encoder, its tokenizer, and the bank that keeps what it makes of scenes."""

import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel
from video_files import write_video as write_numbers

from vilamp_lite import tinyworld
from vilamp_lite.common.fingerprints import parameters_sum
from vilamp_lite.common.progress import loading_quietly
from vilamp_lite.encoders import load_encoder
from vilamp_lite.keyframes import select_keyframes
from vilamp_lite.tinyworld import bank as bank_module
from vilamp_lite.tinyworld.bank import bank_scenes, build_bank, encode_scenes, tinyworld_pixels
from vilamp_lite.tinyworld.encoder import (
    TinyWorldConfig,
    TinyWorldModel,
    require_known_words,
    tinyworld_tokenizer,
    vocabulary,
)
from vilamp_lite.tinyworld.haystack import hide
from vilamp_lite.tinyworld.miniature import miniature_config, miniature_processor
from vilamp_lite.tinyworld.questions import FAMILIES, pair_scene, random_scene, sample_questions
from vilamp_lite.tinyworld.render import COLORS, SHAPES, is_tinyworld, render_scene, render_scenes, write_video
from vilamp_lite.training.contrastive import caption_texts
from vilamp_lite.training.miniature import assemble
from vilamp_lite.video.source import probe

QUESTIONS = [family.text.format(shape=shape) for family in FAMILIES.values() for shape in SHAPES]
ANSWERS = sorted({answer for family in FAMILIES.values() for shape in SHAPES for answer in family.options(shape)})


def random_encoder(seed: int = 0) -> TinyWorldModel:
    torch.manual_seed(seed)
    return TinyWorldModel(TinyWorldConfig(text_config={"vocab_size": len(vocabulary())})).eval()


@pytest.fixture(scope="module")
def encoder() -> TinyWorldModel:
    return random_encoder().requires_grad_(False)


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(encoder: TinyWorldModel, tmp_path: Path) -> None:
    with loading_quietly():
        encoder.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is TinyWorldModel
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is TinyWorldConfig
    assert config.text_config.vocab_size == len(vocabulary())
    assert config.vision_config.model_type == "tinyworld_vision"
    assert parameters_sum(loaded) == parameters_sum(encoder) != parameters_sum(random_encoder(1))
    pixels, ids = torch.randn(2, 3, 64, 64), torch.tensor([[5, 6, 2]])
    # Read from a file, weights lie elsewhere in memory, and a BLAS may then add in another order.
    for read, made in (
        (loaded.get_image_features(pixels), encoder.get_image_features(pixels)),
        (loaded.get_text_features(ids), encoder.get_text_features(ids)),
    ):
        torch.testing.assert_close(read, made, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_patch_sees_its_cell_alone(encoder: TinyWorldModel) -> None:
    pixels = torch.randn(1, 3, 64, 64)
    for cell in (0, 6, 15):
        changed = pixels.clone()
        row, column = divmod(cell, 4)
        # Its border, too: nothing is seen across it.
        changed[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 1
        before, after = (encoder.vision(p).last_hidden_state for p in (pixels, changed))
        assert before.shape == (1, 16, 96)
        assert (before != after).any(dim=2)[0].nonzero()[:, 0].tolist() == [cell]


@pytest.mark.parametrize("training", [False, True])  # transformer layers have a way of their own for evaluation
@torch.no_grad()
def test_padding_changes_no_text(training: bool) -> None:
    encoder, tokenizer = random_encoder().train(training), tinyworld_tokenizer(ends=True)
    texts = list(caption_texts())[::7]
    tokens = tokenizer(texts, padding="max_length", max_length=20, return_tensors="pt")
    assert (tokens["attention_mask"] == 0).any(dim=1).all()
    padded = encoder.get_text_features(tokens["input_ids"], tokens["attention_mask"])
    alone = [encoder.get_text_features(tokenizer(text, return_tensors="pt")["input_ids"]) for text in texts]
    torch.testing.assert_close(padded, torch.cat(alone), rtol=0, atol=1e-5)
    unmasked = encoder.get_text_features(tokens["input_ids"])
    assert (padded - unmasked).abs().max() > 1e-3


def test_the_encoder_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_encoder("tinyworld")` reads the bundled model's selector: the same pixels and words as in training."""
    model = assemble(random_encoder(), 0)
    with loading_quietly():
        miniature_processor(model).save_pretrained(tmp_path)
        model.selector.save_pretrained(tmp_path / "selector")
    monkeypatch.setattr(tinyworld, "MINIATURE", tmp_path)
    encoder = load_encoder("tinyworld", "cpu")
    assert encoder.name == "tinyworld"
    scene = random_scene(3)
    torch.testing.assert_close(encoder.encode_frames(render_scene(scene)), encode_scenes(model.selector, [scene])[0])
    query = miniature_processor(model).selector_query([QUESTIONS[0]])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.embed_query(**query), dim=-1)
    torch.testing.assert_close(encoder.encode_text([QUESTIONS[0]]), expected)


@pytest.mark.parametrize("ends", [False, True])
def test_every_word_is_known(ends: bool) -> None:
    tokenizer = tinyworld_tokenizer(ends)
    assert len(tokenizer) == len(vocabulary()) == len(set(vocabulary())) <= 64
    for text in [*QUESTIONS, *ANSWERS, *caption_texts()]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids, text
        assert (ids[-1] == tokenizer.eos_token_id) is ends
        words = re.findall(r"\w+|\?", text)
        assert tokenizer.convert_ids_to_tokens(ids[:-1] if ends else ids) == words
        assert tokenizer(f" {text.upper()} ")["input_ids"] == ids
        require_known_words(text.title() + ".")
    assert tokenizer.convert_ids_to_tokens(tokenizer("what dog?")["input_ids"])[:3] == ["what", "<|unknown|>", "?"]
    # What is gone through here is all there is.
    words = {word for text in [*QUESTIONS, *ANSWERS] for word in re.findall(r"\w+", text)}
    assert set(SHAPES) | set(COLORS) <= words <= set(vocabulary())


def test_prompts_and_answers_go_through_the_tokenizer() -> None:
    processor = miniature_processor(assemble(random_encoder(), 0))
    tokenizer, config = processor.tokenizer, processor.config
    ids = processor.prompts([QUESTIONS[0]])["input_ids"][0].tolist()
    assert tokenizer.unk_token_id not in ids
    assert ids.count(config.video_token_id) == 1
    chat = tokenizer.decode([token for token in ids if token != config.video_token_id])
    assert " ".join(chat.split()) == (
        "<|im_start|> system you are a helpful assistant . <|im_end|> "
        "<|im_start|> user what color is the circle ? <|im_end|> <|im_start|> assistant"
    )
    for answer in ANSWERS:
        reply = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        assert processor.batch_decode(torch.tensor([reply])) == [answer]
        require_known_words(answer)
    language = miniature_config().text_config
    special = (language.pad_token_id, language.bos_token_id, language.eos_token_id)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == special
    assert language.vocab_size == len(vocabulary())


def test_unknown_words_are_named() -> None:
    for question, unknown in (
        ("what color is the dog?", "'dog'"),
        ("Which DOG, has the star?", "'dog,'"),
        ("is the cat with the moon?.", "'cat'"),
        ("what color is the <|im_end|>", r"'<\|im_end\|>'"),  # words of the chat are no words of a question
        ("<|unknown|>?", r"'<\|unknown\|>'"),
    ):
        with pytest.raises(ValueError, match=rf"not know {unknown}; it was trained on .*what color is the star\?"):
            require_known_words(question)


def test_scenes_are_encoded_frame_by_frame(encoder: TinyWorldModel) -> None:
    # More frames than are encoded at once.
    scenes = [*map(random_scene, range(14)), *map(pair_scene, range(4))]
    embeds, patches = encode_scenes(encoder, scenes)
    frames = np.concatenate([render_scene(scene) for scene in scenes])
    assert len(frames) > 96
    assert embeds.shape == (len(frames), 96)
    assert patches.shape == (len(frames), 16, 96)
    for number in range(0, len(frames), 5):
        pixels = tinyworld_pixels(frames[number : number + 1])
        assert (pixels.min() >= -1) & (pixels.max() <= 1)
        own = torch.nn.functional.normalize(encoder.get_image_features(pixels), dim=-1)
        torch.testing.assert_close(embeds[number], own[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(patches[number], encoder.vision(pixels).last_hidden_state[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(len(frames)))


def test_scenes_of_the_bank_are_for_training() -> None:
    scenes = bank_scenes(30, 20)
    assert all(scene.seed % 2 == 0 for scene in scenes)
    assert len({scene.seed for scene in scenes}) == 50
    assert [scene == random_scene(scene.seed) for scene in scenes] == [True] * 30 + [False] * 20
    for scene in scenes[30:]:
        assert len({thing.shape for thing in scene.things}) == 2
    other = bank_scenes(30, 20, first_seed=100)
    assert not {scene.seed for scene in scenes} & {scene.seed for scene in other}
    assert {scene.seed % 2 for scene in other} == {0}


def test_the_bank_is_built_once(encoder: TinyWorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "folder" / "bank.safetensors"
    first = build_bank(encoder, 4, 3, file)
    content, written = file.read_bytes(), file.stat().st_mtime_ns
    assert [path.name for path in file.parent.iterdir()] == ["bank.safetensors"]
    kept_in_memory = build_bank(encoder, 4, 3)

    monkeypatch.setattr(bank_module, "render_scene", lambda scene: pytest.fail("drawn again"))
    again = build_bank(encoder, 4, 3, file)
    for bank in (again, kept_in_memory):
        assert torch.equal(bank.embeds, first.embeds)
        assert torch.equal(bank.patches, first.patches)
        assert bank.scenes == first.scenes == tuple(bank_scenes(4, 3))
        assert bank.first_frame.tolist() == first.first_frame.tolist()
    assert (file.read_bytes(), file.stat().st_mtime_ns) == (content, written)
    assert again.num_random == 4
    assert again.patches.dtype == torch.float16
    starts = np.cumsum([0, *(scene.num_frames for scene in first.scenes)])
    assert again.first_frame.tolist() == starts[:-1].tolist()
    assert again.lengths.tolist() == np.diff(starts).tolist()
    assert len(again.embeds) == len(again.patches) == starts[-1]

    for other in ((random_encoder(1), 4, 3), (encoder, 5, 3), (encoder, 4, 2)):
        with pytest.raises(ValueError, match=r"bank\.safetensors is the bank of another encoder or size; delete it"):
            build_bank(*other, file)
    assert file.read_bytes() == content


def test_a_file_that_is_no_bank(encoder: TinyWorldModel, tmp_path: Path) -> None:
    file = tmp_path / "bank.safetensors"
    for content in (b"a text that someone put here", b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"bank\.safetensors is no bank .*; delete it"):
            build_bank(encoder, 2, 1, file)
        assert file.read_bytes() == content


def test_tinyworlds_files_are_known(tmp_path: Path) -> None:
    write_video(tmp_path / "world.mp4", [random_scene(1)])
    write_numbers(tmp_path / "numbers.mp4", 4)
    with av.open(tmp_path / "latin.mp4", "w", metadata_encoding="latin-1") as container:
        container.metadata["comment"] = "été"
        stream = container.add_stream("libx264", rate=1)
        container.mux([*stream.encode(av.VideoFrame(64, 64, "yuv420p")), *stream.encode(None)])
    found = {path.stem: is_tinyworld(probe(path)) for path in tmp_path.iterdir()}
    assert found == {"world": True, "numbers": False, "latin": False}


def test_the_bundled_encoder_finds_needles() -> None:
    """On scenes it was not trained on: differential keyframes show every needle among 1,024 frames, four keyframes."""
    encoder = load_encoder("tinyworld")
    assert encoder.name == "tinyworld"
    found = {}
    for family in ("attribute", "companion", "two needles", "two companions"):
        for question in sample_questions(family, 2, seed=5, split="test"):
            haystack = hide(question, 1024, 0.5, seed=5, pool=300)
            embeds = torch.cat([encoder.encode_frames(frames) for frames in render_scenes(haystack.scenes, 512)])
            (query,) = encoder.encode_text([question.text])
            keyframes = select_keyframes(embeds, query, max_keyframes=4).indices.tolist()
            found[question.text] = [
                any(start <= keyframe < stop for keyframe in keyframes) for start, stop in haystack.needle_frames
            ]
    assert all(all(needles) for needles in found.values()), found
