"""Make `../_static/card.jpg`, the picture on the card that accompanies a shared link to the book.

It is cut from `likeness.jpg`, so run this script again after `likeness.py`.
"""

from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

SIZE = (1200, 630)
"""The size that social networks require for such cards."""

ROWS, COLUMNS = (0, 3, 4), (0, 1, 2, 4)
"""Rows and columns of `likeness.jpg` on the card; column 0 is the reference."""

INK, PAPER, QUIET = "#f4f5f7", "#14181e", "#a9b4c2"
TILE, GAP, APART, MARGIN = 188, 8, 20, 24

here = Path(__file__).parent
sheet = Image.open(here / "likeness.jpg")
sheet_rows, wide, narrow, apart = 5, 256, 8, 25  # as `picture_grid` lays out pictures of 128 pixels
card = Image.new("RGB", SIZE, PAPER)
draw = ImageDraw.Draw(card)


def font(size: int, name: str = "DejaVuSans") -> ImageFont.FreeTypeFont:
    """Load a font that comes with matplotlib."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), f"fonts/ttf/{name}.ttf"), size)


left = SIZE[0] - MARGIN - len(COLUMNS) * TILE - (len(COLUMNS) - 2) * GAP - APART
top = (SIZE[1] - len(ROWS) * TILE - (len(ROWS) - 1) * GAP) // 2
for down, row in enumerate(ROWS):
    y = sheet.height - (sheet_rows - row) * (wide + narrow) + narrow
    for along, column in enumerate(COLUMNS):
        x = column * (wide + narrow) + (apart if column else 0)
        tile = sheet.crop((x, y, x + wide, y + wide)).resize((TILE, TILE), Image.Resampling.LANCZOS)
        at = left + along * (TILE + GAP) + (APART - GAP if along else 0)
        card.paste(tile, (at, top + down * (TILE + GAP)))

title = "Fusion\nIs All You\nNeed,\nreproduced"
draw.multiline_text((40, top), title, INK, font(50, "DejaVuSans-Bold"), spacing=12)
words = (
    "Left: one reference\npicture each. Right:\nwhat the method\nmakes of it. Nobody\nhere exists."
)
draw.multiline_text((40, SIZE[1] - top), words, QUIET, font(25), anchor="ld", spacing=9)
card.save(here.parent / "_static" / "card.jpg", quality=88)
