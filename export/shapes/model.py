"""The ViLT that `shapes` trains: transformers' own ViltModel with three heads and two helpers.

Training goes through transformers' class, so that its checkpoint is a Hugging Face one and the export has an oracle.
The helpers, which no checkpoint holds, are dense signals where an answer alone teaches slowly: half way up, every patch
says what it shows and where it is; at the top, the pooled token says where the objects lie that a question names.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers.implementations import BertWordPieceTokenizer
from torch import Tensor, nn
from transformers import ViltConfig, ViltModel

from export.shapes.language import LABELS, MAX_TEXT_TOKENS, VOCABULARY
from export.shapes.scenes import COLORS, GRID, SHAPES

PATCH_PX = 32
IMAGE_PX = GRID * PATCH_PX
HELPER_LAYER = 2
PATCH_HELPERS = ("color", "shape", "row", "column")
POSITION_STD = 0.6  # of a row's and a column's vector: beside patches, which embed with 3, 0.02 would be lost
PLACES = 4  # row and column of the first object that a question names, and of the second
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *VOCABULARY]


def shapes_config() -> ViltConfig:
    """Describe the model: a ViLT a hundredth of the size of the published one."""
    return ViltConfig(
        architectures=["ViltForQuestionAnswering"],
        vocab_size=len(TOKENS),
        max_position_embeddings=MAX_TEXT_TOKENS,
        hidden_size=192,
        num_hidden_layers=5,
        num_attention_heads=6,
        intermediate_size=768,
        image_size=IMAGE_PX,
        patch_size=PATCH_PX,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )


class ShapesModel(nn.Module):
    """ViltModel, the heads that its checkpoint keeps, and the helpers that training drops."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.vilt = ViltModel(config)
        self.classifier = nn.Sequential(
            nn.Linear(hidden, 2 * hidden), nn.LayerNorm(2 * hidden), nn.GELU(), nn.Linear(2 * hidden, len(LABELS))
        )
        self.itm_score = nn.ModuleDict({"fc": nn.Linear(hidden, 2)})
        self.rank_output = nn.Linear(hidden, 1)
        self.helpers = nn.ModuleDict(
            {
                "color": nn.Linear(hidden, len(COLORS) + 1),
                "shape": nn.Linear(hidden, len(SHAPES) + 1),
                "row": nn.Linear(hidden, GRID),
                "column": nn.Linear(hidden, GRID),
                "places": nn.Linear(hidden, PLACES * GRID),
            }
        )
        embeddings = self.vilt.embeddings
        nn.init.trunc_normal_(embeddings.cls_token, std=0.02)
        nn.init.zeros_(embeddings.position_embeddings)
        rows, columns = torch.randn(2, GRID, hidden) * POSITION_STD
        embeddings.position_embeddings.data[0, 1:] = (rows[:, None] + columns).flatten(0, 1)

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Compute every head's logits for several texts about each scene.

        Shapes: pixels (S, 3, H, W) float in -1..1; input_ids and attention_mask (S * K, L), texts of a scene together.
        """
        texts = input_ids.shape[0] // pixels.shape[0]
        image = self._embed(pixels).repeat_interleave(texts, dim=0)  # (S * K, 1 + P, hidden)
        output = self.vilt(
            input_ids=input_ids,
            attention_mask=attention_mask,
            image_embeds=image,
            pixel_mask=torch.ones(image.shape[:2], dtype=torch.long),
            output_hidden_states=True,
        )
        half_way = output.hidden_states[HELPER_LAYER][::texts, input_ids.shape[1] + 1 :]  # (S, P, hidden)
        return {
            "vqa": self.classifier(output.pooler_output),
            "itm": self.itm_score["fc"](output.pooler_output),
            "rank": self.rank_output(output.pooler_output),
            "places": self.helpers["places"](output.pooler_output).unflatten(-1, (PLACES, GRID)),
            **self._name_patches(half_way),
        }

    def look(self, pixels: Tensor) -> dict[str, Tensor]:
        """Compute the helpers' logits of pictures alone, through the lower layers only.

        Shapes: pixels (S, 3, H, W) -> each helper's (S, P, classes).
        """
        hidden = self._embed(pixels) + self.vilt.embeddings.token_type_embeddings.weight[1]
        for layer in self.vilt.encoder.layer[:HELPER_LAYER]:
            (hidden,) = layer(hidden)
        return self._name_patches(hidden[:, 1:])

    def _embed(self, pixels: Tensor) -> Tensor:
        embeddings = self.vilt.embeddings
        patches = embeddings.patch_embeddings(pixels).flatten(2).transpose(1, 2)  # (S, P, hidden)
        cls_token = embeddings.cls_token.expand(len(pixels), -1, -1)
        return torch.cat([cls_token, patches], dim=1) + embeddings.position_embeddings  # (S, 1 + P, hidden)

    def _name_patches(self, patches: Tensor) -> dict[str, Tensor]:
        # Normalised, or the helpers would be served best by ever larger patches, beside which all later layers whisper.
        normed = nn.functional.layer_norm(patches, patches.shape[-1:])
        return {name: self.helpers[name](normed) for name in PATCH_HELPERS}


def save_checkpoint(model: ShapesModel, directory: Path) -> None:
    """Write a Hugging Face folder: weights without the helpers, configuration, tokenizer, image processor."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("helpers.")}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    model.vilt.config.save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    shapes_tokenizer().save(str(directory / "tokenizer.json"))
    processor = {
        "image_processor_type": "ViltImageProcessor",
        "size": {"shortest_edge": IMAGE_PX},
        "size_divisor": PATCH_PX,
        "resample": 3,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "rescale_factor": 1 / 255,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def shapes_tokenizer() -> BertWordPieceTokenizer:
    """Build the tokenizer: BERT's rules, every word of the recipe a token, any other word [UNK]."""
    return BertWordPieceTokenizer(vocab={token: index for index, token in enumerate(TOKENS)}, lowercase=True)
