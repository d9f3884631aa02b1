"""Makes decoding.txt and decoding.bin: files of every kind that is read, and what Pillow makes of them.

Run:  python make_golden.py        (in this folder; writes both files beside itself)

Pinned: Pillow 12.3.0 (libjpeg-turbo, libwebp and libtiff of its wheel), numpy 2.4.6.

A line of decoding.txt is a file:

    name  width height  tolerance  offset length  pixels_offset

`offset` and `length` point at the file within decoding.bin, `pixels_offset` at width * height * 3
bytes: the picture as it is to be, from top left and on white. `tolerance` is the largest difference
allowed in a channel: JPEG and lossy WebP are decoded by other programs here, whose inverse transforms
round in another way. Alpha and 16 bits are rounded by the formulas below.
"""

import io
import pathlib

import numpy as np
import PIL
from PIL import Image

HERE = pathlib.Path(__file__).parent
W, H = 40, 24


def picture():
    """Smooth colours with an edge, as JPEG likes them."""
    x, y = np.meshgrid(np.arange(W), np.arange(H))
    rgb = np.stack([40 + 4 * x, 30 + 8 * y, 200 - 3 * x - 2 * y], -1)
    rgb[H // 2 :, : W // 3] = [200, 60, 40]
    return rgb.clip(0, 255).astype(np.uint8)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def on_white(rgba):
    rgb, alpha = rgba[..., :3].astype(float), rgba[..., 3:].astype(float) / 255
    return np.rint(rgb * alpha + 255 * (1 - alpha)).astype(np.uint8)


def files():
    rgb = picture()
    image = Image.fromarray(rgb)
    grey = image.convert("L")
    ramp = np.broadcast_to(np.linspace(0, 255, W).astype(np.uint8), (H, W))
    rgba = np.dstack([rgb, ramp])

    # JPEG: the picture that Pillow decodes; it turns CMYK over as Adobe writes it.
    for name, img, options in [
        ("jpeg-444", image, dict(subsampling=0)),
        ("jpeg-422", image, dict(subsampling=1)),
        ("jpeg-420", image, dict(subsampling=2)),
        ("jpeg-optimized", image, dict(optimize=True)),
        ("jpeg-restarts", image, dict(restart_marker_blocks=2)),
        ("jpeg-progressive", image, dict(progressive=True)),
        ("jpeg-progressive-444", image, dict(progressive=True, subsampling=0)),
        ("jpeg-grey", grey, {}),
        ("jpeg-grey-progressive", grey, dict(progressive=True)),
        ("jpeg-cmyk", image.convert("CMYK"), {}),
        ("jpeg-rgb", image, dict(keep_rgb=True)),
    ]:
        data = saved(img, "JPEG", quality=90, **options)
        yield name, data, read(data), 3

    yield "png-rgb", saved(image, "PNG"), rgb, 0
    yield "png-grey", saved(grey, "PNG"), read(saved(grey, "PNG")), 0
    yield "png-rgba", saved(Image.fromarray(rgba), "PNG"), on_white(rgba), 0
    la = Image.fromarray(np.dstack([np.asarray(grey), ramp]), "LA")
    three = np.asarray(grey)[..., None].repeat(3, -1)
    yield "png-grey-alpha", saved(la, "PNG"), on_white(np.dstack([three, ramp])), 0
    palette = image.quantize(16)
    yield "png-palette", saved(palette, "PNG"), np.asarray(palette.convert("RGB")), 0
    clear = saved(palette, "PNG", transparency=3)
    flat = np.asarray(Image.open(io.BytesIO(clear)).convert("RGBA"))
    yield "png-palette-transparent", clear, on_white(flat), 0
    bit = grey.convert("1")
    yield "png-one-bit", saved(bit, "PNG"), np.asarray(bit.convert("RGB")), 0
    deep = (np.arange(W * H).reshape(H, W) * 65535 // (W * H - 1)).astype(np.uint16)
    eight = np.rint(deep / 257).astype(np.uint8)[..., None].repeat(3, -1)
    yield "png-sixteen-bit", saved(Image.fromarray(deep), "PNG"), eight, 0

    webp = saved(image, "WEBP", lossless=True)
    yield "webp-lossless", webp, rgb, 0
    webp = saved(image, "WEBP", quality=90)
    yield "webp-lossy", webp, read(webp), 1
    webp = saved(Image.fromarray(rgba), "WEBP", lossless=True, exact=True)
    yield "webp-alpha", webp, on_white(rgba), 0

    yield "bmp-rgb", saved(image, "BMP"), rgb, 0
    yield "bmp-palette", saved(palette, "BMP"), np.asarray(palette.convert("RGB")), 0
    yield "bmp-one-bit", saved(bit, "BMP"), np.asarray(bit.convert("RGB")), 0

    gif = saved(palette, "GIF")
    yield "gif", gif, read(gif), 0
    second = Image.fromarray(255 - rgb).quantize(16)
    gif = saved(palette, "GIF", save_all=True, append_images=[second])
    yield "gif-of-two", gif, read(gif), 0
    gif = saved(palette, "GIF", transparency=3)
    flat = np.asarray(Image.open(io.BytesIO(gif)).convert("RGBA"))
    yield "gif-transparent", gif, on_white(flat), 0

    for name, compression in [("raw", None), ("lzw", "tiff_lzw"), ("deflate", "tiff_adobe_deflate")]:
        yield f"tiff-{name}", saved(image, "TIFF", compression=compression), rgb, 0
    yield "tiff-grey", saved(grey, "TIFF"), read(saved(grey, "TIFF")), 0
    cmyk = saved(image.convert("CMYK"), "TIFF")
    yield "tiff-cmyk", cmyk, read(cmyk), 0


def main():
    assert PIL.__version__ == "12.3.0", PIL.__version__
    lines, body = [], bytearray()
    for name, data, pixels, tolerance in files():
        assert pixels.shape[2] == 3 and pixels.dtype == np.uint8, name
        height, width, _ = pixels.shape
        at = len(body)
        body += data
        lines.append(f"{name} {width} {height} {tolerance} {at} {len(data)} {len(body)}\n")
        body += pixels.tobytes()
    (HERE / "decoding.txt").write_text("".join(lines))
    (HERE / "decoding.bin").write_bytes(bytes(body))
    print(len(lines), "files,", len(body), "bytes")


if __name__ == "__main__":
    main()
