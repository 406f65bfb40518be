"""Shallow interaction: CLIP and VSE++ compare two vectors, SCAN lets words attend to regions.

Pictures and texts are encoded apart, so a picture's side can be kept from one query to the next.

Deviates: CLIP's keys and values have no bias, as in transformer.py.
"""

import torch
from torch import Tensor, nn

from export.claims import resnet
from export.claims.sizes import Sizes
from export.claims.transformer import EXPANSION, attend

CLIP_PATCH_PX, CLIP_WIDTH, CLIP_HEADS, CLIP_LAYERS = 32, 768, 12, 12
CLIP_TEXT_WIDTH, CLIP_TEXT_HEADS, CLIP_TEXT_LAYERS = 512, 8, 12
CLIP_VOCABULARY, CLIP_JOINT = 49_408, 512
WORD, JOINT, VOCABULARY = 300, 1024, 11_755  # VSE++ and SCAN; words of COCO's captions
SHARPNESS = 9.0  # SCAN's softmax over regions


class ClipPatches(nn.Module):
    """One convolution over 32x32 patches: the same that ViLT does.

    Source: Radford et al. 2021; openai/CLIP clip/model.py.
    """

    def __init__(self, sizes: Sizes, num_patches: int) -> None:
        super().__init__()
        width = sizes.width(CLIP_WIDTH)
        self.project = nn.Conv2d(3, width, CLIP_PATCH_PX, stride=CLIP_PATCH_PX, bias=False)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1 + num_patches, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Shapes: (1, 3, 224, 224) -> (1, 50, 768)."""
        patches = self.project(pixel_values).flatten(2).transpose(1, 2)  # (1, 49, 768)
        return self.norm(torch.cat([self.cls_token, patches], dim=1) + self.positions)


class ClipImage(nn.Module):
    """A vision transformer and the projection of its first token, of length 1."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width(CLIP_WIDTH)
        self.layers = nn.Sequential(*(ClipLayer(width, CLIP_HEADS) for _ in range(sizes.depth(CLIP_LAYERS))))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, sizes.width(CLIP_JOINT), bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Shapes: (1, 50, 768) -> (1, 512)."""
        return nn.functional.normalize(self.project(self.norm(self.layers(tokens)[:, 0])), dim=1)


class ClipText(nn.Module):
    """A causal transformer over 77 tokens and the projection of the last."""

    def __init__(self, sizes: Sizes, length: int) -> None:
        super().__init__()
        width = sizes.width(CLIP_TEXT_WIDTH)
        self.words = nn.Parameter(torch.empty(sizes.width(CLIP_VOCABULARY), width))
        self.positions = nn.Parameter(torch.empty(length, width))
        causal = torch.full((length, length), -1e9).triu(1)
        self.layers = nn.Sequential(
            *(ClipLayer(width, CLIP_TEXT_HEADS, causal) for _ in range(sizes.depth(CLIP_TEXT_LAYERS)))
        )
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, sizes.width(CLIP_JOINT), bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Shapes: (1, 77) int64 -> (1, 512)."""
        hidden = self.layers(nn.functional.embedding(input_ids, self.words) + self.positions)
        return nn.functional.normalize(self.project(self.norm(hidden[:, -1])), dim=1)


class ClipLayer(nn.Module):
    """A pre-norm layer with the quick GELU; the text's has a causal mask."""

    def __init__(self, width: int, heads: int, attention_bias: Tensor | None = None) -> None:
        super().__init__()
        self.heads, self.attention_bias = heads, attention_bias
        self.norm_before, self.norm_after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.output = (nn.Linear(width, width) for _ in range(2))
        self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.expand, self.contract = nn.Linear(width, EXPANSION * width), nn.Linear(EXPANSION * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Shapes: (1, N, width) -> the same."""
        normed = self.norm_before(hidden)
        attended = attend(self.query(normed), self.key(normed), self.value(normed), self.heads, self.attention_bias)
        hidden = hidden + self.output(attended)
        expanded = self.expand(self.norm_after(hidden))
        return hidden + self.contract(expanded * torch.sigmoid(1.702 * expanded))


class PooledImage(nn.Module):
    """VSE++'s picture: the mean of the last feature map, projected, of length 1.

    Source: Faghri et al. 2018, section 3.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.project = nn.Linear(resnet.channels(sizes, "res5"), sizes.width(JOINT))

    def forward(self, res5: Tensor) -> Tensor:
        """Shapes: (1, 2048, 7, 7) -> (1, 1024)."""
        return nn.functional.normalize(self.project(res5.mean(dim=(2, 3))), dim=1)


class RegionVectors(nn.Module):
    """SCAN's picture: every region that NMS kept, projected, of length 1.

    Source: Lee et al. 2018, section 3.2.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.project = nn.Linear(resnet.channels(sizes, "res5"), sizes.width(JOINT))

    def forward(self, region_features: Tensor, kept: Tensor) -> Tensor:
        """Shapes: (R, 2048), (V,) -> (1, V, 1024)."""
        return nn.functional.normalize(self.project(region_features[kept]), dim=1)[None]


class RecurrentText(nn.Module):
    """A GRU over word vectors: its last state (VSE++), or the mean of both directions at every word (SCAN)."""

    def __init__(self, sizes: Sizes, *, every_word: bool) -> None:
        super().__init__()
        word, self.joint, self.every_word = sizes.width(WORD), sizes.width(JOINT), every_word
        self.directions = 2 if every_word else 1
        self.words = nn.Parameter(torch.empty(sizes.width(VOCABULARY), word))
        self.weight = nn.Parameter(torch.empty(self.directions, 3 * self.joint, word))
        self.recurrence = nn.Parameter(torch.empty(self.directions, 3 * self.joint, self.joint))
        self.bias = nn.Parameter(torch.empty(self.directions, 6 * self.joint))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Shapes: (1, L) int64 -> (1, 1024), or of every word (L, 1024)."""
        words = nn.functional.embedding(input_ids[0], self.words)[:, None]  # (L, 1, 300)
        length = words.shape[0]
        states, last = torch.onnx.ops.symbolic_multi_out(
            "GRU",
            (words, self.weight, self.recurrence, self.bias),
            {
                "hidden_size": self.joint,
                "direction": "bidirectional" if self.every_word else "forward",
                "linear_before_reset": 1,  # as torch's GRU
            },
            dtypes=(words.dtype, words.dtype),
            shapes=((length, self.directions, 1, self.joint), (self.directions, 1, self.joint)),
            version=14,
        )
        vectors = states.mean(dim=1)[:, 0] if self.every_word else last[0]
        return nn.functional.normalize(vectors, dim=1)


class DotProduct(nn.Module):
    """Compare one text with any number of pictures."""

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Shapes: (1, joint), (I, joint) -> (I,)."""
        return (image @ text.transpose(0, 1))[:, 0]


class StackedCrossAttention(nn.Module):
    """Each word attends to the regions; the picture's score is how well what they saw fits them.

    Source: Lee et al. 2018, section 3.1, text to image, mean over words.
    """

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Shapes: (L, joint), (I, V, joint), both of length 1 -> (I,)."""
        similar = torch.relu(image @ text.transpose(0, 1))  # (I, V, L)
        weights = torch.softmax(SHARPNESS * nn.functional.normalize(similar, dim=2), dim=1)
        attended = weights.transpose(1, 2) @ image  # (I, L, joint)
        return nn.functional.cosine_similarity(attended, text[None], dim=2).mean(dim=1)
