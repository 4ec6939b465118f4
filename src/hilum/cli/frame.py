"""hilum frame: one frame, as a picture or as it is stored."""

from __future__ import annotations

import click

from hilum.cli import common
from hilum.errors import NotFound


@click.command("frame")
@click.argument("uid")
@click.argument("number", type=int, metavar="NUMBER")
@click.option(
    "-o", "--output", required=True, metavar="FILE", help="Where to write it; - is standard output."
)
@click.option("--raw", is_flag=True, help="The bytes as they are stored, not decoded.")
@click.option("--window", type=(float, float), default=None, metavar="CENTER WIDTH", help="VOI window.")
@common.common_options
def command(
    uid: str,
    number: int,
    output: str,
    raw: bool,
    window: tuple[float, float] | None,
    store_path: str,
    as_json: bool,
    verbose: bool,
) -> None:
    """Write frame NUMBER, from 1, of an instance as PNG.

    It is shown as the data set asks: rescaled, with its VOI LUT or window, in the colours of its palette.

    \b
    Example:
        hilum frame 1.2.840.113619.2.1.1 1 -o slice.png --window 40 400
        hilum frame 1.2.840.113619.2.1.1 7 -o frame7.j2k --raw
    """
    with common.open_store(store_path, read_only=True) as store:
        if number < 1:
            raise NotFound(f"no frame {number}: the first is 1")
        syntax = store.locate(uid).instance.transfer_syntax.decode("latin-1")
        if raw:
            data = store.frame_bytes(uid, number - 1)
            shape: list[int] = []
        else:
            from hilum.pixels import render

            frames = store.frames(uid)
            layout = frames.layout
            rendering = render.Rendering(
                media_type=render.PNG,
                frames=(number - 1,),
                window=(*window, render.LINEAR) if window is not None else None,
            )
            frame = frames.read(number - 1)
            seen = render.attributes(store.open_original(uid), layout, rendering, syntax)
            data = render.render([frame], layout, syntax, seen, rendering)
            shape = [layout.rows, layout.columns] + [3] * (layout.samples_per_pixel == 3)
    with click.open_file(output, "wb") as file:
        file.write(data)
    if as_json and output != "-":
        found = {
            "frame": number,
            "bytes": len(data),
            "shape": shape,
            "transfer_syntax": syntax,
            "file": output,
        }
        common.print_json(found)
    elif output != "-":
        click.echo(f"{output}: {len(data):,} bytes{', stored as ' + syntax if raw else ''}")
