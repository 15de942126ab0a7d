"""Write a checkpoint in the authors' format with random weights: `python tests/random_checkpoint.py DIR`.

At full size (16.4 GB) it takes the time and memory of the published one, and its answers mean nothing.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict

from vilamp_lite.configuration import ViLaMPConfig
from vilamp_lite.modeling import ViLaMPForConditionalGeneration
from vilamp_lite.processing import ViLaMPProcessor
from vilamp_lite.released import RELEASED_NAMES

SELECTOR = "clip"


def save_released(model: ViLaMPForConditionalGeneration, folder: Path) -> None:
    """Write a released model as the authors' code does, with tokenizers of bytes."""
    weights = {}
    for name, tensor in model.state_dict().items():
        theirs, ours = next(pair for pair in RELEASED_NAMES.items() if name.startswith(pair[1]))
        weights[theirs + name.removeprefix(ours)] = tensor.cpu().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(weights, folder)
    config = model.config
    language = config.text_config.to_dict()
    released = {
        "model_type": "llava_qwen",
        "composer_type": "sig_pooling",
        "clip_model_path": SELECTOR,
        "max_frame_num": config.max_keyframes,
        "f2f_thrd": config.similarity_threshold,
        "f2t_thrd": config.relevance_threshold,
        "rope_theta": language.pop("rope_parameters")["rope_theta"],
    }
    (folder / "config.json").write_text(json.dumps(language | released, indent=1))
    vision = config.vision_config.to_dict()
    vision["num_hidden_layers"] += 1  # their file counts the last layer, which is not used
    (folder / "siglip-config.json").write_text(json.dumps({"vision_config": vision}, indent=1))
    model.generation_config.save_pretrained(folder)
    processor = ViLaMPProcessor.byte_level(config)
    processor.tokenizer.save_pretrained(folder)
    processor.selector_tokenizer.save_pretrained(folder / SELECTOR)
    config.selector_config.save_pretrained(folder / SELECTOR)


def main() -> int:
    """Make the full-size model, on a GPU if there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    torch.manual_seed(0)
    folder = parser.parse_args().folder
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = ViLaMPForConditionalGeneration(ViLaMPConfig.released())
    torch.set_default_dtype(torch.float32)
    save_released(model, folder)
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
