"""`artifex reconstruct`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from artifex.cli.options import (
    AsJson,
    Batches,
    Column,
    Images,
    Model,
    PictureScale,
    PicturesOut,
    Resize,
    takes_groups,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


@takes_groups
def reconstruct(
    model: Model,
    images: Images,
    output: PicturesOut = "reconstructions.png",
    resize: Resize = False,
    column: Column = "image",
    *,
    picture_scale: PictureScale = None,
    batches: Batches,
    as_json: AsJson = False,
) -> None:
    """Encode pictures and decode them again.

    A .png shows each picture above its reconstruction; other outputs hold the reconstructions alone.
    """
    import numpy as np

    from artifex.cli.outputs import suffix_of
    from artifex.cli.run import Job, open_pipeline, picture_shape, report, run, say_left_out
    from artifex.generative_models.inference.offline.chunks import row_chunks
    from artifex.generative_models.inference.offline.sources import open_pictures

    pipeline = open_pipeline(model, batches)
    height, width, channels = picture_shape(pipeline, "reconstruct")
    pictures = open_pictures(images, (height, width, channels), resize=resize, column=column)
    say_left_out(getattr(pictures, "left_out", ""))
    in_pairs = suffix_of(output) == ".png"
    shape = (len(pictures), 2 * height if in_pairs else height, width, channels)

    def chunks(rows: range) -> Iterator[NDArray[Any]]:
        reconstructions = pipeline.reconstruct_chunks(pictures.rows(rows.start, rows.stop))
        if not in_pairs:
            yield from reconstructions
            return
        originals = row_chunks(pictures.rows(rows.start, rows.stop), pipeline.rows_per_batch("reconstruct"))
        for above, below in zip(originals, reconstructions, strict=True):
            shown = above if above.dtype == np.uint8 else pipeline.postprocess_fn(above)
            yield np.concatenate([shown, below], axis=1)

    labels = ("original", "reconstruction") if in_pairs else ()
    given = {"images": pictures.identity()}
    job = Job("reconstruct", shape, chunks, given, image_dtype=pictures.dtype)
    facts = run(pipeline, job, output, batches, scale=picture_scale, labels=labels)
    report({**facts, "model": model}, "reconstruction", as_json)
