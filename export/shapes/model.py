"""The ViLT that `shapes` trains: transformers' own ViltModel with three heads and two helpers.

Training uses transformers' class, so that the checkpoint is a Hugging Face one and the export has an oracle. The
helpers, which are not saved, give dense training signals where answers alone teach slowly: half way up, every patch
predicts which object has its centre in it, and where; at the top, the pooled token predicts where the objects are that
a question names.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers.implementations import BertWordPieceTokenizer
from torch import Tensor, nn
from transformers import ViltConfig, ViltModel

from export.shapes.questions import LABELS
from export.shapes.scenes import COLORS, SHAPES, SHORT_SIDE
from export.shapes.words import MAX_TEXT_TOKENS, VOCABULARY
from models.spec import Grid, ViltSpec

SPEC = ViltSpec(shortest_edge_px=int(SHORT_SIDE), patch_px=32, max_text_tokens=MAX_TEXT_TOKENS)
GRID = SPEC.shortest_edge_px // SPEC.patch_px  # rows and columns of the position table, interpolated for other pictures
HELPER_LAYER = 3
BINS = 8  # of a picture's width and of its height, to say where something is
PATCH_HELPERS = {"color": len(COLORS) + 1, "shape": len(SHAPES) + 1, "size": 4, "x": BINS, "y": BINS}  # classes of each
POSITION_STD = 0.6  # of a row's and a column's vector: beside patches, which embed with 3, 0.02 would be lost
PLACES = 4  # x and y of the first object that a question names, and of the second
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *VOCABULARY]


def shapes_config() -> ViltConfig:
    """Describe the model: a ViLT a hundredth of the size of the published one."""
    return ViltConfig(
        architectures=["ViltForQuestionAnswering"],
        vocab_size=len(TOKENS),
        max_position_embeddings=MAX_TEXT_TOKENS,
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=6,
        intermediate_size=768,
        image_size=SPEC.shortest_edge_px,
        patch_size=SPEC.patch_px,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )


Texts = dict[str, Tensor]  # input_ids and attention_mask, (S * K, L) each


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
                **{name: nn.Linear(hidden, classes) for name, classes in PATCH_HELPERS.items()},
                "places": nn.Linear(hidden, PLACES * BINS),
            }
        )
        embeddings = self.vilt.embeddings
        nn.init.trunc_normal_(embeddings.cls_token, std=0.02)
        nn.init.zeros_(embeddings.position_embeddings)
        rows, columns = torch.randn(2, GRID, hidden) * POSITION_STD
        embeddings.position_embeddings.data[0, 1:] = (rows[:, None] + columns).flatten(0, 1)

    def forward(self, patches: Tensor, grid: Grid, questions: Texts, captions: Texts) -> dict[str, Tensor]:
        """Compute the logits of the heads that read questions, of those that read captions, and of the helpers.

        Shapes: patches (S, P, 3072) uint8; each of the texts (S * K, L), those of a scene together.
        """
        image = self._embed(patches, grid)
        asked, half_way = self._read(image, questions)
        said, _ = self._read(image, captions)
        return {
            "vqa": self.classifier(asked),
            "places": self.helpers["places"](asked).unflatten(-1, (PLACES, BINS)),
            "itm": self.itm_score["fc"](said),
            "rank": self.rank_output(said),
            **self._name_patches(half_way),
        }

    def look(self, patches: Tensor, grid: Grid) -> dict[str, Tensor]:
        """Compute the helpers' logits of pictures alone, through the lower layers only.

        Shapes: patches (S, P, 3072) uint8 -> each helper's (S, P, classes).
        """
        hidden = self._embed(patches, grid) + self.vilt.embeddings.token_type_embeddings.weight[1]
        for layer in self.vilt.encoder.layer[:HELPER_LAYER]:
            (hidden,) = layer(hidden)
        return self._name_patches(hidden[:, 1:])

    def _read(self, image: Tensor, texts: Texts) -> tuple[Tensor, Tensor]:
        """Run texts with their scenes' patches.

        Shapes: image (S, 1 + P, hidden) -> pooled (S * K, hidden), patches half way up, once for each scene.
        """
        count = len(texts["input_ids"]) // len(image)
        image = image.repeat_interleave(count, dim=0)  # (S * K, 1 + P, hidden)
        output = self.vilt(
            **texts,
            image_embeds=image,
            pixel_mask=torch.ones(image.shape[:2], dtype=torch.long),
            output_hidden_states=True,
        )
        half_way = output.hidden_states[HELPER_LAYER][::count, texts["input_ids"].shape[1] + 1 :]  # (S, P, hidden)
        return output.pooler_output, half_way

    def _embed(self, patches: Tensor, grid: Grid) -> Tensor:
        embeddings = self.vilt.embeddings
        convolution = embeddings.patch_embeddings.projection
        weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)  # (hidden, 3072), HWC as the patches are
        tokens = nn.functional.linear(patches.float() / 127.5 - 1, weight, convolution.bias)  # (S, P, hidden)
        first, table = embeddings.position_embeddings.split((1, GRID * GRID), dim=1)
        table = table.transpose(1, 2).unflatten(-1, (GRID, GRID))
        table = nn.functional.interpolate(table, size=grid, mode="bilinear", align_corners=True)  # as transformers does
        cls_token = (embeddings.cls_token + first).expand(len(patches), -1, -1)
        return torch.cat([cls_token, tokens + table.flatten(2).transpose(1, 2)], dim=1)  # (S, 1 + P, hidden)

    def _name_patches(self, patches: Tensor) -> dict[str, Tensor]:
        # Normalised, or the helpers would make patches ever larger, until nothing that later layers add matters.
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
        "size": {"shortest_edge": SPEC.shortest_edge_px},
        "size_divisor": SPEC.patch_px,
        "resample": 3,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "rescale_factor": 1 / 255,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def shapes_tokenizer() -> BertWordPieceTokenizer:
    """Build the tokenizer: BERT's rules, every word of the recipe a token, any other word [UNK]."""
    return BertWordPieceTokenizer(vocab={token: index for index, token in enumerate(TOKENS)}, lowercase=True)
