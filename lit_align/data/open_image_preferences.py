"""open-image-preferences: people's choices between images of FLUX.1 dev and Stable Diffusion 3.5 large."""

from lit_align.data.judged_pairs import JudgedPairs


class OpenImagePreferences(JudgedPairs):
    """The binarized release of open-image-preferences-v1, about 10,000 pairs: columns prompt, chosen and rejected.

    Its ties were left out by the publisher.
    """

    home = (
        "open-image-preferences is data-is-better-together/open-image-preferences-v1-binarized: set --data.path to it, "
        "or to a folder with its parquet files."
    )
    names = {"prompt": "prompt", "image_0": "chosen", "image_1": "rejected"}
    has_ties = False

    def __init__(self, path: str = "data-is-better-together/open-image-preferences-v1-binarized", **kwargs):
        super().__init__(path=path, **kwargs)
