"""Small things that every room uses; nothing here loads torch on import."""

import lazy_loader

_NAMES = {
    "checks": "ArrayLike choice cosine describe finite_number float_tensor positive_int require_finite",
    "outside": "File Text checked checked_json",
    "files": "LOCK UNFINISHED alone_in clear_unfinished require_new saved_whole unfinished write_json written_whole",
    "fingerprints": "PACKAGE code_checksum code_fingerprint file_sha256 parameters_sum tensors_fingerprint "
    "weights_fingerprint",
    "hub": "IGNORED loaded read_json read_safetensors usable_device",
    "precision": "full_precision",
    "progress": "announced_to is_headless loading_quietly progress_bar stage",
    "text": "in_seconds one_line require_text visible",
    "stamp": "ROOT make_stamp processor_name short_commit",
}
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={module: names.split() for module, names in _NAMES.items()}
)
