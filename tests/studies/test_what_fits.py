"""The page of what fits."""

from lit_align.studies.what_fits import page


def test_a_recipe_is_a_row_and_what_has_no_estimate_says_why():
    told = {"trained": 2567.5, "peak": 40.1, "activations": 3.0, "8-bit": 21.0, "FSDP": None, "tflop": 81.0, "hours": 12.5, "uncounted": []}
    text = page({"dpo_sdxl.yaml": told, "b.yaml": {"failed": "a step that needs values"}})
    assert "| [`dpo_sdxl`](../configs/dpo_sdxl.yaml) | 2567.5 | 40.1 | 3.0 | 21.0 | - | 81.0 | 12.5 | - |" in text
    assert "Without an estimate:\n\n- [`b`](../configs/b.yaml): a step that needs values" in text
