"""The server around a real model, tiny and untrained: its videos are the pipeline's, and it lasts and ends well."""

import base64
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import jax
import numpy as np
import psutil
import pytest
from gated import JOB, events, running, strips

from loong_jax.config import DEBUG_TOKENIZER, ServeJob
from loong_jax.models import transformer
from loong_jax.pipeline import Pipeline
from loong_jax.serving.server import warm_up
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.video import encode_png
from loong_jax.video_file import read_video


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    """Large weights, so that the next id depends on those before it; on one device."""
    params = jax.tree.map(lambda p: p if p.ndim == 1 else 10 * p, transformer.init_params(JOB.model, jax.random.key(0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
        return Pipeline(JOB, params, VideoTokenizer.untrained(DEBUG_TOKENIZER))


def compilations(pipe: Pipeline) -> int:
    return sum(f._cache_size() for d in pipe.generator._decoders.values() for f in (d.prefill, d.decode))


def test_frames_and_file_are_those_of_the_pipeline(pipe, tmp_path):
    """After the warm-up nothing more is compiled, whatever is asked for."""
    warm_up(pipe, ServeJob())
    before = compilations(pipe)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    plain = {"prompt": "a red 7", "seconds": 4, "seed": 3, "temperature": 0.8, "top_k": 9}
    changing = {"prompt": "a red 7", "seconds": 3, "guidance_scale": 3, "negative_prompt": "a 4"}
    changing |= {"changes": [{"second": 1.5, "prompt": "a blue 3"}]}
    changing["image"] = base64.b64encode(encode_png(image)).decode()
    with running(pipe, tmp_path / "videos") as client:
        found = []
        for request in (plain, changing):
            video = client.post("/api/videos", json=request).json()["id"]
            found.append(np.concatenate(list(strips(client, video))))
            (tmp_path / "video.mp4").write_bytes(client.get(f"/api/videos/{video}/video.mp4").content)
            shown = read_video(tmp_path / "video.mp4", size=32)
            assert len(shown) == len(found[-1])
            # H.264 keeps brightness well, and of noise no color.
            assert np.abs((shown.astype(int) - found[-1]) @ [0.3, 0.59, 0.11]).mean() < 6
    assert compilations(pipe) == before
    np.testing.assert_array_equal(found[0], pipe("a red 7", seconds=4, seed=3, temperature=0.8, top_k=9))
    script, options = [(0, "a red 7"), (1.5, "a blue 3")], {"guidance_scale": 3, "negative_prompt": "a 4"}
    np.testing.assert_array_equal(found[1], pipe(script, seconds=3, image=image, **options))
    np.testing.assert_array_equal(found[1][0], image)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_the_server_and_the_video_that_it_samples(number, tmp_path):
    """Another process, in which sampling takes forever."""
    script = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from gated import JOB, grays
from loong_jax import pipeline
from loong_jax.config import DEBUG_TOKENIZER, ServeJob
from loong_jax.sampling.long_video import Generator, Piece
from loong_jax.serving import server
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer

def roll_out(self, request, saved=None):
    for first in range(0, request.num_frames, 4):
        time.sleep(0.2)
        yield Piece(None, grays(first, 4)[None])

Generator.roll_out = roll_out
pipeline.load = lambda path, mesh: pipeline.Pipeline(JOB, None, VideoTokenizer(DEBUG_TOKENIZER, {}))
server.warm_up = lambda pipe, job: None
server.run_serve(ServeJob(port=0), Path(sys.argv[1]))
"""
    arguments = [sys.executable, "-u", "-c", script, str(tmp_path), str(Path(__file__).parent)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        address = next(line.split()[1] for line in process.stdout if line.startswith("open http://127.0.0.1:"))
        with httpx.Client(base_url=address, trust_env=False, timeout=30) as client:
            video = client.post("/api/videos", json={"prompt": "a 7", "seconds": 60}).json()["id"]
            for _, progress in events(client, video):
                if progress["frames"] == 4 and progress["state"] == "sampling":
                    process.send_signal(number)
        assert progress["state"] == "stopped" and progress["message"] == "The server ends."
        assert process.wait(timeout=30) == 0
        assert process.stdout.read().strip().splitlines()[-1] == "ended"
    finally:
        process.kill()
        process.stdout.close()


@pytest.mark.slow
def test_two_hundred_requests_leak_no_memory(pipe, tmp_path):
    """Videos of two seconds, a few of them stopped or left; growth after the first forty, which fill what is kept."""
    warm_up(pipe, ServeJob())
    early, late, sizes = range(35, 45), range(230, 240), {}
    with running(pipe, tmp_path / "videos", keep_videos=8) as client:
        for count in range(240):
            request = {"prompt": f"a red {count}", "seconds": 2, "seed": count, "guidance_scale": 1 + count % 2}
            video = client.post("/api/videos", json=request).json()["id"]
            if count % 5 == 1:
                client.delete(f"/api/videos/{video}")
            for frames in strips(client, video):
                if count % 5 == 2:
                    break  # and the connection is closed
                assert frames.shape[1:] == (32, 32, 3)
            if count in early or count in late:
                gc.collect()
                sizes[count] = psutil.Process().memory_info().rss
    assert len(list((tmp_path / "videos").iterdir())) <= 8
    before, after = (np.mean([sizes[count] for count in counts]) for counts in (early, late))
    growth = after / before - 1
    print(f"memory after 40 and 240 requests: {before / 2**20:.0f} and {after / 2**20:.0f} MiB, {growth:+.1%}")
    assert growth < 0.05
