"""Draws data_flow.svg: the life of a training token, a box per array and an arrow per module.

    python docs/images/make_data_flow.py

The picture has no background, so its text is either inside a filled box or of a gray that can be
read on white and on black.
"""

from pathlib import Path

WIDTH, HEIGHT = 940, 386
BOX = 36
GRAY = "#7a828c"
HEAD = 'marker-end="url(#head)"'
HOST, IMAGE, TEXT = ("#ddf4ff", "#0969da"), ("#fff1d6", "#bf7700"), ("#dcf7e3", "#1a7f37")

# name: left, top, width, colors.
BOXES = {
    "Record": (16, 44, 100, HOST),
    "Document": (262, 44, 110, HOST),
    "Example": (502, 44, 100, HOST),
    "Batch": (724, 44, 100, HOST),
    "images": (16, 164, 100, IMAGE),
    "image_features": (262, 164, 140, IMAGE),
    "image_embeddings": (520, 164, 160, IMAGE),
    "tokens": (16, 244, 100, TEXT),
    "token_embeddings": (262, 244, 160, TEXT),
    "embeddings": (800, 204, 124, TEXT),
    "hidden": (800, 322, 124, TEXT),
    "logits": (524, 322, 100, TEXT),
    "loss": (262, 322, 100, TEXT),
}
# From, to, the module, and its file.
ARROWS = (
    ("Record", "Document", "corpus", "data/corpora/"),
    ("Document", "Example", "tokenize", "data/examples.py"),
    ("Example", "Batch", "pack", "data/packing.py"),
    ("images", "image_features", "vision encoder", "vision_encoder.py"),
    ("image_features", "image_embeddings", "connector", "connectors/"),
    ("tokens", "token_embeddings", "embedding", "layers/embedding.py"),
    ("image_embeddings", "embeddings", "merge", "merge.py"),
    ("token_embeddings", "embeddings", "", ""),
    ("embeddings", "hidden", "decoder", "decoder.py"),
    ("hidden", "logits", "output layer", "layers/embedding.py"),
    ("logits", "loss", "cross entropy", "cross_entropy.py"),
)
HEADINGS = (
    (16, 22, "On each host: NumPy and grain"),
    (
        16,
        142,
        "On the devices, from the images and tokens of a batch: JAX and Flax NNX",
    ),
)


def text(x: float, y: float, words: str, color: str, **attributes: str) -> str:
    options = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<text x="{x:g}" y="{y:g}" fill="{color}"{options}>{words}</text>'


def box(name: str) -> list[str]:
    left, top, width, (fill, stroke) = BOXES[name]
    return [
        f'<rect x="{left}" y="{top}" width="{width}" height="{BOX}" rx="6" fill="{fill}" '
        f'stroke="{stroke}" stroke-width="1.5"/>',
        text(left + width / 2, top + BOX / 2 + 5, name, "#1f2328", text_anchor="middle"),
    ]


def arrow(source: str, target: str, module: str, file: str) -> list[str]:
    left, top, width, _ = BOXES[source]
    left2, top2, width2, _ = BOXES[target]
    y, y2 = top + BOX / 2, top2 + BOX / 2
    if left == left2:
        x = left + width / 2
        path = f"M {x:g} {top + BOX} V {top2 - 9}"
        at, middle = (x - 10, (top + BOX + top2) / 2), "end"
    else:
        start, end = (left + width, left2 - 9) if left < left2 else (left, left2 + width2 + 9)
        bend = left2 - 84
        path = f"M {start} {y:g} H {end}"
        if y != y2:
            path = f"M {start} {y:g} H {bend} V {y2:g} H {end}"
        at, middle = ((start + end) / 2, y), "middle"
        if y != y2:
            at = ((bend + end) / 2 + 4, y2)
    parts = [f'<path d="{path}" fill="none" stroke="{GRAY}" stroke-width="1.5" {HEAD}/>']
    if module:
        below = 14 if left != left2 else 12
        parts += [
            text(at[0], at[1] - 7, module, GRAY, text_anchor=middle, font_size="13"),
            text(at[0], at[1] + below + 2, file, GRAY, text_anchor=middle, font_size="11"),
        ]
    return parts


def main() -> None:
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-size="14" '
        'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace">',
        "<title>The data flow of mm1_jax, from a record to the loss</title>",
        '<defs><marker id="head" viewBox="0 0 10 10" refX="2" refY="5" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M 0 0 L 10 5 L 0 10 z" fill="{GRAY}"/>'
        "</marker></defs>",
        *(text(*heading, GRAY, font_weight="bold") for heading in HEADINGS),
        *(part for each in ARROWS for part in arrow(*each)),
        *(part for name in BOXES for part in box(name)),
        "</svg>",
    ]
    Path(__file__).with_name("data_flow.svg").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
