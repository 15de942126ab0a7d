"""Check the model on a GPU, by hand: `python tests/gpu_smoke.py`. Exits with 1 if something differs, 2 without a GPU.

A random model must give on the GPU what it gives on the CPU, in each type and with each attention kernel, stream a file
to an answer, and find frames as alike. What the full-size model takes, notebook 05 measures: see random_checkpoint.py.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from tiny_models import tiny_inputs, tiny_model
from torch.nn import functional as F

from vilamp_lite.configuration import CLIP_VIT_B_32
from vilamp_lite.processing import ViLaMPProcessor
from vilamp_lite.video.source import stream_frames

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
    print(f"cosines of frames differ by {difference:.1e} (at most 2e-06)")
    return difference <= 2e-6


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cpu tries the script itself")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU that torch can use: nothing was checked")
        return 2
    fine = small(arguments.device) & selector(arguments.device)
    print("all as expected" if fine else "NOT as expected")
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
