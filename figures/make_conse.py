"""Keep the embeddings of the classes that the conse encoder knows: `python -m figures.make_conse`, in 10 s."""

import sys

from safetensors.torch import save_file

from vilamp_lite.common import written_whole
from vilamp_lite.conse import CLASSES, ConSEEncoder


def main() -> int:
    """Write them, with what they were made of."""
    encoder = ConSEEncoder("cpu")
    with written_whole(CLASSES) as waiting:
        save_file({"classes": encoder.embed_classes()}, waiting, {"made_of": encoder.made_of})
    print(CLASSES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
