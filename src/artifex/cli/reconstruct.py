"""`artifex reconstruct`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from artifex.cli.options import AsJson, BatchSize, Devices, Dtype, Images, Model, PicturesOut, Resize, Resume

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from artifex.generative_models.inference.offline.sources import ArrayFile, PictureFiles
    from artifex.generative_models.inference.pipeline import InferencePipeline


def reconstruct(
    model: Model,
    images: Images,
    output: PicturesOut = "reconstructions.png",
    resize: Resize = False,
    batch_size: BatchSize = None,
    devices: Devices = None,
    dtype: Dtype = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Encode pictures and decode them again.

    A .png shows each picture above its reconstruction; other outputs hold the reconstructions alone.
    """
    from artifex.cli.outputs import open_output, suffix_of
    from artifex.cli.run import job_of, open_pipeline, picture_shape, report, run
    from artifex.generative_models.inference.offline.sources import open_pictures

    pipeline = open_pipeline(model, batch_size, devices, dtype)
    height, width, channels = picture_shape(pipeline, "reconstruct")
    pictures = open_pictures(images, (height, width, channels), resize=resize)
    job = job_of("reconstruct", "reconstruct", pipeline, dtype, images=pictures.identity())
    in_pairs = suffix_of(output) == ".png"
    shape = (len(pictures), 2 * height if in_pairs else height, width, channels)
    with open_output(output, shape, job=job, resume=resume) as out:
        if in_pairs:
            chunks = _above_reconstructions(pipeline, pictures)
        else:
            chunks = pipeline.reconstruct_chunks(pictures.rows(out.rows_done))
        facts = run(pipeline, "reconstruct", chunks, out)
    report({**facts, "model": model}, "reconstruction", as_json)


def _above_reconstructions(
    pipeline: InferencePipeline, pictures: PictureFiles | ArrayFile
) -> Iterator[NDArray[Any]]:
    """Pictures twice as tall: the original, and below it its reconstruction."""
    import numpy as np

    from artifex.generative_models.inference.offline.chunks import row_chunks

    originals = row_chunks(pictures.rows(), pipeline.rows_per_batch("reconstruct"))
    for above, below in zip(originals, pipeline.reconstruct_chunks(pictures.rows()), strict=True):
        shown = above if above.dtype == np.uint8 else pipeline.postprocess_fn(above)
        yield np.concatenate([shown, below], axis=1)
