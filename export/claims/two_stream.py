"""Transformers with separate streams for text and picture that attend to each other: ViLBERT, LXMERT."""

import torch
from torch import Tensor, nn

from export.claims.sizes import Sizes
from export.claims.transformer import (
    EXPANSION,
    HEADS,
    HIDDEN,
    LAYERS,
    MATCHING,
    Attention,
    FeedForward,
    Layer,
    attend,
    bert_layer,
)

VILBERT_WIDTH, VILBERT_HEADS, CONNECTIONS = 1024, 8, 6  # of the picture's stream and of the co-attention
LANGUAGE_LAYERS, VISION_LAYERS, CROSS_LAYERS = 9, 5, 5  # LXMERT


class CoAttention(nn.Module):
    """ViLBERT's connection: each stream reads the other's keys and values, then has a feed-forward of its own.

    Source: Lu et al. 2019, section 3.1; bert_base_6layer_6conect.json of the authors' vilbert_beta.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        text, image = sizes.width(HIDDEN), sizes.width(VILBERT_WIDTH)
        self.of_text = nn.ModuleList(nn.Linear(text, image) for _ in range(3))  # query, key, value
        self.of_image = nn.ModuleList(nn.Linear(image, image) for _ in range(3))
        self.text_output, self.image_output = nn.Linear(image, text), nn.Linear(image, image)
        self.text_norm, self.image_norm = nn.LayerNorm(text), nn.LayerNorm(image)
        self.text_feed_forward = FeedForward(text, EXPANSION * text)
        self.image_feed_forward = FeedForward(image, image)  # v_intermediate_size is 1,024

    def forward(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: (1, L, 768), (1, V, 1024) -> the same."""
        text_query, text_key, text_value = (linear(text) for linear in self.of_text)
        image_query, image_key, image_value = (linear(image) for linear in self.of_image)
        to_text = attend(text_query, image_key, image_value, VILBERT_HEADS)  # (1, L, 1024)
        to_image = attend(image_query, text_key, text_value, VILBERT_HEADS)  # (1, V, 1024)
        text = self.text_norm(text + self.text_output(to_text))
        image = self.image_norm(image + self.image_output(to_image))
        return self.text_feed_forward(text), self.image_feed_forward(image)


class ViLBert(nn.Module):
    """Six layers of text alone, then six times: a connection, a layer of the picture, a layer of the text."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        connections, image = sizes.depth(CONNECTIONS), sizes.width(VILBERT_WIDTH)
        self.text_first = nn.Sequential(*(bert_layer(sizes) for _ in range(sizes.depth(LAYERS - CONNECTIONS))))
        self.connections = nn.ModuleList(CoAttention(sizes) for _ in range(connections))
        self.image_layers = nn.ModuleList(Layer(image, VILBERT_HEADS, image) for _ in range(connections))
        self.text_layers = nn.ModuleList(bert_layer(sizes) for _ in range(connections))

    def forward(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: (1, L, 768), (1, V, 1024) -> the same."""
        text = self.text_first(text)
        for connect, image_layer, text_layer in zip(self.connections, self.image_layers, self.text_layers, strict=True):
            text, image = connect(text, image)
            text, image = text_layer(text), image_layer(image)
        return text, image


class ViLBertHead(nn.Module):
    """A pooler for each stream; their product says whether they match."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        image = sizes.width(VILBERT_WIDTH)
        self.text_pooler, self.image_pooler = nn.Linear(sizes.width(HIDDEN), image), nn.Linear(image, image)
        self.matching = nn.Linear(image, MATCHING)

    def forward(self, text_hidden: Tensor, image_hidden: Tensor) -> Tensor:
        """Shapes: (1, L, 768), (1, V, 1024) -> (1, 2)."""
        text, image = self.text_pooler(text_hidden[:, 0]), self.image_pooler(image_hidden[:, 0])
        return self.matching(torch.relu(text) * torch.relu(image))


class CrossLayer(nn.Module):
    """LXMERT's cross-modality layer; one attention's weights serve both directions."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width(HIDDEN)
        self.cross = Attention(width, HEADS)
        self.text_layer, self.image_layer = bert_layer(sizes), bert_layer(sizes)

    def forward(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: (1, L, hidden), (1, V, hidden) -> the same."""
        text, image = self.cross(text, image), self.cross(image, text)
        return self.text_layer(text), self.image_layer(image)


class Lxmert(nn.Module):
    """Nine layers of text and five of the picture, each alone, then five across.

    Source: Tan and Bansal 2019, section 2.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.text_layers = nn.Sequential(*(bert_layer(sizes) for _ in range(sizes.depth(LANGUAGE_LAYERS))))
        self.image_layers = nn.Sequential(*(bert_layer(sizes) for _ in range(sizes.depth(VISION_LAYERS))))
        self.cross_layers = nn.ModuleList(CrossLayer(sizes) for _ in range(sizes.depth(CROSS_LAYERS)))

    def forward(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: (1, L, hidden), (1, V, hidden) -> the same; the pooler reads the text's."""
        text, image = self.text_layers(text), self.image_layers(image)
        for layer in self.cross_layers:
            text, image = layer(text, image)
        return text, image
