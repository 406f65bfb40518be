"""The paper's own measurements: Kim, Son, Kim 2021, Table 6.

On a Xeon E5-2650 and an NVIDIA P40, batch 1: visual embedder and transformer, without text embedding, decoding or
resizing. Parameters leave out embedding dictionaries.
"""

from dataclasses import dataclass

HARDWARE = "Xeon E5-2650 and NVIDIA P40"
SCOPE = "batch 1, visual embedder and transformer; no text embedding, no decoding"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of Table 6."""

    parameters_m: float
    gflops: float
    time_ms: float


TABLE6 = {
    "vilbert": Row(274.3, 958.1, 900),
    "visualbert": Row(170.3, 425.0, 925),
    "lxmert": Row(239.8, 952.0, 900),
    "uniter": Row(154.7, 949.9, 900),
    "oscar": Row(154.7, 956.4, 900),
    "vinvl": Row(157.3, 1023.3, 650),
    "unicoder-vl": Row(170.3, 419.7, 925),
    "imagebert": Row(170.3, 420.6, 925),
    "pixel-bert-x152": Row(144.3, 185.8, 160),
    "pixel-bert-r50": Row(94.9, 136.8, 60),
    "vilt": Row(87.4, 55.9, 15),
}
