"""Check the model on a GPU, by hand: `python tests/gpu_smoke.py`. Exits with 1 if something differs, 2 without a GPU.

Small: a random model must give on the GPU what it gives on the CPU, in each type and with each attention kernel, and
stream a file to an answer. Full size (`--full`, 40 GB): random bfloat16 weights, the tokens and memory of 600 frames.
"""

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from tiny_models import tiny_inputs, tiny_model
from torch.nn import functional as F

from vilamp_lite.configuration import CLIP_VIT_B_32, ViLaMPConfig
from vilamp_lite.modeling import ViLaMPForConditionalGeneration
from vilamp_lite.processing import ViLaMPProcessor
from vilamp_lite.video import stream_frames

TOUR = Path(__file__).parents[1] / "data" / "photo_tour.mp4"
# Largest difference of a logit, relative to the largest logit: the types keep 24, 11 and 8 bits.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@torch.no_grad()
def small(device: str) -> bool:
    """Compare a tiny model with itself on the CPU."""
    inputs = tiny_inputs(12)
    # A soft merge, so that rounding isn't multiplied by 1 / 0.01.
    expected = tiny_model(temperature=0.5)(**inputs, logits_to_keep=6).logits
    kernels = ["eager", "sdpa"] + (["flash_attention_2"] if find_spec("flash_attn") else [])
    fine = True
    for dtype, tolerance in TOLERANCES.items():
        for kernel in kernels:
            if kernel == "flash_attention_2" and dtype == torch.float32:
                continue  # it has no float32
            model = tiny_model(temperature=0.5).to(device, dtype)
            model.set_attn_implementation(kernel)
            logits = model(**inputs, logits_to_keep=6).logits.float().cpu()
            difference = float((logits - expected).abs().max() / expected.abs().max())
            fine &= difference <= tolerance
            print(f"{dtype!s:15} {kernel:18} logits differ by {difference:.1e} (at most {tolerance:.0e})")
    model = tiny_model().to(device)
    processor = ViLaMPProcessor.byte_level(model.config)
    sequence = model.encode_video(TOUR, "Where is the cat?", processor, max_frames=20)
    answer = model.generate(
        **processor.prompts(["Where is the cat?"]), video_embeds=[sequence.embeds], max_new_tokens=5
    )
    print(f"streamed {len(sequence.timestamps)} frames into {len(sequence.embeds)} tokens on {sequence.embeds.device}")
    return fine and answer.device.type == torch.device(device).type


@torch.no_grad()
def selector(device: str) -> bool:
    """Compare the cosines of a CLIP of the paper's size, with random weights, with those on the CPU."""
    model = tiny_model(selector_config=CLIP_VIT_B_32)
    (batch,) = stream_frames(TOUR, batch_size=16, max_frames=16)
    pixels = ViLaMPProcessor.byte_level(model.config).selector_pixels(batch.frames)

    def cosines() -> torch.Tensor:
        units = F.normalize(model.embed_frames(pixels).double().cpu(), dim=-1)
        return units @ units.T

    expected = cosines()
    model.to(device)
    difference = float((cosines() - expected).abs().max())
    print(f"cosines of frames differ by {difference:.1e} (at most 2e-06; with TF32 it would be 5e-05)")
    return difference <= 2e-6


@torch.no_grad()
def full(device: str, num_frames: int = 600) -> bool:
    """Run the full-size model with random weights: tokens and peak memory."""
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = ViLaMPForConditionalGeneration(ViLaMPConfig.paper(fill="gaps")).eval()
    torch.set_default_dtype(torch.float32)
    torch.cuda.reset_peak_memory_stats()
    weights = torch.cuda.memory_allocated()
    start = time.perf_counter()
    query = model.embed_query(torch.tensor([[49406, 320, 2368, 49407]]))[0]
    frame_embeds = torch.cat([model.embed_frames(torch.rand(8, 3, 224, 224)) for _ in range(0, num_frames, 8)])
    keyframes = model.select(frame_embeds.float(), query.float()).indices
    ahead = {
        n: model.patch_features(torch.rand(1, 3, 384, 384))[0] for n in model.early_references(num_frames, keyframes)
    }
    batches = (model.patch_features(torch.rand(8, 3, 384, 384)) for _ in range(0, num_frames, 8))
    sequence = model.mix_tokens(batches, num_frames, keyframes, query, ahead)
    prompt = torch.tensor([[1, 2, model.config.video_token_id, 3]])
    model.generate(input_ids=prompt, video_embeds=[sequence.embeds], max_new_tokens=4, do_sample=False)
    peak = torch.cuda.max_memory_allocated() - weights
    print(
        f"full size: {weights / 2**30:.1f} GiB of weights; {num_frames} frames, {len(sequence.embeds):,} tokens, "
        f"{time.perf_counter() - start:.1f} s, {peak / 2**30:.1f} GiB above the weights"
    )
    return len(sequence.embeds) == model.config.visual_tokens(num_frames)


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cpu tries the script itself")
    parser.add_argument("--full", action="store_true", help="also the full-size model, with random weights")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU that torch can use: nothing was checked")
        return 2
    fine = small(arguments.device) & selector(arguments.device)
    if arguments.full:
        fine &= full(arguments.device)
    print("all as expected" if fine else "NOT as expected")
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
