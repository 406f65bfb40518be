"""ViLT as we export it: four tensors in, logits out, with no randomness and no control flow that depends on the data.

The arithmetic is the reference's; what differs is where constants are stored and the order of the tokens.

Source: Kim, Son, Kim 2021, section 3; transformers modeling_vilt.py; dandelin/ViLT vilt/modules.
Deviates:
    - patches keep their order; transformers' `visual_embed` draws them with `torch.multinomial`. Attention does not see
      the order, so answers agree up to the order of summation. A positive `max_image_length`, which drops patches at
      random, is not supported.
    - the patch convolution is a matrix product over flattened uint8 patches; rescaling, normalisation, the patch bias,
      the position and the modality rows are folded into its weights and into one position table.
    - positions of every reachable grid are interpolated once, at export, exactly as the reference does at run time.
    - the last layer computes only the pooled token, because nothing else of it is read.
    - 1 / sqrt(head size) is folded into the query, BERT's token type row 0 into the words.
    - keys have no bias: it would add the same to all scores of a query, which softmax ignores. The bias of values is
      folded into the output's, because attention's weights sum to 1.

Attention is one standard ONNX node (opset 23) on (B, N, hidden) tensors, which onnxruntime's kernels take without a
transpose and which TensorRT knows. The mask is passed as a bias that is added to the scores: onnxruntime would convert
a boolean mask to that in every layer. Attention written as eight nodes and fused after the export comes out wrong: the
mask is taken for a length, as if padding came last, or is dropped.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.spec import ViltSpec

MASKED = -1e9  # finite, unlike -inf: a row with every key masked stays a number
HEADS = ("vqa_logits", "itm_logits", "rank_logits")
LAYER = re.compile(r"vilt\.encoder\.layer\.(\d+)\.")
StateDict = dict[str, Tensor]
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphConfig:
    """The sizes of one ViLT and the constants of its image processor."""

    spec: ViltSpec
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    layer_norm_eps: float
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale_factor: float = 1 / 255


class TextEmbedding(nn.Module):
    """Word and position embeddings of the text, with its modality row."""

    def __init__(self, config: GraphConfig, state: StateDict) -> None:
        super().__init__()
        text = "vilt.embeddings.text_embeddings."
        words = state[text + "word_embeddings.weight"] + state[text + "token_type_embeddings.weight"][0]
        self.words = nn.Parameter(words)  # (vocabulary, hidden)
        self.positions = nn.Parameter(state[text + "position_embeddings.weight"])  # (max_text_tokens, hidden)
        self.norm = _layer_norm(state, text + "LayerNorm", config.layer_norm_eps)
        with torch.no_grad():
            self.norm.bias += state["vilt.embeddings.token_type_embeddings.weight"][0]

    def forward(self, input_ids: Tensor) -> Tensor:
        """Shapes: input_ids (B, L) int64 -> (B, L, hidden)."""
        return self.norm(nn.functional.embedding(input_ids, self.words) + self.positions[: input_ids.shape[1]])


class VisualEmbedding(nn.Module):
    """ViLT's whole visual embedding: one matrix product over uint8 patches and one look-up in the position table."""

    def __init__(self, config: GraphConfig, state: StateDict) -> None:
        super().__init__()
        embeddings = "vilt.embeddings."
        modality = state[embeddings + "token_type_embeddings.weight"][1]
        positions = state[embeddings + "position_embeddings"]  # (1, 1 + grid, hidden)
        weight, bias = fold_normalisation(config, state)
        self.weight = nn.Parameter(weight)  # (3072, hidden)
        self.positions = nn.Parameter(position_table(config, positions) + bias + modality)  # (position_rows, hidden)
        self.cls_token = nn.Parameter(state[embeddings + "cls_token"] + positions[:, :1] + modality)  # (1, 1, hidden)

    def forward(self, patches: Tensor, position_ids: Tensor) -> Tensor:
        """Shapes: patches (B, P, 3072) uint8, position_ids (B, P) int64 -> (B, 1 + P, hidden)."""
        embedded = patches.float() @ self.weight + nn.functional.embedding(position_ids, self.positions)
        return torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), embedded], dim=1)  # (B, 1 + P, hidden)


class KeyValue(nn.Module):
    """Keys and values, one product each: in fp32 on a CPU faster than a single one whose result must be split.

    Source: docs/decisions/0001-own-module-torch-export.md.
    """

    def __init__(self, key: nn.Linear, value: nn.Linear) -> None:
        super().__init__()
        self.key, self.value = key, value

    def forward(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: (B, N, hidden) -> twice the same."""
        return self.key(normed), self.value(normed)


class Layer(nn.Module):
    """A pre-norm transformer layer; the last one has the pooled token as its only query."""

    def __init__(self, config: GraphConfig, state: StateDict, index: int) -> None:
        super().__init__()
        layer = f"vilt.encoder.layer.{index}."
        attention = layer + "attention.attention."
        self.heads = config.num_attention_heads
        self.attend: Attend = attend
        self.pooled_only = index == config.num_layers - 1
        scale = (config.hidden_size // self.heads) ** -0.5
        self.norm_before = _layer_norm(state, layer + "layernorm_before", config.layer_norm_eps)
        self.query = _linear(state, attention + "query", scale=scale)
        key, value = _linear(state, attention + "key"), _linear(state, attention + "value")
        self.output = _linear(state, layer + "attention.output.dense")
        with torch.no_grad():
            self.output.bias += (self.output.weight.double() @ value.bias.double()).float()
        key.bias = value.bias = None
        self.key_value: nn.Module = KeyValue(key, value)
        self.norm_after = _layer_norm(state, layer + "layernorm_after", config.layer_norm_eps)
        self.expand = _linear(state, layer + "intermediate.dense")
        self.contract = _linear(state, layer + "output.dense")

    def forward(self, hidden: Tensor, attention_bias: Tensor) -> Tensor:
        """Shapes: hidden (B, N, hidden), attention_bias (B, 1, N, N) -> (B, N or 1, hidden)."""
        normed = self.norm_before(hidden)
        if self.pooled_only:
            hidden, queries = hidden[:, :1], normed[:, :1]
        else:
            queries = normed
        attended = self.attend(self.query(queries), *self.key_value(normed), attention_bias, self.heads)
        hidden = hidden + self.output(attended)
        return hidden + self.contract(nn.functional.gelu(self.expand(self.norm_after(hidden))))


def attend(query: Tensor, key: Tensor, value: Tensor, attention_bias: Tensor, heads: int) -> Tensor:
    """Attend in one ONNX node and in fp32; queries are scaled already.

    Shapes: query (B, N or 1, hidden), key and value (B, N, hidden), attention_bias (B, 1, N, N) -> as query
    """
    found = torch.onnx.ops.attention(
        query.float(),
        key.float(),
        value.float(),
        attention_bias[:, :, : query.shape[1]],
        q_num_heads=heads,
        kv_num_heads=heads,
        scale=1.0,
    )[0]
    return found.to(query.dtype)


def added_to_scores(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Make the bias that is added to attention scores, once for all layers; kernels want a row for every query.

    Shapes: mask (B, N) bool -> (B, 1, N, N)
    """
    length = mask.shape[1]
    return torch.where(mask, 0.0, MASKED).to(dtype)[:, None, None, :].expand(-1, 1, length, length)


class Interaction(nn.Module):
    """The transformer over both modalities, the pooler, and every head that the checkpoint has."""

    bias_dtype = torch.float  # of what is added to attention's scores

    def __init__(self, config: GraphConfig, state: StateDict) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, state, index) for index in range(config.num_layers))
        self.norm = _layer_norm(state, "vilt.layernorm", config.layer_norm_eps)
        self.pooler = _linear(state, "vilt.pooler.dense")
        self.heads = nn.ModuleDict(heads_of(state))

    def forward(self, text: Tensor, image: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Shapes: text (B, L, hidden), image (B, 1 + P, hidden), mask (B, L + 1 + P) bool -> logits of each head."""
        attention_bias = added_to_scores(mask, self.bias_dtype)
        hidden = torch.cat([text, image], dim=1)  # (B, N, hidden)
        for layer in self.layers:
            hidden = layer(hidden, attention_bias)
        pooled = torch.tanh(self.pooler(self.norm(hidden[:, 0])))  # (B, hidden), from the text's [CLS]
        return tuple(head(pooled) for head in self.heads.values())


class Fused(nn.Module):
    """The three parts as one graph."""

    def __init__(
        self, text_embedding: TextEmbedding, visual_embedding: VisualEmbedding, interaction: Interaction
    ) -> None:
        super().__init__()
        self.text_embedding = text_embedding
        self.visual_embedding = visual_embedding
        self.interaction = interaction

    def forward(self, input_ids: Tensor, patches: Tensor, position_ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Shapes: as the parts'; the tensors of DESIGN's contract."""
        text, image = self.text_embedding(input_ids), self.visual_embedding(patches, position_ids)
        return self.interaction(text, image, mask)


def build(config: GraphConfig, state: StateDict) -> Fused:
    """Build the module from a checkpoint's state dict.

    Raises: KeyError: the checkpoint lacks a weight, which the message names.
    """
    parts = TextEmbedding(config, state), VisualEmbedding(config, state), Interaction(config, state)
    return Fused(*parts).eval().requires_grad_(requires_grad=False)


def heads_of(state: StateDict) -> dict[str, nn.Module]:
    """Find the heads by their keys, in the order of HEADS; a matching head alone also ranks, by its true-pair row.

    Source: dandelin/ViLT vilt_module.py, which initialises `rank_output` from row 1 of `itm_score.fc`.
    """
    heads: dict[str, nn.Module] = {}
    if "classifier.3.weight" in state:
        classifier_eps = 1e-5  # torch's default, in the reference too
        heads["vqa_logits"] = nn.Sequential(
            _linear(state, "classifier.0"),
            _layer_norm(state, "classifier.1", classifier_eps),
            nn.GELU(),
            _linear(state, "classifier.3"),
        )
    if "itm_score.fc.weight" in state:
        heads["itm_logits"] = _linear(state, "itm_score.fc")
    if "rank_output.weight" in state:
        heads["rank_logits"] = _linear(state, "rank_output")
    elif "itm_score.fc.weight" in state:
        rows = {"rank.weight": state["itm_score.fc.weight"][1:], "rank.bias": state["itm_score.fc.bias"][1:]}
        heads["rank_logits"] = _linear(rows, "rank")
    return heads


def count_layers(state: StateDict) -> int:
    """Count the layers that a checkpoint holds, whatever its configuration says."""
    return len({found[1] for name in state if (found := LAYER.match(name))})


def fold_normalisation(config: GraphConfig, state: StateDict) -> tuple[Tensor, Tensor]:
    """Turn the patch convolution into a product with raw uint8 patches.

    Shapes: weight (hidden, 3, p, p) -> (3 * p * p, hidden) in HWC order; bias (hidden,).
    """
    convolution = state["vilt.embeddings.patch_embeddings.projection.weight"].double()
    bias = state["vilt.embeddings.patch_embeddings.projection.bias"].double()
    mean = torch.tensor(config.image_mean, dtype=torch.double)[:, None, None]
    std = torch.tensor(config.image_std, dtype=torch.double)[:, None, None]
    weight = convolution * (config.rescale_factor / std)
    bias = bias - (convolution * (mean / std)).sum(dim=(1, 2, 3))
    weight = weight.permute(2, 3, 1, 0).reshape(config.spec.patch_values, config.hidden_size)
    return weight.float(), bias.float()


def position_table(config: GraphConfig, positions: Tensor) -> Tensor:
    """Interpolate the learned grid to every grid that a picture of the configured size can have.

    Shapes: positions (1, 1 + side * side, hidden) -> (position_rows, hidden); row 0, the padding, is zero.
    Source: transformers modeling_vilt.py visual_embed: bilinear, align_corners=True.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    learned = positions[:, 1:].transpose(1, 2).unflatten(2, (side, side))  # (1, hidden, side, side)
    rows = [torch.zeros(1, positions.shape[2])]
    for grid in config.spec.grids:
        resized = nn.functional.interpolate(learned, size=grid, mode="bilinear", align_corners=True)
        rows.append(resized[0].flatten(1).T)
    return torch.cat(rows)


def _linear(state: StateDict, name: str, scale: float = 1.0) -> nn.Linear:
    """Take a linear map from a state; a missing bias is zero."""
    weight = state[f"{name}.weight"] * scale
    bias = state.get(f"{name}.bias", torch.zeros(len(weight))) * scale
    return _with(nn.Linear(weight.shape[1], weight.shape[0]), weight, bias)


def _layer_norm(state: StateDict, name: str, eps: float) -> nn.LayerNorm:
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return _with(nn.LayerNorm(len(weight), eps=eps), weight, bias)


def _with(module: Any, weight: Tensor, bias: Tensor) -> Any:
    module.load_state_dict({"weight": weight.clone(), "bias": bias.clone()})
    return module
