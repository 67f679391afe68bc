"""Video files: what is written is what is read, and bad files are named."""

from fractions import Fraction

import av
import numpy as np
import pytest

from loong_jax.video import VideoWriter, contact_sheet, write_image, write_video
from loong_jax.video_file import VideoFile, read_video


def _flat(values: list[int], size: int = 32) -> np.ndarray:
    """One gray value a frame."""
    return np.tile(np.array(values, np.uint8)[:, None, None, None], (1, size, size, 3))


def _scene(frames: int = 6, height: int = 32, width: int = 32) -> np.ndarray:
    """Colored bars that move."""
    video = np.zeros((frames, height, width, 3), np.uint8)
    for t in range(frames):
        video[t, :, 2 * t : 2 * t + 8, 0] = 255
        video[t, 2 * t : 2 * t + 8, :, 1] = 255
    return video


def _encode(path, video, codec, pixels="yuv420p", rate=8):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], pixels
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def test_mp4_round_trip(tmp_path):
    video = _scene()
    path = tmp_path / "new" / "folder" / "a.mp4"
    write_video(path, video, fps=6.5)
    read = read_video(path)
    assert read.shape == (6, 256, 256, 3) and read.dtype == np.uint8
    middles = read[:, 4::8, 4::8].astype(float)
    assert np.abs(middles - video).mean() < 6  # H.264 at crf 16, color at half size
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert abs(float(stream.average_rate) - 6.5) < 1e-3


def test_gif_round_trip_is_exact_for_few_colors_and_close_for_many(tmp_path):
    video = _scene()
    write_video(tmp_path / "a.gif", video, fps=10, min_side=32)
    np.testing.assert_allclose(read_video(tmp_path / "a.gif").astype(int), video, atol=4)
    y, x, t = np.mgrid[0:64, 0:64, 0:4]
    gradient = np.stack([2 * y + 40, 2 * x + 20, 20 * t + 60], axis=-1).transpose(2, 0, 1, 3).astype(np.uint8)
    write_video(tmp_path / "b.gif", gradient, fps=10, min_side=64)
    assert np.abs(read_video(tmp_path / "b.gif").astype(int) - gradient).mean() < 8
    assert b"NETSCAPE2.0" in (tmp_path / "b.gif").read_bytes()[:2000]  # it loops


@pytest.mark.parametrize("shape", [(1, 17, 31), (65, 32, 32)])
def test_mkv_keeps_every_pixel_and_every_frame(tmp_path, shape):
    video = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mkv", video, fps=6.5)
    np.testing.assert_array_equal(read_video(tmp_path / "a.mkv"), video)
    np.testing.assert_array_equal(read_video(tmp_path / "a.mkv", fps=6.5), video)
    with VideoFile(tmp_path / "a.mkv") as file:
        assert file.codec == "ffv1" and file.fps == pytest.approx(6.5)


@pytest.mark.parametrize("shape", [(1, 17, 31), (2, 255, 257), (3, 300, 400)])
@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_any_size_can_be_written(tmp_path, shape, suffix):
    video = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    write_video(tmp_path / f"a{suffix}", video)
    read = read_video(tmp_path / f"a{suffix}")
    factor = read.shape[1] // shape[1]
    assert read.shape == (shape[0], factor * shape[1], factor * shape[2], 3) and min(read.shape[1:3]) >= 255


@pytest.mark.parametrize(
    ("fps", "start", "num_frames", "expected"),
    [
        (None, 0.0, None, [0, 1, 2, 3, 4, 5, 6, 7]),
        (None, 0.5, 3, [4, 5, 6]),
        (8, 0.0, None, [0, 1, 2, 3, 4, 5, 6, 7]),
        (4, 0.0, None, [0, 2, 4, 6]),
        (16, 0.0, None, [t // 2 for t in range(16)]),
        (3, 0.0, None, [0, 2, 5]),  # 0, 0.33, 0.67 s
        (3, 0.25, None, [2, 4, 7]),  # 0.25, 0.58, 0.92 s
        (4, 0.25, 2, [2, 4]),
        (6.5, 0.0, None, [0, 1, 2, 3, 4, 6, 7]),
    ],
)
@pytest.mark.parametrize(
    "kind", [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx-vp9")]
)
def test_resampling_by_time_stamps(tmp_path, kind, fps, start, num_frames, expected):
    name, codec = kind
    _encode(tmp_path / name, _flat([30 * i for i in range(8)]), codec)
    read = read_video(tmp_path / name, fps=fps, start=start, num_frames=num_frames)
    np.testing.assert_array_equal(np.round(read.mean(axis=(1, 2, 3)) / 30), expected)


@pytest.mark.parametrize("rate", [6, 8, 24, 30])
@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.gif", "gif")])
def test_rounded_time_stamps_neither_repeat_nor_drop_a_frame(tmp_path, name, codec, rate):
    _encode(tmp_path / name, _flat([8 * i for i in range(30)]), codec, "gray8" if codec == "gif" else "yuv420p", rate)
    read = read_video(tmp_path / name, fps=rate)
    np.testing.assert_array_equal(np.round(read.mean(axis=(1, 2, 3)) / 8), range(30))


def test_size_crops_the_middle_square(tmp_path):
    video = np.zeros((2, 64, 128, 3), np.uint8)
    video[:, :, 32:96] = (200, 60, 60)  # the middle square
    _encode(tmp_path / "a.mp4", video, "libx264", "yuv420p")
    read = read_video(tmp_path / "a.mp4", size=16)
    assert read.shape == (2, 16, 16, 3)
    np.testing.assert_allclose(read[:, 2:-2, 2:-2].astype(int), np.broadcast_to((200, 60, 60), (2, 12, 12, 3)), atol=6)
    tall = read_video(tmp_path / "a.mp4", size=100)
    assert tall.shape == (2, 100, 100, 3)


def test_downscaling_averages(tmp_path):
    checkers = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (32, 32))[None, :, :, None].repeat(3, axis=3)
    _encode(tmp_path / "a.mkv", checkers, "ffv1", "bgr0")
    read = read_video(tmp_path / "a.mkv", size=16)
    np.testing.assert_allclose(read, 127.5, atol=3)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="missing.mp4 does not exist"):
        read_video(tmp_path / "missing.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video at all")
    write_video(tmp_path / "whole.mp4", _scene(20))
    whole = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    for name in ("empty.mp4", "text.mp4", "cut.mp4"):
        with pytest.raises(ValueError, match=f"{name} cannot be decoded"):
            read_video(tmp_path / name)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="sound.mp4 has no video stream"):
        read_video(tmp_path / "sound.mp4")
    with pytest.raises(ValueError, match="no frame at or after 100 s"):
        read_video(tmp_path / "whole.mp4", start=100)
    with pytest.raises(ValueError, match="no frame at or after 100 s"):
        read_video(tmp_path / "whole.mp4", start=100, fps=4)
    for name in ("size", "fps", "num_frames"):
        with pytest.raises(ValueError, match=f"{name}=0 is not possible"):
            read_video(tmp_path / "whole.mp4", **{name: 0})


def test_bad_videos_are_refused(tmp_path):
    path = tmp_path / "a.mp4"
    for video in (np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="A video must be uint8"):
            write_video(path, video)
    with pytest.raises(ValueError, match="must end in .mp4, .gif or .mkv"):
        write_video(tmp_path / "a.wmv", _scene())
    with pytest.raises(ValueError, match="fps=0"):
        write_video(path, _scene(), fps=0)
    assert not path.exists()


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_video_in_pieces_is_the_whole(tmp_path, suffix):
    video = _scene(9)
    write_video(tmp_path / f"whole{suffix}", video)
    with VideoWriter(tmp_path / f"pieces{suffix}") as writer:
        for piece in (video[:1], video[1:5], video[5:]):
            writer.write(piece)
        assert not writer.path.exists()
    assert (tmp_path / f"pieces{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_what_was_written_before_an_error_can_be_seen(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with pytest.raises(ValueError, match="32, 32.*got .16, 32"), VideoWriter(path) as writer:
        writer.write(_scene(6))
        writer.write(_scene(2, height=16))
    assert not path.exists() and len(read_video(tmp_path / f"a.part{suffix}")) == 6
    with VideoWriter(path):
        pass
    assert not path.exists()


def test_every_frame_of_a_gif_has_colors_of_its_own(tmp_path):
    """Sixteen frames of few colors each, many more in all."""
    rng = np.random.default_rng(0)
    video = rng.integers(0, 8, (16, 16, 16, 3), np.uint8) * 16
    video[..., 1:] //= 32
    video += np.arange(16, dtype=np.uint8)[:, None, None, None]
    write_video(tmp_path / "a.gif", video, min_side=16)
    np.testing.assert_allclose(read_video(tmp_path / "a.gif").astype(int), video, atol=1)


def test_png_is_lossless(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (13, 21, 3), dtype=np.uint8)
    write_image(tmp_path / "new" / "a.png", image)
    np.testing.assert_array_equal(read_video(tmp_path / "new" / "a.png")[0], image)
    with pytest.raises(ValueError, match="uint8"):
        write_image(tmp_path / "b.png", image / 255)


def test_contact_sheet_shows_rows_of_videos_and_columns_of_time():
    sheet = contact_sheet([_flat([0, 10, 20, 30, 40]), _flat([100, 150, 200])], columns=3, min_side=1)
    assert sheet.shape == (2 * 34, 3 * 34, 3) and sheet.dtype == np.uint8
    np.testing.assert_array_equal(sheet[16::34, 16::34, 0], [[0, 20, 40], [100, 150, 200]])
    assert (sheet[0] == 255).all() and (sheet[:, -1] == 255).all()
    assert contact_sheet([_flat([0])], columns=2, min_side=64).shape == (66, 132, 3)


def test_a_variable_frame_rate_is_sampled_by_its_time_stamps(tmp_path):
    """Frames at irregular instants, as phones and screen recorders write them; read from the start and by seeking."""
    rng = np.random.default_rng(0)
    times = np.concatenate([[0], np.cumsum(rng.integers(20, 400, 39))])  # milliseconds
    with av.open(str(tmp_path / "vfr.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "6", "bf": "0"})
        stream.pix_fmt = "yuv420p"
        stream.height = stream.width = 32
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 6 * index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = int(time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for start in (0.0, 1.3, 4.0):
        found = read_video(tmp_path / "vfr.mp4", fps=6.5, start=start, num_frames=12).mean(axis=(1, 2, 3))
        instants = start + np.arange(12) / 6.5
        expected = 6 * (np.searchsorted(times / 1000, instants + 0.006, side="right") - 1)
        np.testing.assert_allclose(found, expected, atol=2)
