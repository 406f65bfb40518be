"""Grid features: Pixel-BERT's picture tokens are the cells of the last feature map.

Source: Huang et al. 2020, section 3.2.
"""

import torch
from torch import Tensor, nn

from export.claims import resnet
from export.claims.sizes import Sizes
from export.claims.transformer import HIDDEN


class GridEmbedding(nn.Module):
    """Halve the feature map, flatten it and project its cells, with one embedding that marks them as pixels."""

    def __init__(self, sizes: Sizes, num_tokens: int) -> None:
        super().__init__()
        width = sizes.width(HIDDEN)
        self.num_tokens = num_tokens
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.project = nn.Linear(resnet.channels(sizes, "res5"), width)
        self.pixel = nn.Parameter(torch.empty(width))
        self.norm = nn.LayerNorm(width)

    def forward(self, res5: Tensor) -> Tensor:
        """Shapes: (1, 2048, H / 32, W / 32) -> (1, V, hidden).

        Deviates: the first cells, as many as ViLT's Table 6 counts: 260 of 273, 146 of 160. Pixel-BERT drops at random.
        """
        cells = self.pool(res5).flatten(2).transpose(1, 2)[:, : self.num_tokens]  # (1, V, 2048)
        return self.norm(self.project(cells) + self.pixel)
