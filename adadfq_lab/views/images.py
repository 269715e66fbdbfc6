"""Images side by side, as one PNG: the sheets of the report, the widgets, the figures and the README's gallery."""

import base64
import io
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Pixels = NDArray[np.uint8]


def pixels(images: Tensor) -> Pixels:
    """Images `(N, C, H, W)` in [0, 1] as uint8 `(N, H, W, 3)`: grey unless C is 3, the mean of other numbers of channels."""
    images = images.detach().cpu().float().clamp(0, 1)
    colours = images if images.shape[1] == 3 else images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    found: Pixels = colours.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    return found


def montage(images: Pixels, gap: int = 2, ground: int = 128) -> Pixels:
    """Images `(rows, columns, H, W)` or `(..., 3)` of uint8 side by side, `gap` pixels of the grey value `ground` apart."""
    rows, columns, height, width = images.shape[:4]
    shape = rows * (height + gap) - gap, columns * (width + gap) - gap, *images.shape[4:]
    page = np.full(shape, ground, np.uint8)
    for i in range(rows):
        for j in range(columns):
            top, left = i * (height + gap), j * (width + gap)
            page[top : top + height, left : left + width] = images[i, j]
    return page


def png(pixels: Pixels, scale: int = 1) -> bytes:
    """uint8 pixels `(H, W)` or `(H, W, 3)` as a PNG file, each pixel repeated `scale` times in both directions."""
    grey = pixels.ndim == 3 and bool((pixels == pixels[..., :1]).all())
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if grey else pixels))
    if scale != 1:
        picture = picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_url(content: bytes, kind: str = "image/png") -> str:
    """`content` as the address of an image that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def image(pixels: Pixels, *, alt: str, scale: int = 3) -> str:
    """An `<img>` of uint8 pixels `(H, W)` or `(H, W, 3)`, each `scale` screen pixels wide, as PNG within the text."""
    style = f"image-rendering:pixelated;width:{pixels.shape[1] * scale}px;max-width:100%"
    return f'<img src="{data_url(png(pixels))}" alt="{escape(alt)}" style="{style}">'
