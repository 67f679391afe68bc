"""The HTTP API: from a request to frames and a file, the queue, and how videos end."""

import base64
import time
from collections.abc import Callable

import httpx
import numpy as np
from gated import events, frames_of, grays

from loong_jax.video_file import read_video

THREE_SECONDS = {"prompt": "a red 7", "seconds": 3}  # 20 frames, five pieces


def ask(client: httpx.Client, **request) -> str:
    """The id of a new video."""
    answer = client.post("/api/videos", json=THREE_SECONDS | request)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def wait(client: httpx.Client, video: str, *states: str) -> dict:
    """How far it is once it is in one of ``states``."""
    until(lambda: client.get(f"/api/videos/{video}").json()["state"] in states)
    return client.get(f"/api/videos/{video}").json()


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_frames_come_while_the_rest_is_sampled_then_the_file(serve, gate, tmp_path):
    client = serve()
    video = ask(client, seed=3, temperature=0.5, top_k=7, guidance_scale=2, negative_prompt="a blue 3")
    found, shown = [], []
    for number, progress in events(client, video):
        found.append(progress)
        assert number == len(found) and progress["id"] == video and progress["num_frames"] == 20
        if progress["strip"]:
            shown.append(frames_of(progress["strip"]))
            assert progress["frames"] == sum(map(len, shown))
        if progress["state"] == "sampling" and progress["frames"] < 20:
            assert client.get(f"/api/videos/{video}/video.mp4").status_code == 404
            gate.let(1)  # and not before what there is has been shown
    assert [progress["state"] for progress in found] == ["waiting", *6 * ["sampling"], "done"]
    assert all(progress["seconds_left"] >= 0 for progress in found[3:-1])
    np.testing.assert_array_equal(np.concatenate(shown), grays(0, 20))
    file = client.get(found[-1]["video"])
    assert file.headers["content-type"] == "video/mp4"
    (tmp_path / "video.mp4").write_bytes(file.content)
    assert len(read_video(tmp_path / "video.mp4", size=32)) == 20
    part = client.get(found[-1]["video"], headers={"Range": "bytes=0-99"})  # as players ask
    assert part.status_code == 206 and part.content == file.content[:100]
    [request] = gate.requests
    rules = request.sampling
    assert (rules.temperature, rules.top_k, rules.guidance_scale, request.seeds) == (0.5, 7, 2, [3])
    # Who comes late hears how it ended.
    assert [progress["state"] for _, progress in events(client, video)] == ["done"]


def test_a_connection_that_was_lost_goes_on_where_it_was(serve, gate):
    client = serve()
    video = ask(client)
    gate.let(2)
    first = []
    for number, progress in events(client, video):
        first.append((number, progress["frames"]))
        if progress["frames"] == 8:
            break
    gate.let()
    rest = [(number, progress["frames"]) for number, progress in events(client, video, seen=first[-1][0])]
    assert [number for number, _ in first + rest] == list(range(1, len(first + rest) + 1))
    assert rest[0][1] == 12 and rest[-1][1] == 20


def test_prompts_by_segment_and_an_image(serve, gate, tmp_path):
    from loong_jax.video import write_image

    client = serve()
    gate.let()
    write_image(tmp_path / "image.png", np.full((48, 64, 3), 200, np.uint8))
    image = base64.b64encode((tmp_path / "image.png").read_bytes()).decode()
    video = ask(client, image=image, changes=[{"second": 1, "prompt": "a blue 3"}, {"second": 2, "prompt": "a 9"}])
    assert wait(client, video, "done")["frames"] == 20
    [request] = gate.requests
    assert len(request.texts) == 3 and len(request.changes) == 2
    np.testing.assert_array_equal(request.start, np.full((1, 1, 32, 32, 3), 200))


def test_others_wait_and_past_the_bound_the_server_is_busy(serve, gate):
    client = serve(max_waiting=2)
    first = ask(client)
    wait(client, first, "sampling")
    second, third = ask(client), ask(client)
    assert [client.get(f"/api/videos/{video}").json()["ahead"] for video in (second, third)] == [1, 2]
    busy = client.post("/api/videos", json=THREE_SECONDS)
    assert busy.status_code == 503 and int(busy.headers["Retry-After"]) >= 1
    assert busy.json()["error"].startswith("The server is busy")
    client.delete(f"/api/videos/{second}")
    assert wait(client, second, "stopped")["frames"] == 0
    assert client.get(f"/api/videos/{third}").json()["ahead"] == 1
    gate.let()
    told = [(progress["state"], progress["ahead"]) for _, progress in events(client, third)]
    places = [ahead for state, ahead in told if state == "waiting"]
    assert places == [0, 2, 1, 0] and told[-1][0] == "done"
    assert wait(client, first, "done") and wait(client, third, "done")
    assert len(gate.requests) == 2


def test_stopping_leaves_what_there_is(serve, gate, tmp_path):
    client = serve()
    video = ask(client)
    gate.let(2)
    for _, progress in events(client, video):
        if progress["frames"] == 8 and progress["state"] == "sampling":
            assert client.delete(f"/api/videos/{video}").status_code == 200
            gate.let(1)
    assert progress["state"] == "stopped" and progress["message"] == "Stopped as asked." and progress["frames"] == 12
    (tmp_path / "video.mp4").write_bytes(client.get(progress["video"]).content)
    assert len(read_video(tmp_path / "video.mp4")) == 12
    assert client.delete(f"/api/videos/{video}").json()["state"] == "stopped"


def test_a_client_that_goes_away_stops_its_sampling(serve, gate):
    client = serve(client_timeout=0.3)
    followed, left = ask(client, seconds=60), ask(client)
    wait(client, followed, "sampling")
    gate.let(1)
    next(progress for _, progress in events(client, followed) if progress["frames"] == 4)
    for _ in range(90):
        gate.let(1)
        if gate.ended.wait(0.1):
            break
    progress = wait(client, followed, "stopped")
    assert progress["frames"] < 360 and "Nobody" in progress["message"]
    assert client.get(f"/api/videos/{left}").json()["state"] == "stopped"  # which waited, and nobody followed it


def test_a_video_that_takes_too_long_ends_where_it_is(serve, gate):
    client = serve(max_sampling_seconds=0.2)
    video = ask(client)
    wait(client, video, "sampling")
    time.sleep(0.3)
    gate.let(1)
    progress = wait(client, video, "stopped")
    assert progress["frames"] == 4 and "longer than the 0.2 s" in progress["message"]


def test_a_video_that_fails_does_not_take_others_with_it(serve, gate, capsys, tmp_path):
    client = serve()
    gate.error = RuntimeError("RESOURCE_EXHAUSTED: of the accelerator")
    gate.let(1)
    progress = wait(client, ask(client), "failed")
    assert progress["message"] == "The video could not be sampled: the machine's memory is not enough."
    assert "RESOURCE_EXHAUSTED" in capsys.readouterr().err and not list((tmp_path / "videos").iterdir())
    gate.error = None
    gate.let()
    assert wait(client, ask(client), "done")


def test_few_videos_are_kept(serve, gate, tmp_path):
    client = serve(keep_videos=2)
    gate.let()
    videos = []
    for _ in range(4):
        videos.append(ask(client))
        wait(client, videos[-1], "done")
    until(lambda: {path.stem for path in (tmp_path / "videos").iterdir()} == set(videos[2:]))
    assert [client.get(f"/api/videos/{video}").status_code for video in videos] == [404, 404, 200, 200]


def test_a_video_is_not_kept_for_long(serve, gate, tmp_path):
    client = serve(keep_seconds=0.1)
    gate.let()
    video = ask(client)
    until(lambda: client.get(f"/api/videos/{video}").status_code == 404)
    assert not list((tmp_path / "videos").iterdir())


def test_what_the_server_says_of_itself(serve):
    client = serve(max_seconds=12)
    model = client.get("/api/model").json()
    assert model["frame_size"] == 32 and model["fps"] == 6.5 and model["limits"]["max_seconds"] == 12
    assert model["defaults"]["seconds"] == 10 and model["defaults"]["guidance_scale"] == 1
    described = client.get("/api/openapi.json").json()
    assert set(described["paths"]["/api/videos/{video_id}"]) == {"get", "delete"}
    create = described["paths"]["/api/videos"]["post"]
    assert set(create["responses"]) == {"202", "401", "413", "422", "503"}
    assert "seconds_left" in described["components"]["schemas"]["Progress"]["properties"]
