"""BERT's embeddings, layers and pooler, and the single-stream transformer over text and picture tokens.

Source: Devlin et al. 2019; BERT-base: 12 layers of 768, 12 heads, 3,072 in between.
Deviates:
    - no attention mask: nothing is padded here.
    - keys and values have no bias: the output's can hold what those do, as ViLT's does (export/graph.py).
"""

import torch
from torch import Tensor, nn

from export.claims.sizes import Sizes

HIDDEN, HEADS, LAYERS, VOCABULARY, POSITIONS = 768, 12, 12, 30_522, 512
EXPANSION = 4
MATCHING = 2  # logits: this text and this picture belong together, or not
CORNERS = (0, 1, 2, 3)  # of x1, y1, x2, y2, width, height, area, each a share of the picture's
AREA = (*CORNERS, 6)
SIZE = (*CORNERS, 4, 5)
SIZE_AND_AREA = (*CORNERS, 4, 5, 6)


class TextEmbedding(nn.Module):
    """Words, positions and segment."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width(HIDDEN)
        self.words = nn.Parameter(torch.empty(sizes.width(VOCABULARY), width))
        self.positions = nn.Parameter(torch.empty(POSITIONS, width))
        self.segment = nn.Parameter(torch.empty(width))
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Shapes: (1, L) int64 -> (1, L, hidden)."""
        positions = self.positions[: input_ids.shape[1]]
        return self.norm(nn.functional.embedding(input_ids, self.words) + positions + self.segment)


class RegionEmbedding(nn.Module):
    """Take the regions that NMS kept and project what they look like and where they are."""

    def __init__(self, region_channels: int, width: int, geometry: tuple[int, ...], *, joined: bool) -> None:
        """Project features and geometry together (`joined`, as OSCAR) or apart and sum (as UNITER)."""
        super().__init__()
        self.geometry, self.joined = geometry, joined
        self.features = nn.Linear(region_channels + (len(geometry) if joined else 0), width)
        if not joined:
            self.feature_norm = nn.LayerNorm(width)
        if geometry and not joined:
            self.location = nn.Linear(len(geometry), width)
            self.location_norm = nn.LayerNorm(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, region_features: Tensor, boxes: Tensor, kept: Tensor | None = None) -> Tensor:
        """Shapes: (R, C), (R, 4) px, (V,), or all R without it -> (1, V, hidden)."""
        features = region_features if kept is None else region_features[kept]  # (V, C)
        location = self._geometry(boxes if kept is None else boxes[kept])  # (V, up to 7)
        if self.joined:
            return self.norm(self.features(torch.cat([features, location], dim=1)))[None]
        embedded = self.feature_norm(self.features(features))
        if self.geometry:
            embedded = embedded + self.location_norm(self.location(location))
        return self.norm(embedded)[None]

    def _geometry(self, boxes: Tensor) -> Tensor:
        height_px, width_px = 800, 1333
        corners = boxes / torch.tensor([width_px, height_px, width_px, height_px])  # (V, 4)
        size = corners[:, 2:] - corners[:, :2]  # (V, 2)
        area = size[:, :1] * size[:, 1:]  # (V, 1)
        return torch.cat([corners, size, area], dim=1)[:, list(self.geometry)]


class Attention(nn.Module):
    """Multi-head attention from one sequence to itself or to another, with BERT's residual and norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.output = (nn.Linear(width, width) for _ in range(2))
        self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor, context: Tensor) -> Tensor:
        """Shapes: (1, N, width), (1, M, width) -> (1, N, width)."""
        mixed = attend(self.query(hidden), self.key(context), self.value(context), self.heads)
        return self.norm(hidden + self.output(mixed))


class FeedForward(nn.Module):
    """Two linear maps around a GELU, with BERT's residual and norm."""

    def __init__(self, width: int, expanded: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, expanded)
        self.contract = nn.Linear(expanded, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Shapes: (1, N, width) -> the same."""
        return self.norm(hidden + self.contract(nn.functional.gelu(self.expand(hidden))))


class Layer(nn.Module):
    """Self-attention and feed-forward."""

    def __init__(self, width: int, heads: int, expanded: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.feed_forward = FeedForward(width, expanded)

    def forward(self, hidden: Tensor) -> Tensor:
        """Shapes: (1, N, width) -> the same."""
        return self.feed_forward(self.attention(hidden, hidden))


class SingleStream(nn.Module):
    """One BERT over text and picture tokens together."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(bert_layer(sizes) for _ in range(sizes.depth(LAYERS))))

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Shapes: (1, L, hidden), (1, V, hidden) -> (1, L + V, hidden)."""
        return self.layers(torch.cat([text, image], dim=1))


class Head(nn.Module):
    """BERT's pooler and the matching logits."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width(HIDDEN)
        self.pooler = nn.Linear(width, width)
        self.matching = nn.Linear(width, MATCHING)

    def forward(self, hidden: Tensor) -> Tensor:
        """Shapes: (1, N, hidden) -> (1, 2)."""
        return self.matching(torch.tanh(self.pooler(hidden[:, 0])))


def bert_layer(sizes: Sizes) -> Layer:
    """Build a layer of BERT-base."""
    width = sizes.width(HIDDEN)
    return Layer(width, HEADS, EXPANSION * width)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Mix values by the softmax of scaled products, in one ONNX node, as ViLT's graph does.

    Shapes: (1, N, width), (1, M, width) twice, bias (N, M) -> (1, N, width).
    """
    mixed: Tensor = torch.onnx.ops.attention(query, key, value, bias, q_num_heads=heads, kv_num_heads=heads)[0]
    return mixed
