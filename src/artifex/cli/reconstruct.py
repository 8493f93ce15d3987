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
    Settings,
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
    settings: Settings = [],  # noqa: B006 - typer makes a list of its own
    picture_scale: PictureScale = None,
    batches: Batches,
    as_json: AsJson = False,
) -> None:
    """Encode pictures and decode them again.

    A .png shows each picture above its reconstruction; other outputs hold the reconstructions alone.
    """
    import numpy as np

    from artifex.cli.by_size import check_sizes, run_by_size
    from artifex.cli.outputs import suffix_of
    from artifex.cli.run import (
        Job,
        input_shape,
        open_pipeline,
        picture_shape,
        report,
        run,
        said_of_all,
        say_left_out,
        sizes_of,
    )
    from artifex.generative_models.inference.offline.chunks import row_chunks
    from artifex.generative_models.inference.offline.sources import open_by_size

    pipeline = open_pipeline(model, batches)
    said = said_of_all(pipeline, "reconstruct", settings)
    taken = picture_shape(pipeline, "reconstruct") if resize else input_shape(pipeline, "reconstruct", "x")
    groups = open_by_size(images, taken, resize=resize, column=column)
    check_sizes(pipeline, "reconstruct", groups)
    pictures, (height, width, channels) = groups[0].pictures, groups[0].shape
    say_left_out(getattr(pictures, "left_out", ""))

    def reconstructed(originals: Any) -> Iterator[NDArray[Any]]:
        return pipeline.reconstruct_chunks(originals, said)

    if len(groups) > 1:
        facts = run_by_size(pipeline, "reconstruct", groups, reconstructed, output, batches)
        report({**facts, "model": model}, "reconstruction", as_json)
        return
    in_pairs = suffix_of(output) == ".png"
    shape = (len(pictures), 2 * height if in_pairs else height, width, channels)

    def chunks(rows: range) -> Iterator[NDArray[Any]]:
        reconstructions = reconstructed(pictures.rows(rows.start, rows.stop))
        if not in_pairs:
            yield from reconstructions
            return
        originals = row_chunks(pictures.rows(rows.start, rows.stop), pipeline.rows_per_batch("reconstruct"))
        for above, below in zip(originals, reconstructions, strict=True):
            shown = above if above.dtype == np.uint8 else pipeline.postprocess_fn(above)
            yield np.concatenate([shown, below], axis=1)

    labels = ("original", "reconstruction") if in_pairs else ()
    given = {"images": pictures.identity(), **({"set": said} if said else {})}
    options = sizes_of(pipeline, "reconstruct", "x", groups[0].shape)
    job = Job("reconstruct", shape, chunks, given, image_dtype=pictures.dtype, options=options)
    facts = run(pipeline, job, output, batches, scale=picture_scale, labels=labels)
    report({**facts, "model": model}, "reconstruction", as_json)
