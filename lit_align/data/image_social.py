"""Image-Social, the data of Social Reward (arXiv 2402.09872): what users of Picsart remixed, and what they did not."""

from lit_align.data.judged_pairs import JudgedPairs


class ImageSocial(JudgedPairs):
    """Image-Social in the columns that the authors' code reads: prompt, pos_path (a popular image) and neg_path.

    The data was not released.
    """

    home = (
        "Image-Social was not released: set --data.path to your copy, a parquet file with the columns prompt, pos_path "
        "and neg_path (paths relative to it)."
    )
    names = {"prompt": "prompt", "image_0": "pos_path", "image_1": "neg_path"}
    has_ties = False
