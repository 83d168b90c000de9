"""An image file or array -> uint8 [R, R, 3], the pixels that the model sees. Pure; runs in the prepare threads.

`Fast` shows the model what a person sees: turned as EXIF says, transparency laid over white,
palettes and CMYK converted first, 16 bits scaled to 8, the first frame of an animation.
`Reference` is open_clip's own transform, bit for bit.
"""

import numpy as np
from PIL import Image

from worker.decode import Decoder, decoding
from worker.fit import Fit, Geometry
from worker.records import ImageFile, ModelInput, Pixels


class Fast:
    """Decode with simplejpeg where it equals Pillow, resize with torch's antialiased uint8 kernel."""

    def __init__(self, model_input: ModelInput, geometry: Geometry, max_pixels: int) -> None:
        """Keep what the model wants; `max_pixels` is checked on the header, before any pixel is decoded."""
        self._decoder = Decoder(max_pixels)
        self._fit = Fit(model_input, geometry, max_pixels)

    def __call__(self, image: ImageFile | Pixels) -> Pixels:
        """Return uint8 [R, R, 3] of an image file or of a uint8 array [H, W, 3].

        Raises: `Rejection` with `bad-image` or `too-many-pixels`.
        """
        if isinstance(image, np.ndarray):
            self._decoder.check_pixels(image.shape[1], image.shape[0])
            return self._fit.fit_pixels(image)
        return self._fit.fit_pixels(self._decoder.decode(image))


class Reference:
    """Apply open_clip's own transform, in its order: resize, crop, then convert to RGB."""

    def __init__(self, model_input: ModelInput, geometry: Geometry, max_pixels: int) -> None:
        """Keep what the model wants; `max_pixels` is checked on the header, before any pixel is decoded."""
        self._decoder = Decoder(max_pixels)
        self._fit = Fit(model_input, geometry, max_pixels)

    def __call__(self, image: ImageFile | Pixels) -> Pixels:
        """Return uint8 [R, R, 3] of an image file or of a uint8 array [H, W, 3].

        Raises: `Rejection` with `bad-image` or `too-many-pixels`.
        """
        if isinstance(image, np.ndarray):
            self._decoder.check_pixels(image.shape[1], image.shape[0])
            return np.asarray(self._fit.fit_image(Image.fromarray(image)))
        opened = self._decoder.open(image)
        with decoding():
            opened.load()
            return np.asarray(self._fit.fit_image(opened))
