"""The field on which photos are dropped."""

from collections.abc import Awaitable, Callable

from nicegui import events, ui

from objtune_cli.images import formats, photo
from objtune_cli.ui import parts

HEADER = """
<div class="upload-head">
  <button type="button" class="upload-button" @click="props.pickFiles">Choose photos</button>
  <span>or drop them here</span>
  <span hidden><q-uploader-add-trigger /></span>
</div>
"""
"""What the field for photos shows; Quasar's own has a button without a name."""


def photo_drop(receive: Callable[[events.UploadEventArguments], Awaitable[None]]) -> ui.upload:
    """A field for photos, which are sent as soon as they are chosen.

    Args:
        receive: Called with each photo.
    """
    upload = ui.upload(
        multiple=True,
        auto_upload=True,
        max_file_size=photo.MAX_BYTES,
        on_upload=receive,
        on_rejected=lambda: parts.explain(f"at most {photo.MAX_BYTES >> 20} MiB are read"),
    )
    upload.props["accept"] = ",".join(("image/*", *formats.SUFFIXES))
    upload.props("flat bordered").classes("upload")
    upload.add_slot("header", HEADER)
    upload.on("finish", upload.reset)  # else the same photo could not be dropped again
    return upload
