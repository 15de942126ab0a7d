"""The presets, their JSON, and what a configuration refuses."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from vilamp_lite.configuration import ViLaMPConfig
from vilamp_lite.merging import pool_patches
from vilamp_lite.modeling import ViLaMPForConditionalGeneration


@pytest.mark.parametrize("preset", ["paper", "released", "tiny"])
def test_json_round_trip(preset: str, tmp_path) -> None:
    config = getattr(ViLaMPConfig, preset)(max_keyframes=5, relevance_threshold=0.1)
    config.save_pretrained(tmp_path)
    for loaded in (ViLaMPConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, ViLaMPConfig)
        assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()


def test_full_size_numbers() -> None:
    for config in (ViLaMPConfig.paper(), ViLaMPConfig.released()):
        assert (config.max_keyframes, config.similarity_threshold, config.fps) == (32, 0.85, 1.0)
        assert (config.num_patches, config.tokens_per_keyframe, config.query_size) == (729, 196, 512)
        assert config.visual_tokens(600) == 6841
        assert config.visual_tokens(10_000) == 16_241
    unpooled = ViLaMPConfig.paper(keyframe_pooling="none", video_newline=False)
    assert unpooled.visual_tokens(10_000) == 729 * 32 + 9_968
    assert unpooled.visual_tokens(5) == 729 * 5
    assert ViLaMPConfig.paper().visual_tokens(100, num_keyframes=3) == 196 * 3 + 97 + 1


def test_presets_differ_where_the_code_departs_from_the_paper() -> None:
    paper, released = ViLaMPConfig.paper().to_dict(), ViLaMPConfig.released().to_dict()
    assert {name for name in paper if paper[name] != released[name]} == {
        *("relevance_threshold", "relevance_gate", "fill", "reference", "before_first"),
        *("merge_redundancy", "connectors", "merge_before_projection"),
    }
    assert ViLaMPConfig.released(reference="preceding").reference == "preceding"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_keyframe": 3}, "no field max_keyframe"),
        ({"max_keyframes": 0}, "max_keyframes must be an integer of at least 1"),
        ({"similarity_threshold": None}, "similarity_threshold must be a finite number, got NoneType None"),
        ({"similarity_threshold": 1.5}, "similarity_threshold is a cosine"),
        ({"relevance_threshold": float("nan")}, "relevance_threshold must be a finite number"),
        ({"temperature": 0.0}, "temperature must be a finite number above 0"),
        ({"redundancy_weight": "much"}, "redundancy_weight must be a finite number"),
        ({"fps": 0}, "fps must be a finite number above 0"),
        ({"fill": "holes"}, "fill must be one of"),
        ({"reference": "next"}, "reference must be one of"),
        ({"before_first": "last"}, "before_first must be one of"),
        ({"connectors": "triple"}, "connectors must be one of"),
        ({"merge_relevance": "learned"}, "merge_relevance must be one of"),
        ({"keyframe_pooling": "max"}, "keyframe_pooling must be one of"),
        ({"vision_feature_layer": -100}, "vision_feature_layer must be from -3 to 2, since"),
        ({"vision_feature_layer": -4}, "the vision tower has 2 layers; got -4"),
        ({"vision_feature_layer": 3}, "the vision tower has 2 layers; got 3"),
        ({"video_newline": "yes"}, "video_newline must be of type bool"),
        ({"video_token_id": 1.5}, "video_token_id must be of type int"),
        ({"vision_config": {"model_type": "nothing"}}, "nothing"),
        ({"vision_config": 3}, "must be configurations"),
        ({"vision_config": {"model_type": "siglip"}}, "vision_config can't be a siglip"),
        ({"selector_config": {"model_type": "bert"}}, "selector_config can't be a bert"),
        ({"tie_word_embeddings": True}, "set it in text_config"),
    ],
)
def test_bad_values_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViLaMPConfig.tiny(**changes)


def test_what_transformers_writes_into_a_file_is_read_and_nothing_else(tmp_path) -> None:
    """A trainer switches the cache off, and saves."""
    config = ViLaMPConfig.tiny()
    config.use_cache = False
    config.pad_token_id = 256
    config.save_pretrained(tmp_path)
    assert ViLaMPConfig.from_pretrained(tmp_path).max_keyframes == config.max_keyframes
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"max_keyframes"', '"most_keyframes"'))
    with pytest.raises(ValueError, match="no field most_keyframes"):
        ViLaMPConfig.from_pretrained(tmp_path)


def test_room_in_the_context() -> None:
    config = ViLaMPConfig.tiny()
    config.text_config.max_position_embeddings = 200
    # 4 keyframes of 9 tokens, and the newline, leave 163 for other frames, prompt and answer.
    config.require_room(167)
    config.require_room(100, prompt_tokens=60, new_tokens=7)
    for arguments, message in (
        ((168,), "201 tokens do not fit the language model's 200: 201 of the video .*; lower max_frames, fps"),
        ((100, 60, 8), "201 tokens .* 133 of the video .* 60 of the prompt, 8 of the answer; lower max_frames"),
        ((4, 195), "lower the length of the question"),
        ((4, 10, 400), "lower max_new_tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            config.require_room(*arguments)
    for count in (0, 4):
        with pytest.raises(ValueError, match="num_keyframes must be"):
            config.visual_tokens(3, num_keyframes=count)


def test_tokens_per_keyframe_is_what_pooling_gives() -> None:
    for side in (2, 5, 27):
        config = ViLaMPConfig.tiny(
            vision_config={"model_type": "siglip_vision_model", "image_size": 14 * side, "patch_size": 14}
        )
        assert config.num_patches == side**2
        assert config.tokens_per_keyframe == pool_patches(torch.ones(1, side**2, 1)).shape[1]


def test_full_size_parameter_counts() -> None:
    """Built on the meta device, against the published models' sizes."""
    counts = {}
    for preset in ("paper", "released"):
        with torch.device("meta"):
            model = ViLaMPForConditionalGeneration(getattr(ViLaMPConfig, preset)())
        counts[preset] = {
            name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children() if part is not None
        }
    for parts in counts.values():
        assert parts["language_model"] == 7_615_616_512  # Qwen2-7B
        assert parts["selector"] == 151_277_313  # CLIP ViT-B/32
        # One layer and the head of SigLIP-so400m are dropped.
        layer = 4 * (1152 * 1152 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152
        embeddings = 3 * 14 * 14 * 1152 + 1152 + 729 * 1152
        assert parts["vision_tower"] == embeddings + 26 * layer + 2 * 1152
        assert parts["keyframe_connector"] == 1152 * 3584 + 3584 + 3584 * 3584 + 3584
    assert counts["released"]["merger"] == 40_384_513
    assert "own_merged_connector" not in counts["released"]
    assert counts["paper"]["own_merged_connector"] == counts["paper"]["keyframe_connector"]
    assert counts["paper"]["merger"] == 512 * 1152 + 1152 + 1152 * 1152 + 1152 + 1
    # With the layer and the head, the tower has the published size.
    vision = ViLaMPConfig.paper().vision_config.to_dict() | {"num_hidden_layers": 27, "vision_use_head": True}
    with torch.device("meta"):
        tower = AutoModel.from_config(AutoConfig.for_model(**vision))
    assert sum(p.numel() for p in tower.parameters()) == 428_225_600
