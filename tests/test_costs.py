"""What a video costs: closed forms against torch's counter on the meta device, and against sums by hand."""

import json
import subprocess
import sys
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import Refusal, Vilamp
from flop_oracle import count_flops
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, Blip2VisionModel
from transformers.initialization import no_init_weights

from vilamp_lite.configuration import QWEN2_7B, SIGLIP_SO400M, ViLaMPConfig
from vilamp_lite.costs.as_paper import TABLE_5, flops_as_paper, table_5
from vilamp_lite.costs.shapes import GPUS, VisionTower, Workload
from vilamp_lite.costs.stages import Costs
from vilamp_lite.costs.tables import PEER_MODELS, costs_by_frames, model_costs, peer_costs
from vilamp_lite.costs.vilamp import released_code_costs, vilamp_costs
from vilamp_lite.evaluation.results import load_result
from vilamp_lite.modeling import ViLaMPForConditionalGeneration
from vilamp_lite.plots.costs import flops_by_frames, memory_by_frames, stage_memory
from vilamp_lite.tinyworld.miniature import miniature_config

TOLERANCE = 1e-3


def assert_counted(config: ViLaMPConfig, workload: Workload, num_keyframes: int | None = None) -> None:
    """Every stage's closed form is what torch's counter finds, linear products and attention each for itself."""
    counted = count_flops(config, workload, num_keyframes)
    costs = vilamp_costs(config, workload, num_keyframes)
    assert [stage.name for stage in costs.stages] == list(counted)
    for stage in costs.stages:
        found = counted[stage.name]
        for kind in ("linear", "square", "causal"):
            # The query's attention is counted as a square only.
            if (stage.name, kind) != ("selector", "causal"):
                assert getattr(stage, kind) == pytest.approx(getattr(found, kind), rel=TOLERANCE), (stage.name, kind)


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_formulas_are_what_torch_counts_at_full_size(preset: str) -> None:
    config, workload = getattr(ViLaMPConfig, preset)(), Workload(10_000)
    with no_init_weights():
        assert_counted(config, workload)
        with torch.device("meta"):
            model = ViLaMPForConditionalGeneration(config)
    costs = vilamp_costs(config, workload)
    selector, whole = (sum(part.numel() for part in module.parameters()) for module in (model.selector, model))
    assert costs.parameters == pytest.approx(whole, rel=TOLERANCE)
    # The selector stays in float32.
    assert costs.weights == pytest.approx(2 * whole + 2 * selector, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("changes", "frames", "keyframes", "answer"),
    [
        ({}, 37, 3, 9),
        ({"keyframe_pooling": "none", "connectors": "shared"}, 3, None, 1),
        ({"merge_redundancy": "mapped", "video_newline": False}, 1, None, 2),
        ({"merge_before_projection": False, "vision_config": {"model_type": "clip_vision_model"}}, 5, 5, 3),
    ],
)
def test_the_formula_follows_every_choice(changes: dict, frames: int, keyframes: int | None, answer: int) -> None:
    if "vision_config" in changes:
        tiny = ViLaMPConfig.tiny()
        llama = tiny.text_config.to_dict() | {"model_type": "llama", "num_key_value_heads": 1}
        changes = changes | {"vision_config": tiny.selector_config.vision_config.to_dict(), "text_config": llama}
    assert_counted(ViLaMPConfig.tiny(**changes), Workload(frames, 7, answer), keyframes)


def test_known_figures_of_the_language_model() -> None:
    """Qwen2-7B: 7.6156 billion parameters; 317.81 TFLOP for 16,240 tokens, 264.9 with attention counted causally."""
    qwen = PEER_MODELS["videochat-flash"].language
    linear, square, causal = qwen.prefill(16_240)
    assert qwen.weights == pytest.approx(7.6156e9, rel=TOLERANCE)
    assert linear + square == pytest.approx(317.81e12, rel=1e-4)
    assert linear + causal == pytest.approx(264.9e12, rel=1e-3)
    assert 2 * qwen.cache(1) == 57_344


class Held(TorchDispatchMode):
    """Adds up what tensors hold, from their making to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)}
        made = func(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tree_leaves(made) if torch.is_tensor(x)):
            if storage._cdata not in given | self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._end, storage._cdata, storage.nbytes())
        return made

    def _end(self, storage: int, size: int) -> None:
        self.known.discard(storage)
        self.now -= size


@torch.no_grad()
def test_activations_are_what_tensors_hold_at_full_width() -> None:
    """Of two layers each, since the peak lies in the last: shapes without numbers, and a kernel without L² scores."""
    workload = Workload(8, prompt_tokens=4096, dtype="float32")
    text = QWEN2_7B | {"num_hidden_layers": 2, "vocab_size": 100}
    config = ViLaMPConfig.paper(text_config=text, vision_config=SIGLIP_SO400M | {"num_hidden_layers": 2})
    costs = {stage.name: stage for stage in vilamp_costs(config, workload).stages}
    with no_init_weights(), FakeTensorMode():
        model = ViLaMPForConditionalGeneration(config).eval()
        with Held() as choosing:
            model.embed_frames(torch.empty(8, 3, 224, 224))
        with Held() as seeing:
            patches = model.patch_features(torch.empty(8, 3, 384, 384))
        visual = config.visual_tokens(8)
        tokens_made = 4 * visual * 3584
        with Held() as prefill:
            embeds = torch.empty(1, visual + 4096, 3584)
            model.language_model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)
        assert patches.shape == (8, 729, 1152)
    # The frames' pixels, read for the tower, are no activation of it.
    pixels = 4 * 8 * 3 * 384**2
    # The selector computes in float32 whatever the type of the rest; its GELU holds a third tensor of the MLP's width.
    (half, *_) = vilamp_costs(config, replace(workload, dtype="bfloat16")).stages
    mlp = 4 * 8 * 50 * 3072
    assert half.activations + mlp == pytest.approx(choosing.peak - 4 * 8 * 3 * 224**2, rel=0.02)
    assert costs["vision tower"].activations - tokens_made == pytest.approx(seeing.peak - pixels, rel=0.02)
    assert costs["prefill"].activations + costs["prefill"].cache - tokens_made == pytest.approx(prefill.peak, rel=0.02)


def test_the_released_code_holds_six_tensors_at_once() -> None:
    """292 GiB of them for 10,000 frames; streaming holds less than a hundredth of it."""
    released = {stage.name: stage for stage in released_code_costs(Workload(10_000)).stages}["merging"]
    others = 2 * 10_000 * 729 * (1152 + 512)
    assert (released.activations - others) / 2**30 == pytest.approx(292, abs=0.5)
    assert model_costs("vilamp-released", Workload(10_000)).peak_activations < released.activations / 100


def test_references_are_held_for_as_long_as_they_are_used() -> None:
    """The paper's one at a time, the released slip's one for each keyframe; in float32 whatever the weights are."""
    reference = 4 * 729 * 3584
    slip, paper = (
        {stage.name: stage for stage in vilamp_costs(ViLaMPConfig.released(reference=kind), Workload(100)).stages}
        for kind in ("released", "preceding")
    )
    tokens_made = 2 * 3584 * (196 * 32 + 68 + 1)
    assert paper["merging"].activations == 8 * reference * (2 * 2 + 4) // 4 + reference + tokens_made
    assert paper["connectors"].activations == 2 * 8 * 729 * 3 * 3584 + reference + tokens_made
    for stage in ("merging", "connectors"):
        assert slip[stage].activations - paper[stage].activations == 31 * reference


def test_a_table_by_frames_says_what_the_costs_say() -> None:
    (row,) = costs_by_frames(["longva"], [3000], GPUS["h100-80gb"], utilisation=0.5)
    costs = model_costs("longva", Workload(3000))
    assert row["memory"] == max(costs.weights + stage.cache + stage.activations for stage in costs.stages)
    assert row["prefill_causal"] == costs.stages[-2].linear + costs.stages[-2].causal
    *before, _ = costs.schedule(GPUS["h100-80gb"], utilisation=0.5)
    assert row["seconds_to_first_token"] == sum(stage["seconds"] for stage in before)
    assert (row["fits"], row["documented"]) == (False, False)


SHAPE = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "image_size", "patch_size")
TOWERS = {
    # Transformers' own models of the peers' towers; DINOv2 works its MLP's width out itself.
    "llama-vid": ("blip_2_vision_model", (40, 1408, 6144, 16, 224, 14), {}),
    "videochat-flash": ("videomae", (24, 1024, 4096, 16, 224, 16), {"num_frames": 4, "tubelet_size": 1}),
    "longva": ("clip_vision_model", (24, 1024, 4096, 16, 336, 14), {}),
    "longvu": ("dinov2", (40, 1536, None, 24, 378, 14), {"use_swiglu_ffn": True}),
    "llava-video": ("siglip_vision_model", (27, 1152, 4304, 16, 384, 14), {"vision_use_head": False}),
}


@torch.no_grad()
@pytest.mark.parametrize("peer", TOWERS)
def test_a_peers_tower_is_what_torch_counts(peer: str) -> None:
    kind, shape, more = TOWERS[peer]
    tower: VisionTower = PEER_MODELS[peer].towers[-1]
    with torch.device("meta"), no_init_weights():
        config = AutoConfig.for_model(kind, **dict(zip(SHAPE, shape, strict=True)), **more)
        clip = (tower.frames,) if kind == "videomae" else ()
        is_eva = config.model_type == "blip_2_vision_model"
        model = (Blip2VisionModel(config) if is_eva else AutoModel.from_config(config)).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(2, *clip, 3, config.image_size, config.image_size))
    linear, attention = tower.flops(2 * tower.frames)
    assert attention == pytest.approx(counter.get_flop_counts()["Global"][torch.ops.aten.bmm], rel=TOLERANCE)
    assert linear + attention == pytest.approx(counter.get_total_flops(), rel=TOLERANCE)
    weights = sum(part.numel() for part in model.parameters())
    assert tower.weights == pytest.approx(weights, rel=5e-3)


@torch.no_grad()
@pytest.mark.parametrize("peer", ["llama-vid", "longva"])
def test_a_peers_language_model_is_what_torch_counts(peer: str) -> None:
    vicuna = {"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008}
    vicuna |= {"num_hidden_layers": 32, "num_attention_heads": 32, "tie_word_embeddings": False}
    with torch.device("meta"), no_init_weights():
        config = AutoConfig.for_model(**(vicuna if peer == "llama-vid" else QWEN2_7B))
        model = AutoModelForCausalLM.from_config(config).eval()
        embeds = torch.empty(1, 5000, config.hidden_size)
        with FlopCounterMode(display=False) as counter:
            model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)
    language = PEER_MODELS[peer].language
    assert sum(language.prefill(5000)[:2]) == pytest.approx(counter.get_total_flops(), rel=TOLERANCE)
    assert language.weights == pytest.approx(sum(part.numel() for part in model.parameters()), rel=TOLERANCE)


def test_a_clip_is_padded_and_dropped_frames_are_not_read() -> None:
    tower = PEER_MODELS["videochat-flash"].towers[0]
    assert tower.flops(1) == tower.flops(4) != tower.flops(5)
    assert peer_costs("longvu", Workload(10_000)).visual_tokens == 400 * 64


def test_the_papers_own_counting_is_found() -> None:
    """Table 5's four figures, each within 0.5 %, and the parts of one by hand."""
    for row in table_5():
        assert row["tflops"] == pytest.approx(row["paper"], rel=5e-3)
    # A frame: patch embedding and 26 layers of SigLIP, the projector; a token: 28 layers of Qwen2-7B without its head.
    layer = 4 * 1152**2 + 2 * 1152 * 4304
    frame = 729 * (3 * 14**2 * 1152 + 26 * layer + 1152 * 3584 + 3584**2)
    token = 28 * (2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    assert flops_as_paper(64, 100) == pytest.approx(64 * frame + (32 * 196 + 32 + 1 + 100) * token, rel=1e-6)
    assert [row["frames"] for row in table_5(100)] == [64, 100, 256, 1024, 8192]


def test_time_is_flops_over_the_stated_part_of_the_peak() -> None:
    costs = model_costs("vilamp", Workload(1000, answer_tokens=11))
    gpu = GPUS["h100-80gb"]
    rows = {row["stage"]: row for row in costs.schedule(gpu, utilisation=0.5, decode_rate=40)}
    assert rows["video decoding"]["seconds"] == 2 * 1000 / 40
    once, *_ = model_costs("released-code", Workload(1000)).schedule(gpu, decode_rate=40)
    assert once["seconds"] == 1000 / 40
    stages = {stage.name: stage for stage in costs.stages}
    assert rows["prefill"]["seconds"] == pytest.approx(stages["prefill"].flops("causal") / (0.5 * 989e12))
    assert rows["selector"]["seconds"] == pytest.approx(stages["selector"].flops("causal") / (0.5 * 67e12))
    # Ten tokens: each reads 7.07 billion weights (all but the embeddings) of two bytes, and the cache.
    read = 10 * (2 * 7.07e9 + costs.kv_cache)
    assert rows["decode"]["seconds"] == pytest.approx(read / (0.5 * 0.5 * 3.35e12), rel=2e-3)


@pytest.mark.parametrize("part", ["1000", "10000"])
def test_estimates_are_those_of_a_run_on_an_h100_within_half_of_it(part: str) -> None:
    """Decoding the file is left out: TinyWorld's frames are 64×64."""
    run = next(row for row in load_result(f"gpu/{part}")["rows"] if "stages" in row)
    measured = {row["stage"]: row for row in run["stages"]}
    prompt = measured["prefill"]["tokens"] - run["visual_tokens"]
    workload = Workload(run["frames"], prompt_tokens=prompt, answer_tokens=measured["decoding"]["tokens"])
    costs = vilamp_costs(ViLaMPConfig.released(), workload)
    seconds = {row["stage"]: row["seconds"] for row in costs.schedule(GPUS["h100-80gb"])}
    stages = {"selector embedding": ["selector"], "patches and merging": ["vision tower", "merging", "connectors"]}
    for stage, parts in (stages | {"prefill": ["prefill"], "decoding": ["decode"]}).items():
        assert 1 / 1.5 < sum(seconds[name] for name in parts) / measured[stage]["seconds"] < 1.5, stage
    assert costs.peak_memory == pytest.approx(run["peak_memory"], rel=0.05)


# What the chips are made of: multiprocessors; FLOPs of each per cycle, in tensor cores and in float32, with the boost
# clock of each in GHz; width of the memory's bus in bits, and Gbit/s of each of its lines.
CHIPS = {
    "a100-40gb": (108, (2048, 1.41), (128, 1.41), (5120, 2.43)),
    "a100-80gb": (108, (2048, 1.41), (128, 1.41), (5120, 3.186)),
    "rtx-4090": (128, (512, 2.52), (256, 2.52), (384, 21)),
    "h100-80gb": (132, (4096, 1.83), (256, 1.98), (5120, 5.24)),
}


def test_data_sheets_follow_from_the_chips() -> None:
    assert set(GPUS) == set(CHIPS)
    for name, (processors, half, single, memory) in CHIPS.items():
        gpu = GPUS[name]
        assert gpu.half == pytest.approx(processors * half[0] * half[1] * 1e9, rel=0.01)
        assert gpu.single == pytest.approx(processors * single[0] * single[1] * 1e9, rel=0.01)
        assert gpu.bandwidth == pytest.approx(memory[0] / 8 * memory[1] * 1e9, rel=0.01)
        assert f" {gpu.memory / 1e9:.0f} GB" in gpu.name


@pytest.mark.parametrize(("model", "fits"), [("vilamp", True), ("videochat-flash", False), ("released-code", False)])
def test_what_fits_on_40_gb(model: str, fits: bool) -> None:
    costs = model_costs(model, Workload(10_000))
    rows = costs.schedule(GPUS["a100-40gb"])
    assert all(row["fits"] for row in rows) == fits == (costs.peak_memory <= 40e9)
    assert max(row["memory"] for row in rows) == costs.peak_memory


def test_what_is_not_counted_is_refused() -> None:
    bad = {"num_frames": 0, "prompt_tokens": -1, "answer_tokens": 0, "batch_size": 0, "dtype": "int4"}
    for name, value in bad.items():
        with pytest.raises(ValueError, match=name):
            Workload(**{"num_frames": 1} | {name: value})
    workload = Workload(4)
    with pytest.raises(ValueError, match="keyframe_block"):
        vilamp_costs(ViLaMPConfig.tiny(keyframe_block=True), workload)
    with pytest.raises(ValueError, match="tinyworld"):
        vilamp_costs(miniature_config(keyframe_block=False), workload)
    with pytest.raises(ValueError, match="num_keyframes"):
        vilamp_costs(ViLaMPConfig.paper(), workload, 5)
    with pytest.raises(ValueError, match="no keyframes"):
        model_costs("longva", workload, 3)
    with pytest.raises(ValueError, match="utilisation"):
        model_costs("vilamp", workload).schedule(GPUS["a100-40gb"], utilisation=1.5)
    with pytest.raises(ValueError, match="attention"):
        model_costs("vilamp", workload).flops("half")


def test_costs_need_no_torch() -> None:
    """But ViLaMP's own do: transformers loads it for any model's configuration."""
    code = """
import sys
from vilamp_lite import cli
from vilamp_lite.costs import room, shapes, stages, tables, vilamp
sys.argv = ["vilamp", "costs", "--model", "longva", "--json"]
try:
    cli.main()
finally:
    assert "torch" not in sys.modules
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["model"] == "LongVA"


def test_the_command_prints_one_object(vilamp: Vilamp) -> None:
    def run(*arguments: object) -> dict[str, Any]:
        code, out, err = vilamp("costs", "--json", *arguments)
        assert code == 0, err
        return json.loads(out)

    result = run("--frames", 10000, "--gpu", "a100-80gb")
    costs: Costs = model_costs("vilamp", Workload(10_000))
    assert result["visual_tokens"] == 16_241
    assert result["peak_memory"] == costs.peak_memory
    assert (result["fits"], result["fits_context"]) == (True, True)
    assert [stage["stage"] for stage in result["stages"]] == ["video decoding", *(stage.name for stage in costs.stages)]
    assert result["seconds"] == pytest.approx(sum(stage["seconds"] for stage in result["stages"]))
    assert result["seconds_to_first_token"] == result["seconds"] - result["stages"][-1]["seconds"]
    assert not run("--keyframes", 200)["fits_context"]
    assert not run("--model", "longva", "--frames", 5000)["fits"]
    assert run("--model", "longvu")["fits_context"] is None


def test_the_table_says_what_it_counts(vilamp: Vilamp) -> None:
    code, out, _ = vilamp("costs", "--model", "released-code")
    assert code == 0
    for stage in model_costs("released-code", Workload(10_000)).stages:
        assert f"{stage.name}: {stage.counts}\n" in out
    assert "does NOT fit" in out


@pytest.mark.parametrize(
    ("option", "value"),
    [("--gpu", "tpu"), ("--model", "gpt"), ("--frames", 0), ("--utilisation", 0), ("--decode-rate", -1)],
)
def test_the_command_refuses_in_one_line(option: str, value: object, refusal: Refusal) -> None:
    assert option[2:].replace("-", "_").replace("frames", "num_frames") in refusal("costs", option, value)


def test_the_figure_of_one_run_marks_what_does_not_fit() -> None:
    schedule = model_costs("released-code", Workload(10_000)).schedule(GPUS["a100-80gb"])
    assert {row["fits"] for row in schedule} == {True, False}
    axis = stage_memory(schedule, "A100", 80e9).axes[0]
    assert [bar.get_width() for bar in axis.patches] == [row["memory"] / 1e9 for row in schedule]
    assert ["does not fit" not in text.get_text() for text in axis.texts] == [row["fits"] for row in schedule]
    colours = {(bar.get_facecolor(), row["fits"]) for bar, row in zip(axis.patches, schedule, strict=True)}
    assert len(colours) == 2
    assert axis.get_lines()[0].get_xdata()[0] == 80


def test_figures_draw_the_rows() -> None:
    rows = costs_by_frames(["vilamp", "longva"], [100, 2000, 10_000])
    axis = memory_by_frames(rows, {"80 GB": 80e9}).axes[0]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axis.get_lines()}
    assert drawn["ViLaMP"] == [[row["frames"], row["memory"] / 1e9] for row in rows[:3]]
    assert drawn["LongVA"] == [[row["frames"], row["memory"] / 1e9] for row in rows[3:5]]  # its files end at 2,000
    assert [80, 80] in [list(line.get_ydata()) for line in axis.get_lines()]
    alone, everything = flops_by_frames(rows).axes
    for panel, column in ((alone, "prefill_causal"), (everything, "flops_causal")):
        drawn = {line.get_label(): line.get_ydata().tolist() for line in panel.get_lines()}
        assert drawn["ViLaMP"] == [row[column] / 1e12 for row in rows[:3]]


def test_the_command_counts_as_the_paper(vilamp: Vilamp, refusal: Refusal) -> None:
    code, out, _ = vilamp("costs", "--as-paper", "--frames", 100, "--json")
    found = json.loads(out)
    assert code == 0
    assert {row["frames"]: row["paper"] for row in found["rows"]} == {100: None, **TABLE_5}
    assert "Left out" in found["notes"][1]
    assert "--gpu, --model" in refusal("costs", "--as-paper", "--model", "longva", "--gpu", "rtx-4090")
