"""HPSv3: a head on Qwen2-VL that gives the mean and the deviation of the human preference of an image."""

from torch import Tensor, nn

from lit_align.rewards import tiny, weights
from lit_align.rewards.published import published
from lit_align.rewards.reward import Reward
from lit_align.rewards.vlm import VLM, DType, in_chunks

REPOSITORY = "https://raw.githubusercontent.com/MizzenAI/HPSv3/d232ff8669a0b00759766067c6c3a26e2e717fac/"
MARK = "<|Reward|>"
AREA = 256 * 28 * 28  # pixels of every image, before its sides become multiples of 28


class HPSv3(Reward):
    """mu of the preference N(mu, sigma^2) (Ma et al. 2025, arXiv 2508.03789). A perceptron reads mu and log sigma from
    the hidden state of a token of its own at the end of the instruction. Positions of tokens are sequential, as
    released, and not Qwen2-VL's three-dimensional ones.

    Args:
        pretrained: hub id or folder of Qwen2-VL-7B-Instruct, for its config, tokenizer and chat template.
        checkpoint: the released weights, all of them: a file, or `<owner>/<name>/<file>` on the hub; None for a random
            head on the weights of `pretrained`.
        instruction: the released hpsv3/dataset/data_collator_qwen.py, which holds the instruction: a file or an https
            address.
        dtype: of the language model; the head is float32.
        chunk: images in one forward pass.
    """

    name, differentiable = "hpsv3", True
    artefact = "`MizzenAI/HPSv3`, `HPSv3.safetensors`; configuration and tokenizer of `Qwen/Qwen2-VL-7B-Instruct`"
    licence = "MIT"
    scale = "mu, unbounded; about -2 to 15"
    blind_to = "detail beyond 448 x 448 pixels"

    def __init__(
        self,
        pretrained: str = "Qwen/Qwen2-VL-7B-Instruct",
        checkpoint: str | None = "MizzenAI/HPSv3/HPSv3.safetensors",
        instruction: str = REPOSITORY + "hpsv3/dataset/data_collator_qwen.py",
        dtype: DType = "bfloat16",
        chunk: int = 8,
    ):
        super().__init__()
        state = weights.read(checkpoint) if checkpoint else {}
        head = weights.part(state, "rm_head.")
        body = {name: value for name, value in state.items() if not name.startswith("rm_head.")}
        self.vlm = VLM(pretrained, dtype, chunk, body or None, checkpoint, kind="Qwen2VL")
        if pretrained == "tiny":
            self.instruction = tiny.QUESTION + MARK
        else:
            self.vlm.pictures.size = {"shortest_edge": AREA, "longest_edge": AREA}
            self.instruction = published(instruction, "Textual prompt").replace("{text_prompt}", "{prompt}")
            self.instruction += published(instruction, MARK)
        self.vlm.tokenizer.add_special_tokens({"additional_special_tokens": [MARK]})
        self.mark, width = self.vlm.token(MARK), self.vlm.model.config.get_text_config().hidden_size
        if self.mark >= len(self.vlm.model.get_input_embeddings().weight):
            self.vlm.model.resize_token_embeddings(self.mark + 1).requires_grad_(False)
        mlp = nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
        self.rm_head = nn.Sequential(*mlp).eval().requires_grad_(False)
        if checkpoint:
            weights.fill(self.rm_head, head, f"{checkpoint}: rm_head")

    def moments(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """mu and sigma of the preference of each image, (N,) each."""
        texts = [self.instruction.replace("{prompt}", prompt) for prompt in prompts]
        mu, log_sigma = in_chunks(self.read, self.vlm.chunk, images[:, None], texts).unbind(1)
        return mu, log_sigma.exp()

    def read(self, images: Tensor, texts: list[str]) -> Tensor:
        """mu and log sigma (N, 2) of images (N, 1, 3, H, W)."""
        inputs = self.vlm.inputs(images, texts)
        here = inputs["input_ids"] == self.mark
        if (here.sum(1) != 1).any():
            raise ValueError(f"a prompt contains {MARK}, which marks where HPSv3 is read: take it out.")
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        hidden = self.vlm.model.model(**inputs, position_ids=positions).last_hidden_state  # (N, L, D)
        return self.rm_head(hidden[here].float())

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.moments(images, prompts)[0]
