"""Fixture of the tests of image files."""

import zlib

import pytest

from msctr_hf.data import png_checksums, stored_pixels


@pytest.fixture(params=["fast decoders", "Pillow"])
def decoder(request, monkeypatch):
    if request.param == "Pillow":
        monkeypatch.setattr(stored_pixels, "pyspng", None)
        monkeypatch.setattr(png_checksums, "inflater", zlib)
        monkeypatch.setattr(stored_pixels, "simplejpeg", None)
    elif stored_pixels.pyspng is None:
        pytest.skip("pyspng and simplejpeg are not installed")
